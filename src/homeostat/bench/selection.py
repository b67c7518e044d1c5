"""Which member of a sweep stands for its method, and how much that choice flatters it.

A sweep is one method under several settings of its hyper-parameters, its members. A table of best members would show
what nobody gets who does not know the labels beforehand. Three ways to choose are therefore shown beside each other:

- `tuned`: the member that is best on streams set apart for tuning, used on all others as it is. With tuning streams
  under the same setting and protocol, these decide; else those under the same protocol; else all.
- `unlabelled`: in each run (a stream and a seed) the member that a reading without labels prefers, such as the one with
  the lowest entropy. A user can do so who runs all members beside each other.
- `oracle`: on each stream the member that is best on it by its labels, all seeds taken together. An upper bound.

Each gives new results that stand for the method in the tables. Ties go to the member that comes first. Members that
lack cases which others have are not chosen; except that a tuned choice stays, whatever becomes of it.

References: Cha, Cho, Moon, Hyperparameters in Continual Learning: a Reality Check, TMLR 2025; Zhao et al., On Pitfalls
of Test-Time Adaptation, ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from homeostat.bench.cases import Scores, comparable, scores_of
from homeostat.bench.results import Measured, Result

HOW = {"tuned": "tuned elsewhere", "unlabelled": "unlabelled", "oracle": "oracle"}
"""What is added to a sweep's name."""


@dataclass(frozen=True)
class Chosen:
    """A way to choose, applied to a sweep.

    Attributes:
        sweep, how: whose members, and how they were chosen: `"tuned"`, `"unlabelled"` or `"oracle"`.
        trials: how many members there were to choose from.
        members: how often each was chosen, in settings, streams or runs; the most frequent first.
        results: the chosen members' results, under a name of their own.
    """

    sweep: str
    how: str
    trials: int
    members: Mapping[str, int]
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        return f"{self.sweep}, {HOW[self.how]}"


@dataclass(frozen=True)
class Sensitivity:
    """What the hyper-parameters of a sweep do, on streams that are not for tuning.

    Attributes:
        sweep, trials: its name, and how many members it has.
        members: mean of each member; the best first.
        spread: best minus worst member's mean.
        best: mean of the best single member, which is known only afterwards.
        oracle, tuned, unlabelled: means of those choices on the same cases; None where there is no such choice.
        optimism: oracle minus tuned, more meaning more flattered.
        place: of the tuned member among all members, 1 the best; None where it is not the same everywhere.
        spearman: rank correlation of the members' means on tuning streams with those here; None below three members.
        rank_oracle, rank_tuned: the method's place among all methods where each sweep is chosen in that way.
        chosen: members that were taken by tuning.
        notes: what the numbers do not carry.
    """

    sweep: str
    trials: int
    members: Mapping[str, float]
    spread: float
    best: float
    oracle: float | None = None
    tuned: float | None = None
    unlabelled: float | None = None
    optimism: float | None = None
    place: int | None = None
    spearman: float | None = None
    rank_oracle: int | None = None
    rank_tuned: int | None = None
    chosen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def oracle(members: Sequence[Result], probe: str, what: Measured) -> Chosen:
    """The member that is best on each very stream, by its labels."""
    return _by(members, "oracle", lambda r: (r.setting, r.protocol, r.stream), probe, what.better == "lower")


def unlabelled(members: Sequence[Result], probe: str, what: Measured) -> Chosen:
    """The member that a reading without labels prefers in each run; lower is taken where neither way is better."""
    return _by(
        members, "unlabelled", lambda r: (r.setting, r.protocol, r.stream, r.seed), probe, what.better != "higher"
    )


def tuned(members: Sequence[Result], tune: Collection[str], probe: str, what: Measured) -> Chosen:
    """The member that is best on the streams named in `tune`, on all others."""
    tuning, rest = [r for r in members if r.stream in tune], [r for r in members if r.stream not in tune]
    taken, results = dict[str, int](), list[Result]()
    for setting, protocol in dict.fromkeys((r.setting, r.protocol) for r in rest):
        near = [r for r in tuning if (r.setting, r.protocol) == (setting, protocol)]
        near = near or [r for r in tuning if r.protocol == protocol] or tuning
        best = _best(scores_of(near, probe), what.better == "lower")
        if best is None:
            continue
        taken[best] = taken.get(best, 0) + 1
        results += [r for r in rest if (r.setting, r.protocol, r.entrant) == (setting, protocol, best)]
    return _chosen(members, "tuned", taken, results)


