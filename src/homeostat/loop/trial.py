"""Candidates in shadow: what was seen of each, and what that comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from homeostat.core.probe import Outputs
from homeostat.loop.estimate import Estimate, Normal, Signs, mean_signs
from homeostat.loop.verify import Paired, guard


@dataclass
class Trial:
    """One candidate on trial.

    Attributes:
        name: of the candidate; `"source"` is the frozen network itself.
        evidence: paired with what is served, on the labels that came.
        signs, served: of the candidate and of what is served, against the frozen network, per window.
        ms: that the last window took, where the plan limits it; else 0.
        refused: why it may not be served, or empty.
    """

    name: str
    evidence: Paired = field(default_factory=Paired)
    signs: list[Signs] = field(default_factory=list)
    served: list[Signs] = field(default_factory=list)
    ms: float = 0.0
    refused: str = ""

    def see(self, out: Tensor, served: Tensor, frozen: Outputs, normal: Normal, few: float) -> None:
        """Add a window: logits `[window, classes]` of the candidate and of what is served, the frozen's outputs."""
        self.refused = guard(out, frozen.logits, few) or ""
        if not self.refused:
            self.signs.append(Signs.of(out, frozen, normal))
            self.served.append(Signs.of(served, frozen, normal))

    def hurry(self, ms: float, limit: float | None) -> None:
        """Refuse a candidate that took longer than the limit for two windows running; one may be chance."""
        if limit is None:
            return
        if min(ms, self.ms) > limit and not self.refused:
            self.refused = f"a window takes it {min(ms, self.ms):.1f} ms, and {limit:g} ms are allowed"
        self.ms = ms

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Trial:
        """The trial that `as_dict` described."""
        signs, served = ([Signs(**s) for s in kept[key]] for key in ("signs", "served"))
        return cls(kept["name"], Paired(**kept["evidence"]), signs, served, kept["ms"], kept["refused"])


@dataclass
class Verdict:
    """What a trial came to.

    Attributes:
        name: of the candidate.
        word: `"better"`, `"undecided"`, `"not shown"` or `"refused"`.
        why: in words and numbers.
        gain: over what is served, a fraction: measured on labels where there are any, else estimated.
        low: lower bound of the estimate, where it is calibrated.
        labels: how many labels there were.
        lost: accuracy lost on data from before, a fraction; None where nobody asked, for it is no better anyway.
    """

    name: str
    word: str
    why: str
    gain: float | None = None
    low: float | None = None
    labels: int = 0
    lost: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def judge(
    trial: Trial,
    mine: Estimate,
    theirs: Estimate,
    *,
    wanted: float,
    alpha: float,
    lost: Callable[[], float],
    anchor: float,
) -> Verdict:
    """The verdict on a trial as it stands.

    Args:
        trial: what was seen.
        mine, theirs: estimates of gain over the frozen network, for the candidate and for what is served.
        wanted: smallest gain worth a change.
        alpha: error probability of labelled evidence, already shared among rivals.
        lost: gives the candidate's loss of accuracy on data from before; asked only of one that is better now.
        anchor: the largest such loss allowed.
    """
    if trial.refused:
        return Verdict(trial.name, "refused", trial.refused)
    verdict = _weighed(trial, mine, theirs, wanted, alpha)
    if verdict.word == "better":
        verdict.lost = round(lost(), 5) + 0.0  # no -0.0
        if verdict.lost > anchor:
            verdict.word, verdict.why = "refused", f"it loses {verdict.lost:.1%} on data from before; {verdict.why}"
    return verdict


def _weighed(trial: Trial, mine: Estimate, theirs: Estimate, wanted: float, alpha: float) -> Verdict:
    name, evidence = trial.name, trial.evidence
    signs, served = mean_signs(trial.signs), mean_signs(trial.served)
    gain = mine.gain(signs) - theirs.gain(served)
    low = gain - mine.margin(signs) - theirs.margin(served)
    known = mine.known and theirs.known
    estimated = f"estimated {gain:+.1%} without labels, at least {low:+.1%}" if known else "no calibrated estimate"
    shown: dict[str, Any] = {"low": round(low, 5) if known else None, "labels": evidence.count}
    if not evidence.count:
        # Going back to the network as deployed is the safe side: there the estimate itself decides, not its bound.
        better = known and (gain >= 0 if name == "source" else gain >= wanted and low >= 0)
        return Verdict(name, "better" if better else "not shown", estimated, round(gain, 5) if known else None, **shown)
    seen = f"{evidence.mean:+.1%} on {evidence.count} labels, evidence {evidence.capital:.3g}"
    shown["gain"] = round(evidence.mean, 5)
    # Going back is the safe side here too: the square root of the evidence will do, and any gain.
    enough, least = (alpha**-0.5, 0.0) if name == "source" else (1 / alpha, wanted)
    if evidence.capital >= enough and evidence.mean >= least:
        return Verdict(name, "better", seen, **shown)
    if known and gain >= wanted and low >= 0 and evidence.mean >= 0:
        return Verdict(name, "better", f"{seen}; {estimated}", **shown)
    return Verdict(name, "undecided", f"{seen}, {enough:.3g} wanted", **shown)
