"""Whether evidence still stands: its claim, code and data are those of now, and it comes out again.

Evidence is stale where the statement, the hash of the code or that of the data differ from now. Where data are absent
here, whether they changed is not known, and that is said. A claim that was run again agrees where

- the versions and the machine are the same: every number of ours and of the baseline, to 1e-6 of its size;
- they are not, or the unit is one that a clock or the machine decides: the new effect lies within the recorded
  interval, widened on each side by half the width of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from homeostat.core.errors import MissingExtra, MissingPart
from homeostat.core.spec import digest
from homeostat.evidence.finding import Claims, Found
from homeostat.evidence.recorded import FOLDER, Evidence, read_evidence, verdicts

EXACT = 1e-6
"""Relative difference up to which two numbers of the same versions are the same."""
TIMED = frozenset({"seconds", "milliseconds", "MiB", "times as fast"})
"""Units whose numbers differ from run to run."""


@dataclass(frozen=True)
class Standing:
    """A claim beside its evidence.

    Attributes:
        found: the claim.
        evidence: on record; None where there is none.
        changed: what is no longer as it was: `"statement"`, `"code"`, `"data"`.
        unknown: why it cannot be said whether data changed; empty where it can.
    """

    found: Found
    evidence: Evidence | None = None
    changed: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def state(self) -> str:
        """In a few words."""
        if self.evidence is None:
            return "no evidence"
        if self.changed:
            return f"stale: {', '.join(self.changed)} changed"
        return "current, data not here" if self.unknown else "current"


@dataclass(frozen=True)
class Record:
    """What a folder claims and what it can show for it.

    Attributes:
        standings: a claim each.
        orphans: full names of evidence whose claim is not there.
    """

    standings: tuple[Standing, ...]
    orphans: tuple[str, ...] = field(default=())

    def faults(self) -> list[str]:
        """What has to be run again, a line each."""
        return [
            *(f"{one.found.claim.full_name}: {one.state}" for one in self.standings
              if one.evidence is None or one.changed),
            *(f"{name}: there is evidence and no claim" for name in self.orphans),
        ]  # fmt: skip


def standing(claims: Claims, chosen: Sequence[Found] | None = None) -> Record:
    """Hold claims beside what is on record; every data set is read once.

    Args:
        claims: of a folder.
        chosen: some of them; None takes all, and names evidence without a claim.

    Raises:
        CheckpointError: evidence is damaged or foreign.
    """
    folder, hashes = claims.folder / FOLDER, dict[str, str]()
    files = {one.claim.id: {} for one in claims.found}
    for id in files:
        files[id] = read_evidence(folder / f"{id}.json")
    rows = [
        _standing(one, files[one.claim.id].get(one.claim.name), hashes)
        for one in (claims.found if chosen is None else chosen)
    ]
    if chosen is not None:
        return Record(tuple(rows))
    # What cannot be read may well hold them.
    known = None if claims.broken else {one.claim.full_name for one in claims.found}
    every = [one.full_name for held in verdicts(claims.folder).values() for one in held]
    return Record(tuple(rows), tuple(name for name in every if known is not None and name not in known))


def sample(standings: Sequence[Standing], count: int, seed: int, tier: str = "a minute") -> list[Standing]:
    """Claims to run again, drawn from those of a tier whose evidence is current and whose data are here."""
    fit = [one for one in standings if one.found.claim.tier == tier and one.state == "current"]
    return random.Random(seed).sample(fit, min(count, len(fit)))


def differences(old: Evidence, new: Evidence) -> tuple[str, ...]:
    """How what came out differs from what is on record, a line each; nothing where it agrees."""
    said = new.statement
    if old.versions != new.versions or said.unit in TIMED:
        wider = (new.interval[1] - new.interval[0]) / 2
        low, high = old.interval
        if low - wider <= new.effect <= high + wider or _same(old.effect, new.effect):
            return ()
        around = f"{low:.4g} to {high:.4g}, widened by {wider:.2g} on each side"
        return (f"the effect is {new.effect:.4g}, and outside of {around}",)
    found = []
    for arm in (said.ours, said.baseline):
        for seed, value in zip(new.seeds, new.arms[arm], strict=True):
            there = _by_seed(old, arm).get(seed)
            if there is None or not _same(there, value):
                found.append(f"{arm}, seed {seed}: {value:.9g}, and {'nothing' if there is None else there} on record")
    return tuple(found)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= EXACT * max(abs(a), abs(b))


def _by_seed(one: Evidence, arm: str) -> Mapping[int, float]:
    return dict(zip(one.seeds, one.arms.get(arm, ()), strict=False))


def _standing(found: Found, evidence: Evidence | None, hashes: dict[str, str]) -> Standing:
    if evidence is None:
        return Standing(found)
    changed = [] if found.statement == evidence.statement else ["statement"]
    if found.code() != evidence.code:
        changed.append("code")
    unknown = ""
    try:
        now = tuple(_hash(reader, hashes) for reader in found.claim.data)
        if now != evidence.data:
            changed.append("data")
    except (MissingPart, MissingExtra) as error:
        unknown = str(error)
    return Standing(found, evidence, tuple(changed), unknown)


def _hash(reader: object, hashes: dict[str, str]) -> str:
    key = digest(reader)
    if key not in hashes:
        hashes[key] = reader.read().fingerprint()  # type: ignore[attr-defined]
    return hashes[key]
