"""How many samples an outlier detector of scikit-learn finds strange that it would not have found so before.

The detector is fitted to half of the source's rows. With scores s, larger for what is less like the source, the other
half (m rows) gives the threshold: its r-th largest score, `r = floor((1 - quantile) (m + 1))`, which a further row of
the source exceeds with chance `r / (m + 1)`. The value is the share of the window's n rows above it, the interval is
Wilson's. If the window comes from the source, all m + n scores are exchangeable, so the number N of rows above has

    P(N >= k) = P(H >= k),    H hypergeometric: k + r - 1 rows drawn of m + n, n of them the window's,

exactly and for every detector; equal scores make the p-value larger, never smaller. There is a finding when
`p <= level` and the share exceeds the expected one by at least `min_effect`.

A detector is named by its path in scikit-learn, `sklearn.<module>.<class>`, from the public names of a public module
and nothing else; a tuple of paths is a pipeline, whose parameters are called `step__name` as scikit-learn calls them.
Its scores are `score_samples`, else `decision_function`, negated: both are larger for what is more like the source.
Densities (`sklearn.neighbors.KernelDensity`, `sklearn.mixture.GaussianMixture`) fit too. `LocalOutlierFactor` needs
`novelty=True`. A detector with a `random_state` takes it from the run's seed. The kit keeps the rows and not the fitted
detector, which is fitted again when a saved kit is first used: no file that may hold code is written or read.

Defaults: the 95 % quantile, 1000 rows and `min_effect = 0.05` are ours. A shift that makes rows more ordinary is not
seen. The interval is about the share above this threshold; that the threshold comes from m rows only is in the p-value
and not in the interval. Detectors see little in raw pixels: the network's features are the default.

>>> import torch
>>> source, target = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0))
>>> reading = OutlierShare(on="x")(None, World(source=source, target=target[:100] * 2))
>>> reading.value > 0.2, reading.finding.detected
(True, True)

References: Liu, Ting and Zhou, Isolation forest, ICDM 2008 (the default detector); Nelson, Tables for a precedence life
test, Technometrics 1963 (the test).
"""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import InputError, NonFiniteError, SpecError, UnknownName, nearest
from homeostat.core.method import Card
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.probe import Outputs, Probe
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Fraction
from homeostat.core.world import World
from homeostat.probe.checks import Source, enough, matrix, same_width
from homeostat.probe.intervals import Level, wilson
from homeostat.probe.reference import reads_for, source_rows

_REFUSED = ("memory",)
"""Parameters that name files which scikit-learn would unpickle."""


@dataclass(frozen=True)
class OutlierShare(Probe):
    """Share of samples that an outlier detector fitted to the source finds stranger than the source's own rows."""

    card: ClassVar[Card] = Card(
        paper="Liu, Ting and Zhou, Isolation forest, ICDM 2008",
        handles=frozenset({"covariate", "novel-class"}),
        prepares=frozenset({"source.x"}),
    )

    detector: str | tuple[str, ...] = "sklearn.ensemble.IsolationForest"
    """Path of the detector in scikit-learn, or of the steps of a pipeline that ends in one."""
    parameters: tuple[tuple[str, Any], ...] = ()
    """Names and values for it; a mapping is taken too."""
    on: Source = "features"
    """What is looked at."""
    quantile: Level = 0.95
    """Share of the source's held-out rows that is to lie below the threshold."""
    reference: Annotated[int, at.Ge(40)] = 1000
    """Source rows kept, half to fit and half for the threshold; fewer where the source has fewer."""
    level: Level = 0.05
    """False alarms per window without shift."""
    min_effect: Fraction = 0.05
    """Smallest excess over the expected share that counts."""

    def __post_init__(self) -> None:
        if isinstance(self.parameters, Mapping):
            object.__setattr__(self, "parameters", tuple(sorted(self.parameters.items())))
        super().__post_init__()
        detector(self.steps(), self.parameters)

    def steps(self) -> tuple[str, ...]:
        """The paths, of one detector too."""
        return (self.detector,) if isinstance(self.detector, str) else self.detector

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return reads_for(self.on)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> FittedDetector:
        rows = source_rows(model, world, self.on, self.reference, run, "OutlierShare", least=40)
        half = len(rows) // 2
        if math.floor((1 - self.quantile) * (len(rows) - half + 1)) < 1:
            needed = 2 * math.ceil(1 / (1 - self.quantile))
            raise InputError(
                f"OutlierShare: the {self.quantile} quantile needs {needed} rows of source.x; got {len(rows)}"
            )
        made = FittedDetector(self.steps(), self.parameters, run.seed_for("OutlierShare") % 2**31)
        made.rows["fit"], made.rows["held"] = rows[:half].contiguous(), rows[half:].contiguous()
        made.fitted()  # what it cannot be fitted to shows here, before deployment
        return made

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        x = matrix(outputs, self.on, "OutlierShare").cpu()
        enough(len(x), 1, "OutlierShare")
        same_width(x.shape[1], kit.rows["fit"].shape[1], "OutlierShare", "columns")
        held, scores = kit.held(), kit.scores(x)
        rank = math.floor((1 - self.quantile) * (len(held) + 1))
        threshold = float(held.sort(descending=True).values[rank - 1])
        above = int((scores > threshold).sum())
        share, expected = above / len(x), rank / (len(held) + 1)
        p_value = precedence_test(above, len(x), rank, len(held))
        effect = share - expected
        detected = p_value <= self.level and effect >= self.min_effect
        text = f"{share:.1%} of {len(x)} samples are stranger than {1 - expected:.0%} of the source's {self.on}"
        finding = Finding("covariate", detected, p_value=p_value, effect=effect, text=text)
        around = wilson(above, len(x))
        arrays = {"scores": scores, "held": held, "threshold": torch.tensor(threshold, dtype=torch.float64)}
        return Reading("outlier_share", share, around, "fraction", "lower", finding, arrays)


