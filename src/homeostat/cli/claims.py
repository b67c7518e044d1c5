"""Commands on claims: `claims list`, `claims run`, `claims check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from homeostat.cli.printing import AsJson, Progress, lines, near, print_json, several, table

app = typer.Typer(no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(
    metavar="[CLAIM]...", help="S037, or S037/correlated for one of its claims.", show_default="all",
    autocompletion=lambda incomplete: _files(incomplete))]  # fmt: skip
Tier = Annotated[str | None, typer.Option(help="'a minute', 'three minutes' or 'long'.", show_default="any")]
Folder = Annotated[Path | None, typer.Option(
    "--claims", help="Folder of claim files.", show_default="the installed ones, else the repository's")]  # fmt: skip
_REHEARSED = 100


@app.command("list")
def list_(names: Names = None, tier: Tier = None, folder: Folder = None, as_json: AsJson = False) -> None:
    """List claims with what is on record: verdict, effect, and whether it is still current."""
    from homeostat.evidence.checking import standing

    claims = _claims(folder)
    chosen = claims.choose(names or (), tier)
    with Progress("looking at code and data"):
        rows = standing(claims, chosen).standings
    if as_json:
        print_json({"claims": [_as_dict(one) for one in rows], "broken": _broken(claims)})
        return
    table(
        [
            {"claim": one.found.claim.full_name, "tier": one.found.claim.tier, "verdict": _verdict(one.evidence),
             "effect": _effect(one.evidence), "evidence": one.state, "says": one.found.claim.says}
            for one in rows
        ],
        ("claim", "tier", "verdict", "effect", "evidence", "says"), whole=("claim", "effect"),
    )  # fmt: skip


@app.command()
def run(
    names: Names = None,
    tier: Tier = None,
    every: Annotated[bool, typer.Option("--all", help="Run all claims, of a tier if one is given.")] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds, from 0 on; evidence wants at least 5.")] = 5,
    rehearse: Annotated[bool, typer.Option(
        help="Take seeds from 100 on, which no evidence uses, and write nothing: for who writes a claim.")] = False,
    out: Annotated[Path | None, typer.Option(
        help="Folder that evidence is written to.", show_default="evidence, beside the claims")] = None,
    scratch: Annotated[Path | None, typer.Option(
        help="Folder where trained networks are kept for another time; seconds are then too few.",
        show_default="a temporary one for each claim")] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run claims again, and write down what came out, held or not.

    Ends with 1 when one could not be run; a claim that is not held is a result like any other.
    """
    from homeostat.core.errors import InputError
    from homeostat.core.run import Run
    from homeostat.evidence.recorded import FOLDER, is_installed, read_evidence, write_evidence
    from homeostat.evidence.running import FEWEST, run_claim

    claims = _claims(folder)
    if not names and not every and tier is None:
        raise InputError("which claims are to be run? Name some, such as S037, or give --tier or --all")
    if seeds < FEWEST and not rehearse:
        raise InputError(f"--seeds {seeds} are too few for evidence: {FEWEST} are wanted, or --rehearse")
    chosen = claims.choose(names or (), tier)
    place = out if out is not None else None if is_installed(claims.folder) else claims.folder / FOLDER
    place = None if rehearse else place
    first, known = _REHEARSED if rehearse else 0, {one.claim.full_name for one in claims.found}
    rows, failed = list[dict[str, Any]](), False
    with Progress("running claims") as progress:
        for number, one in enumerate(chosen):
            progress.overall("claims", number, len(chosen))
            made = run_claim(one, range(first, first + seeds), run=Run(watch=progress, scratch=scratch))
            failed = failed or bool(made.failed)
            old = read_evidence(claims.folder / FOLDER / f"{one.claim.id}.json").get(one.claim.name)
            if made.evidence is not None and place is not None:
                write_evidence(place, [made.evidence], None if claims.broken or out is not None else known)
            rows.append(_row(made, None if rehearse else old))
    written = "" if place is None else near(place)
    if as_json:
        print_json({"claims": rows, "written": written, "broken": _broken(claims)})
    else:
        for row in rows:
            _show(row)
        lines([("written", written or "nothing" + ("" if rehearse else "; give --out"))])
    if failed:
        raise typer.Exit(1)


