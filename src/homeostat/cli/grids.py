"""How the results of a grid are printed: what they came to, a table for each setting and protocol, what to doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from homeostat.cli.printing import paragraphs, table as print_table

if TYPE_CHECKING:
    from homeostat.bench.scoring import Row, Table
    from homeostat.bench.selection import Sensitivity
    from homeostat.bench.summary import Summary


@dataclass(frozen=True)
class Printed:
    """A table to print: its title, its columns, its rows by column, and sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str] = ()


def tables(summary: Summary, probe: str | None = None) -> list[Printed]:
    """What there is to print of one probe, the one that counts first if none: over everything, then each setting and
    protocol; and what hyper-parameters do, where there are sweeps."""
    mine = summary.of(probe or summary.probe)
    made = [_table(one, summary) for one in mine]
    if summary.sensitivity and mine and probe in (None, summary.probe):
        made.append(_sensitivity(summary.sensitivity, mine[0].unit))
    return made


def show(summary: Summary, probe: str | None = None) -> None:
    """Print what the grid came to, its tables, and what to beware of."""
    from homeostat.bench.reporting.headline import lead

    said = lead(summary)
    paragraphs(said)
    for one in tables(summary, probe):
        typer.echo()
        typer.secho(one.title, bold=True)
        print_table(one.rows, one.columns, whole=one.columns[1:-1])
        paragraphs(one.notes, indent="  ")
    if rest := [note for note in summary.notes if note not in said]:
        typer.echo()
        paragraphs(rest)


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as JSON has it: all tables, choices and notes; not the results that it was made of."""
    made = {
        field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)
        if field.name not in ("results", "failed", "phases", "chosen")
    }  # fmt: skip
    made["tables"] = [_plain(one) | {"rows": [_plain(row) for row in one.rows]} for one in summary.tables]
    made["sensitivity"] = [dataclasses.asdict(one) for one in summary.sensitivity]
    made["chosen"] = [
        {"name": one.name, "sweep": one.sweep, "how": one.how, "trials": one.trials, "members": dict(one.members)}
        for one in summary.chosen
    ]
    made["phases"] = [{**place._asdict(), "what": text} for place, text in summary.phases.items()]
    made["failed"] = [
        {name: getattr(r, name) for name in ("setting", "protocol", "stream", "entrant", "sweep", "seed", "error")}
        for r in summary.failed
    ]
    return made


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it; places and cases by their fields' names."""
    return {field.name: _plainly(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plainly(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return value._asdict()
    if dataclasses.is_dataclass(value):
        return _plain(value)
    return [_plainly(item) for item in value] if isinstance(value, tuple) else value


def _table(one: Table, summary: Summary) -> Printed:
    from homeostat.bench.reporting import wording

    swept = any(row.trials > 1 for row in one.rows)
    rows = [_row(row, one, summary) for row in one.rows]
    columns = ["entrant", "mean"]
    if one.reference:
        columns += ["difference", "95 %", "p", *(["won, tied, lost"] if one.better != "none" else [])]
    columns += [*(["rank"] if one.ranking else []), *(["trials"] if swept else [])]
    columns += ["worst phase", "bound", "which"] if one.reference and one.better != "none" else ["samples/s"]
    unit = wording.measure(one.unit)
    to = f", difference to {one.reference}" + (f" in {unit}" if unit else "") if one.reference else ""
    more = " (counted so that more is better)" if one.reference and one.better == "lower" else ""
    return Printed(f"{wording.scope(one)}: {one.probe}{to}{more}", columns, rows, one.notes)


def _row(row: Row, one: Table, summary: Summary) -> dict[str, Any]:
    from homeostat.bench.reporting import wording
    from homeostat.loop.reporting.wording import clip

    harm, there = row.harm, row.difference is not None
    name = row.entrant + (" (upper bound)" if row.kind == "oracle" else "")
    return {
        "entrant": name, "mean": wording.value(row.mean, one.unit),
        "difference": wording.change(row.difference, one.unit) if there else "",
        "95 %": wording.between(row.interval, one.unit), "p": wording.chance(row.p_holm) if there else "",
        "won, tied, lost": f"{row.wins}, {row.ties}, {row.losses}" if there else "",
        "worst phase": wording.change(harm.mean, one.unit) if harm else "",
        "bound": wording.change(harm.bound, one.unit) if harm else "",
        "which": clip(wording.where(harm.place, one, summary.phases), 36) if harm else "",
        "rank": "" if row.rank is None else f"{row.rank:.1f}", "trials": row.trials,
        "samples/s": "" if row.speed is None else f"{row.speed:,.0f}",
    }  # fmt: skip


def _sensitivity(every: Sequence[Sensitivity], unit: str) -> Printed:
    from homeostat.bench.reporting import wording

    def value(number: float | None) -> str:
        return wording.value(number, unit)

    rows = [
        {
            "method": one.sweep, "trials": one.trials, "tuned": value(one.tuned), "unlabelled": value(one.unlabelled),
            "oracle": value(one.oracle), "optimism": wording.change(one.optimism, unit),
            "best - worst": wording.change(one.spread, unit).lstrip("+"),
            "place": f"{one.place} of {len(one.members)}" if one.place else "–",
            "spearman": "–" if one.spearman is None else f"{one.spearman:.2f}",
            "rank, oracle and tuned": f"{one.rank_oracle or '–'}, {one.rank_tuned or '–'}",
        }
        for one in every
    ]  # fmt: skip
    return Printed("What the hyper-parameters do", list(rows[0]), rows, [note for one in every for note in one.notes])
