"""What came out when claims were run: a file of JSON for each system, and the verdict that follows from its numbers.

For the paired differences d_1..d_n of n seeds, each in the direction that is better (ours - baseline, or the other way
round where lower is better), the effect is their mean and its interval is Student's, mean ± t_(n-1) s / sqrt(n), at
95 %. With the smallest effect that counts, `least`,

    held where low >= least,      not held where high < least,      undecided otherwise.

An effect that is exactly `least` is said to be held in 2.5 % of cases, if differences are normal; not held as often.

A file is read with all that it says checked: names, types, lengths, and that effect, interval and verdict are those of
its numbers. Reading needs neither torch nor the claims themselves.

>>> judge([0.81, 0.83, 0.80, 0.84, 0.82], [0.70, 0.71, 0.70, 0.72, 0.70], "higher", least=0.05).verdict
'held'
"""

from __future__ import annotations

import json
import math
import statistics
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from homeostat.core.errors import CheckpointError, InputError, MissingPart, NonFiniteError, StoreError

Verdict = Literal["held", "not held", "undecided"]
LEVEL = 0.95
FORMAT = 1
FOLDER = "evidence"


@dataclass(frozen=True)
class Judgement:
    """What follows from the numbers of a claim's seeds.

    Attributes:
        differences: a seed each, in the direction that is better.
        effect: their mean.
        interval: of the effect, low and high.
        verdict: see the module's docstring.
    """

    differences: tuple[float, ...]
    effect: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class Statement:
    """What was claimed; see `Claim`. `data` are readers as mappings."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    says: str
    ours: str
    baseline: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    least: float
    tier: str
    data: tuple[dict[str, Any], ...]
    tuned: str
    shrunk: str


@dataclass(frozen=True)
class Evidence:
    """One claim's evidence.

    Attributes:
        id, name: of the claim.
        statement: what was claimed when it was run.
        seeds: that it was run with.
        arms: numbers of every arm, a seed each.
        differences, effect, interval, verdict: see `Judgement`.
        notes: what a reader has to know besides.
        seconds: wall-clock time of all seeds and of reading the data.
        cpu_seconds: processor time of the same.
        peak_memory_mib: largest memory of the process, with Python and torch themselves; 0 where it is not known.
        versions: of what computed it, and the machine.
        data: a hash for each reader.
        code: hash of the claim's file and of all code of this library that it reaches.
        date: when it was done, UTC.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    id: str
    name: str
    statement: Statement
    seeds: tuple[int, ...]
    arms: dict[str, tuple[float, ...]]
    differences: tuple[float, ...]
    effect: float
    interval: tuple[float, float]
    verdict: Verdict
    notes: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak_memory_mib: float
    versions: dict[str, str]
    data: tuple[str, ...]
    code: str
    date: str

    @property
    def full_name(self) -> str:
        """Id and name."""
        return f"{self.id}/{self.name}"


def judge(
    ours: Sequence[float] | Any, baseline: Sequence[float] | Any, better: str, least: float, level: float = LEVEL
) -> Judgement:
    """The verdict on one claim.

    Args:
        ours, baseline: a number a seed, in the same order.
        better: `"higher"` or `"lower"`.
        least: smallest effect that counts.
        level: of the interval.

    Raises:
        InputError: not as many numbers, or fewer than two. NonFiniteError: NaN or infinity among them.
    """
    from scipy.special import stdtrit

    count = len(ours)
    if count != len(baseline) or count < 2:
        raise InputError(f"there are {count} numbers of ours and {len(baseline)} of the baseline; a pair a seed is "
                         "wanted, of at least two seeds")  # fmt: skip
    if not all(math.isfinite(value) for value in (*ours, *baseline)):
        raise NonFiniteError("the numbers hold NaN or infinity, and there is no mean of such; mend the claim")
    sign = 1 if better == "higher" else -1
    differences = tuple(sign * (float(mine) - float(theirs)) for mine, theirs in zip(ours, baseline, strict=True))
    effect = statistics.fmean(differences)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * statistics.stdev(differences) / math.sqrt(count)
    low, high = effect - half, effect + half
    verdict: Verdict = "held" if low >= least else "not held" if high < least else "undecided"
    return Judgement(differences, effect, (low, high), verdict)


def nine(value: float) -> float:
    """A number as it is put on record: nine digits that count."""
    return float(f"{value:.9g}")


# ------------------------------------------------------------------------------------------------------------ files


def claims_folder(folder: str | Path | None = None) -> Path:
    """The folder of claims: the given one, else the installed package's, else that of the repository.

    Raises:
        MissingPart: there is none.
    """
    package = Path(__file__).parents[1]
    places = [Path(folder)] if folder is not None else [package / "claims", package.parents[1] / "claims"]
    for place in places:
        if place.is_dir():
            return place
    raise MissingPart(f"there is no folder of claims at {' or '.join(map(str, places))}; give one")


