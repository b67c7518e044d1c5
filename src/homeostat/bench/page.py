"""The report of a grid: one HTML file with its tables, pictures and downloads, which loads nothing.

It is in the style of the loop's report and shares its style sheet and charts. Its one script sorts tables and unpacks
the downloads; the page is whole without it. Everything that comes from results is escaped. However large the grid, the
file stays small: charts are thinned, and what is left out is said.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from homeostat.bench.cases import Place
from homeostat.bench.reporting import downloads, drawings, wording
from homeostat.bench.reporting.curves import small_multiples
from homeostat.bench.reporting.headline import lead
from homeostat.bench.results import Result
from homeostat.bench.scoring import Row, Table
from homeostat.bench.summary import Summary
from homeostat.core.errors import StoreError
from homeostat.loop.reporting.wording import brief, clip, several

PARTS = Path(__file__).parent / "reporting"
HEAT, FAILED, CHOICES = 12_000, 60, 40
"""Most cells of all heat tables together, failed cells, and settings and protocols to choose from."""


@dataclass(frozen=True)
class Heat:
    """Differences by entrant and phase.

    Attributes:
        streams: name and number of phases, the head's first line.
        phases: short texts, its second.
        rows: entrant, and for each phase the difference in words and its CSS class.
        left: rows left out.
    """

    streams: Sequence[tuple[str, int]]
    phases: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    left: int


@dataclass(frozen=True)
class Part:
    """What the page shows of a setting and protocol, or of all together."""

    name: str
    table: Table
    others: Sequence[Table]
    entrants: Sequence[str]
    differences: drawings.Picture | None
    ranks: drawings.Picture | None
    heat: Heat | None

    def cell(self, entrant: str, table: Table) -> Row | None:
        """An entrant's row in the table of another probe."""
        return next((row for row in table.rows if row.entrant == entrant), None)


def write_page(
    path: str | Path,
    results: Iterable[Result],
    summary: Summary,
    *,
    title: str = "",
    about: Mapping[str, str] = {},
    protocols: Mapping[str, str] = {},
) -> Path:
    """Write the report.

    Args:
        path: of the file; its folder is made when absent.
        results: all that the summary was made of; they can be downloaded from the page.
        summary: `summarize(results)`.
        title: of the report.
        about: what else a reader should know, such as data and networks; name and text.
        protocols: what each protocol does, in a sentence.

    Returns:
        The path.

    Raises:
        StoreError: the file cannot be written.
    """
    given, path = list(results), Path(path)
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    files, short = downloads.files(summary, given)
    parts = _parts(summary)
    rows = summary.tables[0].rows if summary.tables else ()
    times = sorted(r.at[:16].replace("T", " ") for r in given if r.at)
    page = _environment().get_template("grid.html.j2").render(
        title=clip(title or f"Suite {summary.suite}", 200), summary=summary, lead=lead(summary), parts=parts,
        tiles=_tiles(summary), curves=small_multiples(summary), files=files, short=short, script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(), phases=summary.phases,
        failed=summary.failed[:FAILED], failed_left=max(0, len(summary.failed) - FAILED),
        protocols=_protocols(given, protocols), settings=list(dict.fromkeys(r.setting for r in given)),
        streams=list(dict.fromkeys(r.stream for r in given)),
        about={clip(name, 80): clip(text, 2000) for name, text in list(about.items())[:50]},
        when=f"{' to '.join(dict.fromkeys((times[0], times[-1])))} UTC" if times else "",
        swept=any(row.trials > 1 for row in rows), tall=len(rows) > 25,
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report {path} cannot be written: {error.strerror or error}; name a file") from None
    return path


@cache
def _environment() -> Environment:
    import homeostat.loop.reporting.page as shared

    made = Environment(
        loader=FileSystemLoader([PARTS, Path(shared.__file__).parent]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"brief": brief, "clip": clip}
    made.globals |= {"several": several, "say": wording, "zip": zip}
    return made


def _parts(summary: Summary) -> list[Part]:
    mains = summary.of(summary.probe)[: CHOICES + 1]
    room = HEAT // max(1, sum(len(table.places) for table in mains if table.protocol or len(mains) == 1))
    made = list[Part]()
    for table in mains:
        key = (table.setting, table.protocol)
        others = [t for t in summary.tables if (t.setting, t.protocol) == key and t.probe != table.probe]
        alone = bool(table.protocol) or len(mains) == 1
        made.append(Part(
            wording.scope(table), table, others, [row.entrant for row in table.rows], drawings.differences(table),
            drawings.ranks(table), _heat(table, summary.phases, max(12, room)) if alone else None,
        ))  # fmt: skip
    return made


def _heat(table: Table, phases: Mapping[Place, str], most: int) -> Heat | None:
    rows = [row for row in table.rows if row.gains]
    if not rows or not table.places:
        return None
    every = len(rows)
    rows = rows if every <= most else [*rows[: most - most // 2], *rows[-(most // 2) :]]
    top = max(abs(gain) for row in rows for gain in row.gains) or 1.0
    if table.unit == "fraction":
        top = min(max(top, 0.04), 0.2)
    streams = dict.fromkeys(place.stream for place in table.places)
    return Heat(
        [(stream, sum(place.stream == stream for place in table.places)) for stream in streams],
        [phases.get(place) or f"phase {place.phase + 1}" for place in table.places],
        [(row.entrant, [(wording.change(gain, table.unit), _shade(gain / top)) for gain in row.gains]) for row in rows],
        every - len(rows),
    )


def _shade(share: float) -> str:
    """A CSS class: how far up or down, in four steps; none near 0.

    >>> _shade(0.03), _shade(0.5), _shade(-2.0)
    ('', 'u2', 'd4')
    """
    step = min(4, int(abs(share) * 4 + 0.5))
    return "" if not step else f"{'u' if share > 0 else 'd'}{step}"


def _tiles(summary: Summary) -> list[tuple[str, str]]:
    counts = [(summary.cells, "cell")]
    if summary.tables:
        table = summary.tables[0]
        counts = [(len(table.rows), "entrant"), (table.streams, "stream"), (table.seeds, "seed"), *counts]
    made = [(f"{count:,}", several(count, word).split()[-1]) for count, word in counts]
    return [*made, (f"{len(summary.failed):,}", "failed"), (f"{summary.missing:,}", "missing")]


def _protocols(results: Iterable[Result], said: Mapping[str, str]) -> dict[str, str]:
    """In words, as given, or as a cell says of itself."""
    made = dict[str, str]()
    for r in results:
        own = r.about.get("protocol", "")
        made.setdefault(r.protocol, clip(said.get(r.protocol) or (own if isinstance(own, str) else ""), 1000))
    return made