def precedence_test(above: int, count: int, rank: int, held: int) -> float:
    """Chance that `above` or more of `count` rows exceed the `rank`-th largest of `held` from the same distribution.

    >>> round(precedence_test(1, 1, 1, 19), 3)
    0.05
    """
    from scipy.stats import hypergeom

    return float(hypergeom.sf(above - 1, held + count, count, above + rank - 1)) if above else 1.0


def detector(steps: tuple[str, ...], parameters: tuple[tuple[str, Any], ...], seed: int | None = None) -> Any:
    """An outlier detector of scikit-learn, not fitted yet.

    Raises:
        UnknownName: a path names no public estimator of scikit-learn. SpecError: it is no detector, or a parameter does
            not fit.
    """
    if not steps:
        raise SpecError("OutlierShare.detector is empty; name one, as in sklearn.ensemble.IsolationForest")
    made: Any = [_estimator(path)() for path in steps]
    if len(made) == 1:
        made = made[0]
    else:
        from sklearn.pipeline import make_pipeline

        made = make_pipeline(*made)
    known = made.get_params()
    for name, value in parameters:
        if name not in known:
            raise SpecError(f"{steps[-1]} has no parameter {name!r}.{nearest(name, known)}").at("parameters")
        if name.rpartition("__")[2] in _REFUSED:
            raise SpecError(f"the parameter {name!r} reads files that may hold code; leave it out").at("parameters")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise SpecError(
                f"the parameter {name!r} is a {type(value).__name__}; a number, a text or a list is wanted"
            ).at("parameters") from None
    given = dict(parameters)
    made.set_params(**given)
    if seed is not None:
        free = [n for n in known if n.rpartition("__")[2] == "random_state" and n not in given]
        made.set_params(**dict.fromkeys(free, seed))
    if not (hasattr(made, "score_samples") or _finds_outliers(made)):
        more = ", or give it novelty=True" if any("LocalOutlierFactor" in step for step in steps) else ""
        raise SpecError(
            f"{steps[-1]} scores no new samples; an outlier detector such as IsolationForest is wanted{more}"
        ).at("detector")
    return made


def _estimator(path: str) -> type:
    import sklearn
    from sklearn.base import BaseEstimator

    parts = path.split(".")
    if len(parts) != 3 or parts[0] != "sklearn" or parts[1] not in sklearn.__all__:
        raise UnknownName(
            f"{path!r} is no path of scikit-learn; one such as sklearn.neighbors.LocalOutlierFactor is wanted"
        )
    module = importlib.import_module(f"sklearn.{parts[1]}")
    names = [
        name for name in getattr(module, "__all__", ()) if _is_estimator(getattr(module, name, None), BaseEstimator)
    ]
    if parts[2] not in names:
        raise UnknownName(f"sklearn.{parts[1]} has no estimator {parts[2]!r}.{nearest(parts[2], names)}")
    return getattr(module, parts[2])


def _is_estimator(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _finds_outliers(made: Any) -> bool:
    from sklearn.base import is_outlier_detector

    return is_outlier_detector(made) and hasattr(made, "decision_function")


class FittedDetector(Part):
    """Rows of the source and the detector that is fitted to them, when it is first asked.

    Args:
        steps, settings: the paths and the parameters of an `OutlierShare`.
        seed: of what is random in it.
    """

    def __init__(self, steps: Any, settings: Any, seed: int):
        super().__init__()
        self.steps, self.seed, self.rows = tuple(steps), seed, Bag()
        self.settings = tuple((name, value) for name, value in settings)
        self._made: Any = None
        self._held: Tensor | None = None

    def fitted(self) -> Any:
        """The detector."""
        if self._made is None:
            made = detector(self.steps, self.settings, self.seed)
            try:
                made.fit(self.rows["fit"].double().cpu().numpy())
            except ValueError as error:
                raise InputError(f"{self.steps[-1]} cannot be fitted to source.x: {_first(error)}") from None
            self._made = made
        return self._made

    def scores(self, x: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
        """Scores, larger for what is less like the source."""
        made, rows = self.fitted(), x.double().cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            said = made.score_samples(rows) if hasattr(made, "score_samples") else made.decision_function(rows)
        scores = -torch.from_numpy(np.array(said, dtype=np.float64).reshape(len(rows)))
        if bool(scores.isnan().any()):
            raise NonFiniteError(
                f"{self.steps[-1]} gives NaN for {int(scores.isnan().sum())} samples; scale the inputs"
            )
        return scores

    def held(self) -> Float[Tensor, " rows"]:
        """Scores of the source's held-out rows."""
        if self._held is None:
            self._held = self.scores(self.rows["held"])
        return self._held


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
