"""A fitted scikit-learn classifier as a homeostat network.

For inputs `x [batch, ...]`, flattened to `[batch, columns]`, with `p = predict_proba(x)` over K classes,

    f(x) = log((1 - K floor) p + floor),        [batch, K]

which are log-probabilities that add up to 1. `floor` keeps them finite: a forest or nearest neighbours give classes a
probability of exactly 0. `1e-6` is ours; it takes part in every likelihood of a class that was ruled out.

Probes, label-shift corrections that add to logits and the loop serve such a network as any other. It has no weights and
no gradients, so methods that train or take features out of a last layer refuse it. The estimator is copied when it is
wrapped: one that is fitted again afterwards has to be wrapped again.

An estimator cannot be written to disk safely, as its usual form is code to be run. A checkpoint of this network holds a
hash of the estimator's content alone, and is loaded over the same estimator, `load(path, base=net)`; another one is
refused. Anything with `predict_proba` and `classes_` fits, pipelines and other libraries' classifiers among them.

>>> from sklearn.linear_model import LogisticRegression
>>> x, y = [[0.0], [1.0], [2.0], [3.0]], ["no", "no", "yes", "yes"]
>>> net = Estimator(LogisticRegression().fit(x, y))
>>> net(torch.tensor([[0.0], [3.0]])).argmax(1), net.classes, net.labels(["yes", "no"])
(tensor([0, 1]), ('no', 'yes'), tensor([1, 0]))
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN
from homeostat.core.errors import CheckpointError, DtypeError, InputError, ModelError
from homeostat.nn.identity import content_of


class Estimator(nn.Module):
    """A network that asks a fitted classifier; see the module's docstring.

    Args:
        estimator: fitted, with `predict_proba` and `classes_`; it is copied.
        floor: the smallest probability that a class is given.
        rows: makes of inputs what the estimator takes, such as `table.encoding.frame` of `homeostat.data.frame` for a
            pipeline that reads strings; default, an array, or a frame where the estimator was fitted to one.

    Attributes:
        classes: what the estimator calls its classes, in the order of the outputs.

    Raises:
        DtypeError: it is no estimator. ModelError: it is not fitted, gives no probabilities, gives several answers, or
            holds what has no content to be known by.
        InputError: `floor` is out of range.
    """

    identity: Tensor

    def __init__(self, estimator: Any, floor: float = 1e-6, rows: Callable[[Tensor], Any] | None = None):
        super().__init__()
        kind = type(estimator).__name__
        if isinstance(estimator, type):
            raise DtypeError(f"{estimator.__name__} is a class; give a fitted object of it")
        if not hasattr(estimator, "fit"):
            raise DtypeError(f"a {kind} is no scikit-learn estimator; give a fitted classifier")
        classes = getattr(estimator, "classes_", None)
        if classes is None:
            _check_fitted(estimator, kind)
            raise ModelError(f"{kind} has no classes_; a classifier is wanted")
        if isinstance(classes, list):
            raise ModelError(f"{kind} gives {len(classes)} answers a sample; fit one classifier an answer")
        if not hasattr(estimator, "predict_proba"):
            raise ModelError(
                f"{kind} has no predict_proba; fit sklearn.calibration.CalibratedClassifierCV over it, or set its "
                "probability=True where it has that"
            )
        if not 0 < floor * len(classes) < 1:
            raise InputError(f"floor is above 0 and below 1 / {len(classes)} classes; got {floor}")
        self.floor, self.rows = float(floor), rows
        self.classes = tuple(np.asarray(classes).tolist())
        self.estimator = copy.deepcopy(estimator)
        self._content = content_of((self.estimator, self.floor, rows))
        self.register_buffer("identity", torch.tensor(list(self._content), dtype=torch.uint8))

    def forward(self, x: Any) -> Tensor:
        """Log-probabilities `[batch, classes]` of inputs `[batch, ...]`, on their device and of their floating type."""
        if not isinstance(x, Tensor):
            raise DtypeError(f"an estimator takes one tensor of inputs; got a {type(x).__name__}")
        if x.ndim < 2 or x.is_complex():
            raise InputError(f"an estimator takes real inputs [batch, columns]; got {x.dtype} {tuple(x.shape)}")
        dtype = x.dtype if x.is_floating_point() else torch.float32
        if len(x) == 0:
            return torch.zeros(0, len(self.classes), dtype=dtype, device=x.device)
        p = np.asarray(self.estimator.predict_proba(self._rows(x.detach().flatten(1).cpu())), dtype=np.float64)
        p = (1 - self.floor * p.shape[1]) * p + self.floor
        return torch.from_numpy(np.log(p)).to(x.device, dtype)

    def _rows(self, x: Tensor) -> Any:
        if self.rows is not None:
            return self.rows(x)
        array = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
        wanted = getattr(self.estimator, "n_features_in_", array.shape[1])
        if array.shape[1] != wanted:
            raise InputError(f"{type(self.estimator).__name__} was fitted to {wanted} columns; got {array.shape[1]}")
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is None:
            return array
        try:
            import pandas
        except ImportError:  # it was fitted where there were frames; here the order of columns has to do
            return array
        return pandas.DataFrame(array, columns=names)

    def labels(self, y: Any) -> Tensor:
        """The user's labels as positions among `classes`; None and NaN become `UNKNOWN`.

        Raises:
            InputError: a label is none of the classes.
        """
        place = {name: number for number, name in enumerate(self.classes)}
        given = y.tolist() if hasattr(y, "tolist") else list(y)
        strange = sorted({str(name) for name in given if not _absent(name) and name not in place})
        if strange:
            raise InputError(f"labels {', '.join(strange[:5])} are none of the classes {self.classes[:10]}")
        return torch.tensor([UNKNOWN if _absent(name) else place[name] for name in given], dtype=torch.int64)

    def train(self, mode: bool = True) -> Estimator:
        """Stays in evaluation mode. Refuses a checkpoint of another estimator, which `load` has just put in here."""
        if self.identity.device.type != "meta" and bytes(self.identity.tolist()) != self._content:
            raise CheckpointError(
                f"the checkpoint was made over another estimator than this {type(self.estimator).__name__}, or one "
                "that was fitted otherwise; give that one: load(path, base=Estimator(...))"
            )
        return super().train(False)

    def extra_repr(self) -> str:
        """What is asked."""
        return f"{self.estimator!r}, {len(self.classes)} classes"


def _absent(name: Any) -> bool:
    return name is None or name != name


def _check_fitted(estimator: Any, kind: str) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise ModelError(f"{kind} is not fitted; call its fit(x, y) first") from None
    except TypeError:
        return
