"""How a report writes numbers, names and long texts."""

from __future__ import annotations

import math
import re
from typing import Any

from homeostat.loop.reporting.summary import SOURCE

LONGEST = 600
"""Letters of a journal text that are shown; a remedy's error message may be a page."""


def called(name: Any) -> str:
    """A model's name for a reader."""
    return "the network as deployed" if name == SOURCE else clip(name, 120)


def clip(text: Any, most: int = LONGEST) -> str:
    """The text, cut where it is too long to be read here."""
    text = str(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def points(fraction: float) -> str:
    """A difference of two accuracies in percentage points, with its sign; a digit more where one would hide it.

    >>> points(0.173), points(-0.0003), points(0.0)
    ('+17.3', '−0.03', '0.0')
    """
    value = 100 * fraction
    text = next((said for said in (f"{value:+.1f}", f"{value:+.2f}") if float(said)), "0.0")
    return text.replace("-", "−")


def percent(fraction: float) -> str:
    """A share as a percentage, or a dash where it is not known."""
    return f"{100 * fraction:.1f}%" if math.isfinite(fraction) else "–"


def typeset(text: str) -> str:
    """A sentence with true minus signs before its numbers.

    >>> typeset("at least -7.1%, windows 3-5")
    'at least −7.1%, windows 3-5'
    """
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def brief(value: float) -> str:
    """A number with a decimal where it matters.

    >>> brief(4.25), brief(48227.9)
    ('4.2', '48,228')
    """
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def several(count: int, word: str, many: str = "") -> str:
    """A number with its noun.

    >>> several(1, "alarm"), several(2, "alarm"), several(0, "trial")
    ('1 alarm', '2 alarms', '0 trials')
    """
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def amount(value: float) -> str:
    """Evidence, of which only the order of magnitude matters once it is large.

    >>> amount(512.3), amount(48213.0), amount(2.5e7), amount(2.5e10)
    ('512', '48,200', '25 million', 'over a billion')
    """
    if value >= 1e9:
        return "over a billion"
    return f"{float(f'{value:.3g}'):,.10g}" if value < 1e6 else f"{value / 1e6:,.0f} million"