@app.command()
def check(
    names: Names = None,
    sample: Annotated[int, typer.Option(min=0, help="Claims to run again; 0 runs none.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    tier: Annotated[str, typer.Option(help="Of the claims that are run again.")] = "a minute",
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Fail on evidence that is missing or stale, run some claims again, and compare.

    Ends with 1 when something is wrong.
    """
    from homeostat.core.run import Run
    from homeostat.evidence.checking import Record, differences, sample as draw, standing
    from homeostat.evidence.running import run_claim

    claims = _claims(folder)
    chosen = claims.choose(names, None) if names else None
    claims.choose((), tier)
    with Progress("looking at code and data"):
        record: Record = standing(claims, chosen)
    drawn = draw(record.standings, sample, seed, tier)
    faults = [*(f"{broken.file.name}: {broken.why}" for broken in claims.broken), *record.faults()]
    again = list[dict[str, Any]]()
    with Progress("running claims again") as progress:
        for number, one in enumerate(drawn):
            progress.overall("claims", number, len(drawn))
            assert one.evidence is not None
            made = run_claim(one.found, one.evidence.seeds, run=Run(watch=progress))
            name = one.found.claim.full_name
            wrong = list(differences(one.evidence, made.evidence)) if made.evidence else [made.failed or made.skipped]
            faults += [f"{name}: {text}" for text in wrong]
            same = made.evidence is not None and made.evidence.versions == one.evidence.versions
            again.append({"claim": name, "agrees": not wrong, "same_versions": same, "wrong": wrong})
    unknown = [one.found.claim.full_name for one in record.standings if one.unknown]
    if as_json:
        print_json({"claims": len(record.standings), "again": again, "unknown": unknown, "faults": faults})
    else:
        said = [("wrong", fault) for fault in faults]
        said += [("unknown", f"{name}: its data are not here") for name in unknown]
        said += [("again", f"{row['claim']}: {_agrees(row)}") for row in again if row["agrees"]]
        count = several(len(record.standings), "claim")
        said.append(("checked", f"{count}, {several(len(again), 'claim')} run again, {several(len(faults), 'fault')}"))
        lines(said)
    if faults:
        raise typer.Exit(1)


def _claims(folder: Path | None) -> Any:
    """All claims; what is broken is said on the error stream."""
    from homeostat.evidence.finding import find_claims

    claims = find_claims(folder)
    for broken in claims.broken:
        typer.secho(f"homeostat: {broken.why}", err=True, fg=typer.colors.RED)
    return claims


def _files(incomplete: str) -> list[str]:
    """Ids with evidence, which can be read off without loading a claim."""
    from homeostat.core.errors import MissingPart
    from homeostat.evidence.recorded import FOLDER, claims_folder

    try:
        return sorted(f.stem for f in (claims_folder() / FOLDER).glob("*.json") if f.stem.startswith(incomplete))
    except MissingPart:
        return []


def _broken(claims: Any) -> list[dict[str, str]]:
    return [{"file": str(one.file), "why": one.why} for one in claims.broken]


def _row(made: Any, old: Any) -> dict[str, Any]:
    import dataclasses

    new = made.evidence
    return {
        "claim": made.found.claim.full_name, "says": made.found.claim.says, "skipped": made.skipped,
        "failed": made.failed, "evidence": None if new is None else dataclasses.asdict(new),
        "before": None if old is None else dataclasses.asdict(old),
    }  # fmt: skip


def _show(row: dict[str, Any]) -> None:
    """One claim that was run, for people."""
    new, old = row["evidence"], row["before"]
    said = [("claim", f"{row['claim']}: {row['says']}")]
    if new is None:
        said += [("skipped", row["skipped"])] if row["skipped"] else [("failed", row["failed"])]
    else:
        stated = new["statement"]
        said.append(("verdict", f"{new['verdict']}: {_numbers(new)} {stated['unit']}, at least {stated['least']:g} "
                                f"was claimed"))  # fmt: skip
        if old is not None:
            said.append(("on record", f"{old['verdict']}: {_numbers(old)}"))
        means = (f"{arm} {sum(values) / len(values):.4g}" for arm, values in new["arms"].items())
        said.append(("arms", f"{stated['metric']}: {', '.join(means)}"))
        said.append(("took", f"{new['cpu_seconds']:.0f} s of processor time, {new['peak_memory_mib']:.0f} MiB"))
        said += [("note", note) for note in new["notes"]]
    lines(said)


def _as_dict(one: Any) -> dict[str, Any]:
    import dataclasses

    claim = one.found.claim
    return {
        "claim": claim.full_name, "id": claim.id, "name": claim.name, "file": str(one.found.file),
        "statement": dataclasses.asdict(one.found.statement), "state": one.state, "changed": one.changed,
        "unknown": one.unknown, "evidence": None if one.evidence is None else dataclasses.asdict(one.evidence),
    }  # fmt: skip


def _agrees(row: dict[str, Any]) -> str:
    return "every number is the same" if row["same_versions"] else "agrees, on other versions or another machine"


def _verdict(evidence: Any) -> str:
    return "" if evidence is None else evidence.verdict


def _effect(evidence: Any) -> str:
    return "" if evidence is None else _numbers(vars(evidence))


def _numbers(evidence: dict[str, Any]) -> str:
    low, high = evidence["interval"]
    return f"{evidence['effect']:+.3g} [{low:+.3g}, {high:+.3g}]"
