"""What a report says of the run itself: the plan's settings with their meanings, versions, and when it was."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from homeostat.core.errors import UnknownName
from homeostat.core.spec import find
from homeostat.loop.plan import Plan
from homeostat.loop.reporting import wording
from homeostat.loop.store import Row


def settings(start: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the plan's settings; the meanings are those of the plan's own documentation."""
    plan, made = start.get("plan", {}).get("Plan", {}), []
    for name, value in plan.items():
        if isinstance(value, dict):
            chosen, inner = next(iter(value.items()), ("", {}))
            known = _meanings_of(chosen)
            made.append((name, chosen, _meanings(Plan).get(name, "")))
            made += [(f"{name}: {key}", _plain(v), known.get(key, "")) for key, v in inner.items()]
        else:
            made.append((name, _plain(value), _meanings(Plan).get(name, "")))
    return [(wording.clip(n, 80), wording.clip(v, 200), meaning) for n, v, meaning in made[:60]]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else str(value)


def _meanings_of(name: str) -> dict[str, str]:
    try:
        return _meanings(find(name))
    except UnknownName:  # of a library that this process does not have
        return {}


def _meanings(spec: type) -> dict[str, str]:
    found, name = dict[str, str](), ""
    for line in (spec.__doc__ or "").partition("Attributes:")[2].splitlines():
        head, colon, text = line.strip().partition(": ")
        if colon and head.isidentifier() and line.startswith(" " * 8) and line[8:9] != " ":
            name, found[head] = head, text
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return {key: text[:1].upper() + text[1:] for key, text in found.items()}


def versions() -> dict[str, str]:
    """Of what made the report."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "from source"

    return {"homeostat": installed("homeostat"), "torch": installed("torch"), "Python": platform.python_version()}


def when(rows: Sequence[Row]) -> str:
    """First and last time in the journal."""
    times = [row.time for row in rows if row.time > 0]
    if not times:
        return ""
    first, last = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M") for t in (min(times), max(times)))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"
