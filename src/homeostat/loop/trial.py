"""Candidates in shadow: what was seen of each, and what that comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from homeostat.loop.verify import Estimate, Paired, Signs, guard, mean_signs


@dataclass
class Trial:
    """One candidate on trial.

    Attributes:
        name: of the candidate; `"source"` is the frozen network itself.
        evidence: paired with what is served, on the labels that came.
        signs, served: of the candidate and of what is served, against the frozen network, per window.
        refused: why it may not be served, or empty.
    """

    name: str
    evidence: Paired = field(default_factory=Paired)
    signs: list[Signs] = field(default_factory=list)
    served: list[Signs] = field(default_factory=list)
    refused: str = ""

    def see(self, out: Tensor, served: Tensor, frozen: Tensor, labels: Tensor, known: Tensor, few: float) -> None:
        """Add a window: logits `[window, classes]` of the candidate, of what is served and of the frozen network."""
        self.refused = guard(out, frozen, few) or ""
        if self.refused:
            return
        mine, theirs = (logits.argmax(-1)[known].eq(labels[known]).int() for logits in (out, served))
        self.evidence.add(mine - theirs)
        self.signs.append(Signs.of(out, frozen))
        self.served.append(Signs.of(served, frozen))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Trial:
        """The trial that `as_dict` described."""
        signs, served = ([Signs(**s) for s in kept[key]] for key in ("signs", "served"))
        return cls(kept["name"], Paired(**kept["evidence"]), signs, served, kept["refused"])


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
    """

    name: str
    word: str
    why: str
    gain: float | None = None
    low: float | None = None
    labels: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def judge(
    trial: Trial, mine: Estimate, theirs: Estimate, *, wanted: float, alpha: float, lost: float, anchor: float
) -> Verdict:
    """The verdict on a trial as it stands.

    Args:
        trial: what was seen.
        mine, theirs: estimates of gain over the frozen network, for the candidate and for what is served.
        wanted: smallest gain worth a change.
        alpha: error probability of labelled evidence, already shared among rivals.
        lost: the candidate's loss of accuracy on data from before.
        anchor: the largest such loss allowed.
    """
    name, evidence = trial.name, trial.evidence
    if trial.refused:
        return Verdict(name, "refused", trial.refused)
    if lost > anchor:
        return Verdict(name, "refused", f"it loses {lost:.1%} on data from before")
    gain = mine.gain(mean_signs(trial.signs)) - theirs.gain(mean_signs(trial.served))
    margin = mine.margin + theirs.margin
    low = gain - margin
    known = math.isfinite(margin)
    estimated = f"estimated {gain:+.1%} without labels, at least {low:+.1%}" if known else "no calibrated estimate"
    shown: dict[str, Any] = {"low": round(low, 5) if known else None, "labels": evidence.count}
    if not evidence.count:
        # Going back to the network as deployed is the safe side: there the estimate itself decides, not its bound.
        better = known and (gain >= 0 if name == "source" else low >= wanted)
        return Verdict(name, "better" if better else "not shown", estimated, round(gain, 5) if known else None, **shown)
    seen = f"{evidence.mean:+.1%} on {evidence.count} labels, evidence {evidence.capital:.3g}"
    shown["gain"] = round(evidence.mean, 5)
    if evidence.capital >= 1 / alpha and evidence.mean >= wanted:
        return Verdict(name, "better", seen, **shown)
    if known and low >= wanted and evidence.mean >= 0:
        return Verdict(name, "better", f"{seen}; {estimated}", **shown)
    return Verdict(name, "undecided", f"{seen}, {1 / alpha:.0f} wanted", **shown)
