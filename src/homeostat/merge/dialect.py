"""Names and settings of mergekit's merging methods, and the methods here that do the same.

The arithmetic is the same where both define it: thresholds by tensor, shares rounded down, even votes to the positive
side, weights normalised where mergekit does so unasked. It is done in float32 whatever `dtype` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from homeostat.core.errors import InputError
from homeostat.merge.arithmetic import Average, TaskArithmetic
from homeostat.merge.merging import Block, Copy, Merge
from homeostat.merge.sparse import DARE, DELLA, Breadcrumbs
from homeostat.merge.spherical import SLERP
from homeostat.merge.stock import ModelStock
from homeostat.merge.ties import TIES

Values = Mapping[str, Any]
Each = Sequence[Values]
NEEDED = object()
"""Stands for a setting that must be given."""

TRUTHS = frozenset({"normalize", "rescale", "int8_mask", "filter_wise", "nuslerp_row_wise", "nuslerp_flatten"})
"""Settings that are true or false; all others are numbers."""


@dataclass(frozen=True)
class Scaled(Merge, register=False):
    """The base's tensor times a number."""

    scale: float = 1.0
    skip: tuple[str, ...] = ()

    def combine(self, block: Block, constants: Any) -> Any:
        return block.base * self.scale


@dataclass(frozen=True)
class Known:
    """A merging method of the dialect.

    Attributes:
        make: our method, and which models (by place) are its donors, for the settings of a tensor: those of all, those
            of each model, and the tensor's elements.
        shared: settings of all, with what they are unless given.
        each: settings of each model.
        base: whether there must be a base model, may be, or is one of the models.
        least, most: models, without the base unless it is one of them.
    """

    make: Callable[[Values, Each, int], tuple[Merge, list[int]]]
    shared: Values = field(default_factory=dict)
    each: Values = field(default_factory=dict)
    base: Literal["needed", "possible", "model"] = "needed"
    least: int = 1
    most: int = 1_000_000


def _linear(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    return Average(weights=_all("weight", each), normalize=shared["normalize"]), list(range(len(each)))


def _task_arithmetic(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    made = TaskArithmetic(weights=_all("weight", each), scale=shared["lambda"], normalize=shared["normalize"])
    return made, list(range(len(each)))


def _ties(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    _without(shared, "rescale")
    kept = [i for i, one in enumerate(each) if one["density"] > 0]
    # Shares are rounded down there, and to the nearest here.
    shares = [1.0 if each[i]["density"] >= 1 else max(1, int(each[i]["density"] * count)) / count for i in kept]
    made = TIES(
        density=_one_or_each(shares), weights=_all("weight", [each[i] for i in kept]), scale=shared["lambda"],
        scope="tensor", even="positive", mean=shared["normalize"],
    )  # fmt: skip
    return made, kept


def _sparse(kind: Any, elect: bool, own: str = "", ours: str = "") -> Callable[..., tuple[Merge, list[int]]]:
    def make(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
        more, scale, weights = dict[str, Any](), shared["lambda"], _all("weight", each)
        if kind is Breadcrumbs:
            _without(shared, "rescale")
            more["axis"] = "tensor"
        else:
            more["rescale"] = shared["rescale"]
        if not elect and shared["normalize"] and abs(sum(weights)) >= 1e-8:
            scale /= sum(weights)
        kept = [i for i, one in enumerate(each) if one["density"] > 0]
        if own:
            more[ours] = _one_or_each([each[i][own] for i in kept])
        shares = [min(1.0, each[i]["density"]) for i in kept]
        made = kind(
            density=_one_or_each(shares), weights=tuple(weights[i] for i in kept), scale=scale, elect=elect,
            mean=shared["normalize"], **more,
        )  # fmt: skip
        return made, kept

    return make


def _slerp(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    return SLERP(t=shared["t"]), [0]


def _nuslerp(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    _without(shared, "nuslerp_row_wise")
    if not shared["nuslerp_flatten"]:
        raise InputError("nuslerp_flatten: false is not supported; angles are those of whole tensors")
    first, second = _all("weight", each)
    return SLERP(t=second / (first + second) if abs(first + second) >= 1e-6 else 0.5), [0, 1]


def _stock(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    _without(shared, "filter_wise")
    return ModelStock(), list(range(len(each)))


def _passthrough(shared: Values, each: Each, count: int) -> tuple[Merge, list[int]]:
    scale = each[0]["scale"]
    return (Copy() if scale is None or scale == 1 else Scaled(scale)), []


def _without(shared: Values, name: str) -> None:
    if shared[name]:
        raise InputError(f"{name}: true is not supported with this method; leave it out")


def _all(name: str, each: Each) -> tuple[float, ...]:
    return tuple(float(one[name]) for one in each)


def _one_or_each(values: Sequence[float]) -> float | tuple[float, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _sparse_settings(normalize: bool, rescale: bool, **more: float) -> dict[str, Any]:
    return {
        "shared": {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False},
        "each": {"weight": NEEDED, "density": 1.0, **more},
    }


KNOWN: dict[str, Known] = {
    "linear": Known(_linear, {"normalize": True}, {"weight": NEEDED}, base="model"),
    "task_arithmetic": Known(_task_arithmetic, **_sparse_settings(False, False)),
    "ties": Known(_ties, **_sparse_settings(True, False)),
    "dare_linear": Known(_sparse(DARE, False), **_sparse_settings(False, True)),
    "dare_ties": Known(_sparse(DARE, True), **_sparse_settings(False, True)),
    "breadcrumbs": Known(
        _sparse(Breadcrumbs, False, "gamma", "outliers"), **_sparse_settings(False, False, gamma=0.01)
    ),
    "breadcrumbs_ties": Known(
        _sparse(Breadcrumbs, True, "gamma", "outliers"), **_sparse_settings(False, False, gamma=0.01)
    ),
    "della": Known(_sparse(DELLA, True, "epsilon", "spread"), **_sparse_settings(True, True, epsilon=0.15)),
    "della_linear": Known(_sparse(DELLA, False, "epsilon", "spread"), **_sparse_settings(False, True, epsilon=0.15)),
    "slerp": Known(_slerp, {"t": NEEDED}, most=1),
    "nuslerp": Known(
        _nuslerp, {"nuslerp_row_wise": False, "nuslerp_flatten": True}, {"weight": NEEDED}, "possible", 2, 2
    ),
    "model_stock": Known(_stock, {"filter_wise": False}, least=2),
    "passthrough": Known(_passthrough, {}, {"scale": None}, base="model", most=1),
}  # fmt: skip
"""What is read."""

FOREIGN = (
    "multislerp", "karcher", "nearswap", "sce", "ram", "ramplus_tl", "arcee_fusion", "moe", "consensus_ta",
    "consensus_ties",
)  # fmt: skip
"""What mergekit has and this has not."""

SETTINGS = {name for known in KNOWN.values() for name in (*known.shared, *known.each)}
"""All settings of all methods."""
