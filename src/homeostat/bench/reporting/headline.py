"""The first thing a reader sees: who is better than the reference and by how much, who does harm, what is not known."""

from __future__ import annotations

from homeostat.bench.reporting import wording
from homeostat.bench.reporting.wording import counted, named, names
from homeostat.bench.scoring import Row, Table
from homeostat.bench.summary import Summary
from homeostat.loop.reporting.wording import several

LIMIT = 0.01
"""Loss of a fraction, in a phase, that counts as harm."""


def lead(summary: Summary) -> list[str]:
    """What the grid came to, a sentence or two a paragraph; the first is the one to remember."""
    if not summary.tables:
        failed = f": {several(len(summary.failed), 'cell')} failed" if summary.failed else ""
        return [f"No cell gave a result{failed}, so that nothing can be compared.", *summary.notes]
    table = summary.tables[0]
    rows = [row for row in table.rows if row.kind != "oracle" and row.mean is not None]
    if not rows:
        return ["There is no case in which entrants can be compared.", *table.notes]
    others = [row for row in rows if row.difference is not None]
    said = [_best(summary, table, rows)]
    if table.reference and others:
        said += [_against(table, others), *_harm(summary, table, others)]
    if table.ranking is not None:
        said.append(_ranks(table))
    flattered = [one for one in summary.sensitivity if (one.optimism or 0.0) > summary.margin]
    if flattered:
        each = [f"{named(one.sweep)} {counted(one.optimism, table.unit).lstrip('+')}" for one in flattered]
        said.append(
            "Hyper-parameters chosen by the labels of the very stream would promise more than what was tuned elsewhere "
            f"gives: {wording.listed(each)}."
        )
    return said + [note for note in summary.notes if "failed" in note or "missing" in note]


def _best(summary: Summary, table: Table, rows: list[Row]) -> str:
    ways = len({(place.setting, place.protocol) for place in table.places})
    each = f", each under {ways} settings and protocols," if ways > 1 else ""
    over = f"Over {several(table.streams, 'stream')}{each} and {several(table.seeds, 'seed')}"
    if table.better == "none":
        return f"{over}, {table.probe} was read of {several(len(rows), 'entrant')}; neither way is better."
    best = rows[0]
    came = _came(table, best)
    if len(rows) == 1:
        return f"{over}, {named(best.entrant)} was {came}; there is nobody to compare it with."
    who = "the network left as it is" if best.entrant == "Source" else "the reference"
    if best.entrant == table.reference:
        return f"{over}, nothing was better than {named(best.entrant)}, {who}, which was {came}."
    first = f"{over}, {named(best.entrant)} was best: {came}"
    if not table.reference:
        return f"{first}."
    theirs = next(row for row in rows if row.entrant == table.reference)
    sure = ""
    if best.interval is not None:
        sure = f" (95% interval {wording.between(best.interval, table.unit)})"
    return (
        f"{first}, where {named(table.reference)} was {_came(table, theirs)}: "
        f"{counted(best.difference, table.unit)}{sure}."
    )


def _came(table: Table, row: Row) -> str:
    if table.probe == "accuracy":
        return f"right on {wording.value(row.mean, table.unit)}"
    unit = "" if table.unit == "fraction" else f" {table.unit}"
    return f"at {table.probe} {wording.value(row.mean, table.unit)}{unit}"


def _against(table: Table, others: list[Row]) -> str:
    them, known = named(table.reference), [row for row in others if row.interval is not None]
    if not known:
        return (
            f"Differences to {them}: {names(others, table.unit)}. With one seed nothing says how far they are chance."
        )
    up = [row for row in known if row.interval and row.interval.low > 0]
    down = [row for row in known if row.interval and row.interval.high < 0]
    rest = [row for row in known if row not in up and row not in down]
    parts = list[str]()
    if up:
        parts.append(f"better than {them} by more than seeds differ: {names(up, table.unit)}")
    if down:
        parts.append(f"worse: {names(down, table.unit)}")
    if rest:
        parts.append(f"not to be told from {them}: {names(rest, table.unit)}")
    few = " Five seeds or more are wanted before such intervals are believed." if table.seeds < 5 else ""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}.{few}"


def _harm(summary: Summary, table: Table, others: list[Row]) -> list[str]:
    """Who loses in a phase, which a mean hides; nothing for a probe that has no better way."""
    limit = LIMIT if table.unit == "fraction" else summary.margin
    known = [(row, row.harm) for row in others if row.harm is not None]
    lost = sorted(((row, harm) for row, harm in known if harm.mean < -limit), key=lambda pair: pair[1].mean)
    said, much = list[str](), wording.counted(limit, table.unit).lstrip("+").replace("1.0 points", "a point")
    if lost:
        each = [
            f"{named(row.entrant)} loses {wording.counted(-harm.mean, table.unit).lstrip('+')} in "
            f"“{wording.where(harm.place, table, summary.phases)}”"
            for row, harm in lost
        ]
        said.append(f"In their worst phases {wording.listed(each, 3)}.")
    elif known:
        said.append(f"No entrant loses more than {much} on average in any phase.")
    bounded = [(row, harm.bound) for row, harm in known if harm.bound is not None]
    if bounded:
        safe = [named(row.entrant) for row, bound in bounded if bound > -limit]
        if safe:
            said.append(f"That more than {much} is lost in some phase can be ruled out, at 95%, for "
                        f"{wording.listed(safe)}.")  # fmt: skip
        else:
            said.append(f"That more than {much} is lost in some phase can be ruled out for none of them, at 95%.")
    return [" ".join(said)] if said else []


def _ranks(table: Table) -> str:
    assert table.ranking is not None
    order, alike = list(table.ranking.ranks), table.ranking.alike
    over = f"Ranked over {wording.blocks(table)}"
    if alike and len(alike[0]) == len(order):
        return f"{over}, no two of the {len(order)} can be told apart: more streams are wanted for that."
    top = next((group for group in alike if order[0] in group), ())
    best = named(order[0])
    if not top:
        return f"{over}, {best} stands above all others by more than the critical difference."
    return f"{over}, {best} cannot be told from {wording.listed([named(name) for name in top if name != order[0]])}."