def is_installed(folder: Path) -> bool:
    """Whether a folder of claims belongs to an installed package, into which nothing is to be written."""
    return folder.resolve() == (Path(__file__).parents[1] / "claims").resolve()


def verdicts(folder: str | Path | None = None) -> dict[str, list[Evidence]]:
    """What is on record, by the id of the system; its claims in the order of the file.

    Args:
        folder: of claims; see `claims_folder`.

    Raises:
        MissingPart: there is no such folder. CheckpointError: a file is damaged or foreign.
    """
    files = sorted((claims_folder(folder) / FOLDER).glob("*.json"))
    return {file.stem: list(read_evidence(file).values()) for file in files}


def read_evidence(path: str | Path) -> dict[str, Evidence]:
    """The evidence of a system by the claim's name; nothing where there is no file.

    Raises:
        CheckpointError: the file is damaged or foreign.
    """
    path = Path(path)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); {_REMEDY}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT or not isinstance(said.get("claims"), dict):
        raise CheckpointError(f"{path} is no evidence of claims in format {FORMAT}; {_REMEDY}")
    if said.get("id") != path.stem:
        raise CheckpointError(f"{path} holds evidence of {said.get('id')!r}; {_REMEDY}")
    return {name: _checked(path, str(said["id"]), name, entry) for name, entry in said["claims"].items()}


def write_evidence(folder: str | Path, found: Sequence[Evidence], known: Collection[str] | None = None) -> list[Path]:
    """Put evidence on record; that of other claims stays.

    Args:
        folder: where the files lie; made when absent.
        found: of any systems.
        known: full names of all claims there are; entries of others are dropped. None drops nothing.

    Returns:
        The files written.

    Raises:
        StoreError: a file cannot be written. CheckpointError: one that is there is damaged.
    """
    written = []
    for id in sorted({one.id for one in found}):
        path = Path(folder) / f"{id}.json"
        every = read_evidence(path) | {one.name: one for one in found if one.id == id}
        kept = [name for name in sorted(every) if known is None or every[name].full_name in known]
        claims = {name: _plain(every[name]) for name in kept}
        _replace(path, _text({"format": FORMAT, "id": id, "claims": claims}) + "\n")
        written.append(path)
    return written


_REMEDY = "take it from version control, or run the claim again after removing it"


def _plain(one: Evidence) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name not in ("id", "name")}


def _checked(path: Path, id: str, name: str, entry: Any) -> Evidence:
    """One entry of a file, where all that it says fits."""
    from pydantic import TypeAdapter, ValidationError

    try:
        made = TypeAdapter(Evidence).validate_json(json.dumps({"id": id, "name": name} | entry), strict=True)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "it is no mapping"}
        where = ".".join(map(str, (name, *first["loc"])))
        raise CheckpointError(f"{path}: {where}: {first['msg'].lower()}; {_REMEDY}") from None
    for doubt in _doubts(made):
        raise CheckpointError(f"{path}: {name}: {doubt}; {_REMEDY}")
    return made


def _doubts(one: Evidence) -> Iterator[str]:
    said = one.statement
    for arm in (said.ours, said.baseline):
        if arm not in one.arms:
            yield f"there are no numbers of {arm}"
            return
    for arm, values in one.arms.items():
        if len(values) != len(one.seeds):
            yield f"{arm} has {len(values)} numbers of {len(one.seeds)} seeds"
            return
    if len(one.data) != len(said.data):
        yield f"there are {len(one.data)} hashes of {len(said.data)} data sets"
    try:
        follows = judge(one.arms[said.ours], one.arms[said.baseline], said.better, said.least)
    except InputError as error:
        yield str(error)
        return
    numbers = [(*made.differences, made.effect, *made.interval) for made in (follows, one)]
    # Derived numbers are written with nine digits.
    margin = 1e-8 * max(abs(value) for arm in (said.ours, said.baseline) for value in one.arms[arm])
    if len(numbers[0]) != len(numbers[1]) or any(abs(a - b) > margin for a, b in zip(*numbers, strict=True)):
        yield "effect, interval and differences are not those of its numbers"
    if follows.verdict != one.verdict:
        yield f"its numbers say {follows.verdict!r}, and it says {one.verdict!r}"


def _text(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of a mapping and for each list, so that changes are readable line by line."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + " "
    entries = (f"{inner}{json.dumps(str(name))}: {_text(item, inner)}" for name, item in value.items())
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _replace(path: Path, text: str) -> None:
    """Write a file so that there is the old one or the new one, and never a part."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)