def _by(
    members: Sequence[Result], how: str, key: Callable[[Result], tuple[object, ...]], probe: str, lower: bool
) -> Chosen:
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in members:
        groups.setdefault(key(result), []).append(result)
    taken, results = dict[str, int](), list[Result]()
    for group in groups.values():
        best = _best(scores_of(group, probe), lower)
        if best is not None:
            taken[best] = taken.get(best, 0) + 1
            results += [r for r in group if r.entrant == best]
    return _chosen(members, how, taken, results)


def _best(scores: Scores, lower: bool) -> str | None:
    """Who is best on average, of those that have all cases that anybody has; of those with most where nobody has."""
    most = max((len(mine) for mine in scores.values()), default=0)
    means = {name: float(np.mean(list(mine.values()))) for name, mine in scores.items() if mine and len(mine) == most}
    return min(means, key=lambda name: means[name] if lower else -means[name]) if means else None


def _chosen(members: Sequence[Result], how: str, taken: Mapping[str, int], results: Sequence[Result]) -> Chosen:
    sweep, trials = members[0].sweep, len({r.entrant for r in members})
    name = f"{sweep}, {HOW[how]}"
    often = dict(sorted(taken.items(), key=lambda item: -item[1]))
    return Chosen(sweep, how, trials, often, tuple(replace(r, entrant=name, sweep="") for r in results))


def sensitivity(
    members: Sequence[Result], chosen: Sequence[Chosen], tune: Collection[str], probe: str, what: Measured
) -> Sensitivity | None:
    """What the hyper-parameters of a sweep do; None where no two members can be compared.

    Args:
        members: all results of the sweep.
        chosen: what was chosen from it.
        tune: streams that are for tuning.
        probe, what: the probe that decides, and a reading of it.
    """
    sign = -1.0 if what.better == "lower" else 1.0
    rest = [r for r in members if r.stream not in tune]
    scores = scores_of([*rest, *(r for one in chosen for r in one.results)], probe)
    found = comparable(scores)
    means = {name: float(np.mean([scores[name][case] for case in found.cases])) for name in found.names}
    named = {one.name: one for one in chosen}
    mine = {name: mean for name, mean in means.items() if name not in named}
    mine = dict(sorted(mine.items(), key=lambda item: -sign * item[1]))
    if len(mine) < 2:
        return None
    by = {one.how: means.get(one.name) for one in chosen}
    values, picked = list(mine.values()), next((one.members for one in chosen if one.how == "tuned"), {})
    flattered = None if (top := by.get("oracle")) is None or (low := by.get("tuned")) is None else sign * (top - low)
    notes = tuple(f"{name} lacks too many cases and is left out." for name in found.dropped)[:5]
    return Sensitivity(
        members[0].sweep, len({r.entrant for r in members}), mine, sign * (values[0] - values[-1]), values[0],
        by.get("oracle"), by.get("tuned"), by.get("unlabelled"), flattered,
        list(mine).index(next(iter(picked))) + 1 if len(picked) == 1 and next(iter(picked)) in mine else None,
        _spearman([r for r in members if r.stream in tune], mine, probe), chosen=tuple(picked), notes=notes,
    )  # fmt: skip


def _spearman(tuning: Sequence[Result], here: Mapping[str, float], probe: str) -> float | None:
    scores = scores_of(tuning, probe)
    found = comparable(scores)
    there = {name: float(np.mean([scores[name][case] for case in found.cases])) for name in found.names}
    both = [name for name in here if name in there]
    a, b = [there[name] for name in both], [here[name] for name in both]
    if len(both) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.asarray(stats.spearmanr(a, b))[0])


def with_ranks(
    found: Sequence[Sensitivity], means: Mapping[str, float], plain: Sequence[str], better: str
) -> tuple[Sensitivity, ...]:
    """Add each method's place among all methods, by oracle and as tuned.

    Args:
        found: of all sweeps.
        means: of all rows of the table over everything.
        plain: entrants that are no choice from a sweep.
        better: which way is better.
    """
    lower, made = better == "lower", list[Sensitivity]()
    for one in found:
        ranks = dict[str, int]()
        for how in ("oracle", "tuned"):
            names = [*(name for name in plain if name in means)]
            names += [name for other in found if (name := f"{other.sweep}, {HOW[how]}") in means]
            me = f"{one.sweep}, {HOW[how]}"
            if me in names:
                ahead = sum((means[n] < means[me]) if lower else (means[n] > means[me]) for n in names)
                ranks[f"rank_{how}"] = 1 + ahead
        made.append(replace(one, **ranks))
    return tuple(made)
