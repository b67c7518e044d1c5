"""Fills `<!-- evidence -->` with what came out of the claims, and gives method pages theirs, in words and pictures."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any

WIDTH, ROW, LEFT, MIDDLE = 720, 24, 150, 470
WORDS = ("held", "not held", "undecided")
UNITS = {"fraction": ("points", 100.0)}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if "<!-- evidence -->" in markdown:
        markdown = markdown.replace("<!-- evidence -->", overview())
    return markdown


def overview() -> str:
    """A table of all claims on record, and a section for each system."""
    from homeostat.catalogue import systems

    record = recorded()
    every = [one for held in record.values() for one in held]
    counts = ", ".join(f"{sum(one.verdict == word for one in every)} {word}" for word in WORDS)
    lines = [f"{len(every)} claims of {len(record)} systems and baselines: {counts}.", ""]
    lines += ["| | claim | effect, 95 % interval | least | verdict |", "|---|---|---|---|---|"]
    for id, held in record.items():
        for one in held:
            said = one.statement
            lines.append(
                f"| [{id}](#{id.lower()}) | {_cell(said.says)} | {_effect(one)} | {_number(said.least, said.unit)} "
                f"| **{one.verdict}**{', stale' if one.full_name in stale() else ''} |"
            )
    for id, held in record.items():
        title = f"{id}: {systems()[id].title}" if id in systems() else id
        lines += ["", f"## {title} {{#{id.lower()}}}", "", *section(held)]
    return "\n".join(lines)


@functools.cache
def recorded() -> dict[str, list[Any]]:
    """What is on record, by system."""
    from homeostat.evidence import verdicts

    return verdicts()


@functools.cache
def stale() -> frozenset[str]:
    """Full names of claims whose code or statement is no longer what was run."""
    from homeostat.evidence import find_claims

    known = {one.full_name: one for held in recorded().values() for one in held}
    return frozenset(
        name for found in find_claims().found
        if (name := found.claim.full_name) in known
        and (found.code() != known[name].code or found.statement != known[name].statement)
    )  # fmt: skip


def section(held: Sequence[Any]) -> list[str]:
    """The claims of a system in words and pictures."""
    lines = []
    for one in held:
        said = one.statement
        arms = f"{said.ours} against {said.baseline}, {said.metric}, {len(one.seeds)} seeds"
        lines += [
            f"**{one.verdict.capitalize()}:** {said.says} Effect {_effect(one)}; from {_number(said.least, said.unit)} "
            "on it counts.",
            "", picture(one), "",
            f"{arms}; {one.cpu_seconds:.0f} s of processor time. *Shrunk:* {said.shrunk}. *Tuned:* {said.tuned}.", "",
            *[f"*{note[0].upper()}{note[1:]}.*\n" for note in one.notes],
            *(["*Stale: the code that it reaches has changed since.*\n"] if one.full_name in stale() else []),
        ]  # fmt: skip
    return lines


def picture(one: Any) -> str:
    """Every arm's seeds, and the interval of the effect beside the smallest that counts; inline SVG."""
    said = one.statement
    names = [said.ours, said.baseline, *(name for name in one.arms if name not in (said.ours, said.baseline))]
    scale = UNITS.get(said.unit, ("", 1.0))[1]
    height = ROW * len(names) + 46
    parts = []
    x = _axis([value for name in names for value in one.arms[name]], LEFT, MIDDLE - 20)
    for place, name in enumerate(names):
        y = ROW * place + 20
        strong = name == said.ours
        mean = sum(one.arms[name]) / len(one.arms[name])
        parts.append(_text(LEFT - 12, y + 4, name, "end", bold=strong))
        parts.append(f'<line x1="{LEFT}" x2="{MIDDLE - 20}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".15"/>')
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{"#0072b2" if strong else "currentColor"}" '
            f'opacity=".55"/>' for value in one.arms[name]
        ]  # fmt: skip
        parts.append(
            f'<line x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y - 8}" y2="{y + 8}" stroke="currentColor" '
            'stroke-width="2"/>'
        )
    if len(names) > 1:
        pairs = zip(one.arms[said.ours], one.arms[said.baseline], strict=True)
        parts += [
            f'<line x1="{x(a):.1f}" x2="{x(b):.1f}" y1="20" y2="{ROW + 20}" stroke="currentColor" opacity=".25"/>'
            for a, b in pairs
        ]
    foot = ROW * len(names) + 14
    parts += _ticks(x, x.low, x.high, foot, scale, LEFT, MIDDLE - 20)
    effect = _axis([0.0, said.least, *one.interval, *one.differences], MIDDLE + 30, WIDTH - 20)
    middle = ROW * len(names) / 2 + 8
    parts.append(
        f'<line x1="{effect(0):.1f}" x2="{effect(0):.1f}" y1="8" y2="{foot}" stroke="currentColor" opacity=".5"/>'
    )
    least = effect(said.least)
    parts.append(
        f'<line x1="{least:.1f}" x2="{least:.1f}" y1="8" y2="{foot}" stroke="#d55e00" stroke-width="1.5" '
        'stroke-dasharray="4 3"/>'
    )
    low, high = (effect(value) for value in one.interval)
    parts.append(
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#0072b2" stroke-width="4" '
        'stroke-linecap="round"/>'
    )
    parts.append(f'<circle cx="{effect(one.effect):.1f}" cy="{middle}" r="6" fill="#0072b2"/>')
    parts.append(_text((MIDDLE + WIDTH + 10) / 2, middle + 20, one.verdict, "middle", bold=True))
    parts += _ticks(effect, effect.low, effect.high, foot, scale, MIDDLE + 30, WIDTH - 20)
    told = f"{said.ours} against {said.baseline}: effect {_effect(one)}, {one.verdict}"
    return (
        f'<div class="claim"><svg role="img" aria-label="{html.escape(told)}" viewBox="0 0 {WIDTH} {height}" '
        f'style="max-width:{WIDTH}px;width:100%;height:auto" font-size="12"><title>{html.escape(told)}</title>'
        + "".join(parts) + "</svg></div>"
    )  # fmt: skip


