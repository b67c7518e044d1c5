"""The harm table as text and as a page of the documentation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

LOOPS = ("loop, no labels", "loop, 16 labels")


def differences(cells: list[dict[str, Any]], column: str) -> dict[tuple[str, str, int], list[float]]:
    """Served minus frozen accuracy in points, one a seed, by network, stream and phase."""
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for cell in sorted(cells, key=lambda c: c["seed"]):
        for phase, (mine, frozen) in enumerate(zip(cell["columns"][column], cell["columns"]["frozen"], strict=True)):
            found[cell["network"], cell["stream"], phase].append(100 * (mine - frozen))
    return found


def low(values: list[float]) -> float:
    """The lower end of the one-sided 95 % t interval of the mean over seeds."""
    from scipy.stats import t

    if len(values) < 2 or len(set(values)) == 1:
        return values[0]
    return statistics.mean(values) - t.ppf(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


def summary(cells: list[dict[str, Any]]) -> str:
    """Mean over seeds of each column, a row a network, stream and phase; then the worst phases."""
    lines = []
    by: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by[cell["network"], cell["stream"]].append(cell)
    for (network, stream), some in sorted(by.items()):
        lines.append(f"{network}  {stream}  ({sum(c['seconds'] for c in some):.0f} s)")
        for name in some[0]["columns"]:
            phases = zip(*(c["columns"][name] for c in some), strict=True)
            lines.append(f"   {name:18}" + "".join(f"{100 * statistics.mean(p):8.1f}" for p in phases))
        for name in LOOPS:
            for c in some:
                told = [f"{s['at']}:{s['to']}" for s in c["loops"][name]["switches"]]
                lines.append(f"   {name} seed {c['seed']}: {c['loops'][name]['alarms']} alarms; " + " ".join(told))
    for name in LOOPS:
        found = differences(cells, name)
        worst = sorted(found.items(), key=lambda item: low(item[1]))[:12]
        lines.append(f"worst phases of the {name}:")
        lines += [f"   {low(v):+7.2f} (mean {statistics.mean(v):+.2f}) {key}" for key, v in worst]
        bad = sum(low(v) < -1 for v in found.values())
        lines.append(
            f"   {bad} of {len(found)} phases below -1; mean {statistics.mean(map(statistics.mean, found.values())):+.2f}"
        )
    return "\n".join(lines)


def page(cells: list[dict[str, Any]], seconds: float) -> str:
    raise NotImplementedError
