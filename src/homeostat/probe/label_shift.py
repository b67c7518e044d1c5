"""Whether the class balance moved: the test and the reading shared by the probes that estimate it.

>>> import torch
>>> histogram_test(torch.tensor([50, 50]), torch.tensor([500, 500]))
1.0
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from homeostat.core.errors import InputError
from homeostat.core.reading import Finding, Reading
from homeostat.probe.checks import enough

_EXPECTED = 5.0  # Cochran's rule for the chi-square approximation
_NAMED = 5


def known_balance(y: Tensor, classes: int, who: str, split: str) -> Tensor:
    """Share of each class among labels, float64; a class without any label is refused."""
    counts = torch.bincount(y.cpu(), minlength=classes)
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if absent:
        raise InputError(
            f"{who} needs every class among the labels of the {split}; classes {absent[:8]} have no sample"
        )
    return counts.double() / len(y)


def histogram_test(window: Int[Tensor, " classes"], source: Int[Tensor, " classes"]) -> float:
    """p-value of the chi-square test that two histograms have one distribution.

    Classes with fewer than 5 expected samples in the window are pooled.
    """
    from scipy.stats import chi2

    if int(((window + source) > 0).sum()) < 2:
        return 1.0
    expected = (window + source).double() * window.sum() / (window.sum() + source.sum())
    rare = expected < _EXPECTED
    table = torch.stack([window, source]).double()
    cells = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
    cells = cells[:, cells.sum(0) > 0]
    enough(cells.shape[1], 2, "the test of predicted classes", "classes with 5 expected predictions in the window")
    wanted = cells.sum(1, keepdim=True) * cells.sum(0, keepdim=True) / cells.sum()
    return float(chi2.sf(float(((cells - wanted) ** 2 / wanted).sum()), cells.shape[1] - 1))


def label_reading(name: str, old: Tensor, prior: Tensor, p_value: float, level: float, min_effect: float) -> Reading:
    """The reading of a class-balance estimate: total variation, the new prior, and the classes that changed most."""
    change = (prior - old).abs()
    effect = float(change.sum()) / 2
    detected = p_value <= level and effect >= min_effect
    subjects = tuple(change.argsort(descending=True, stable=True)[:_NAMED].tolist()) if detected else ()
    text = f"the class balance {'moved' if detected else 'did not move notably'} (total variation {effect:.3f})"
    finding = Finding("label", detected, subjects, None, p_value, effect, text)
    arrays = {"prior": prior, "source": old, "weights": prior / old}
    return Reading(name, effect, unit="total variation", finding=finding, arrays=arrays)