class _axis:
    """Values to pixels, with a little room at both ends."""

    def __init__(self, values: Sequence[float], first: float, last: float):
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high, self._first, self._last = low - room, high + room, first, last

    def __call__(self, value: float) -> float:
        return self._first + (value - self.low) / (self.high - self.low) * (self._last - self._first)


def _ticks(x: Any, low: float, high: float, y: float, scale: float, first: float, last: float) -> list[str]:
    """Two or three round numbers below an axis."""
    import math

    span = (high - low) * scale
    step = 10 ** math.floor(math.log10(span / 2))
    step = next(step * times for times in (5, 2, 1) if span / (step * times) >= 2 or times == 1)
    places = max(0, -math.floor(math.log10(step)))
    made = [f'<line x1="{first}" x2="{last}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".4"/>']
    value = math.ceil(low * scale / step) * step
    while value <= high * scale + 1e-9:
        made.append(_text(x(value / scale), y + 16, f"{value:.{places}f}".replace("-", "−"), "middle"))
        value += step
    return made


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{weight}>{html.escape(text)}</text>'
    )


def _effect(one: Any) -> str:
    unit = one.statement.unit
    low, high = (_number(value, unit, bare=True) for value in one.interval)
    return f"{_number(one.effect, unit)} ({low} to {high})"


def _number(value: float, unit: str, bare: bool = False) -> str:
    word, scale = UNITS.get(unit, (unit, 1.0))
    number = value * scale
    text = f"{number:+.1f}" if scale != 1.0 else f"{number:+.3g}"
    return text.replace("-", "−") + ("" if bare or not word else f" {word}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
