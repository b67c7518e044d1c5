"""A fitted scikit-learn classifier kept by the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from homeostat.adapt import PriorCorrection
from homeostat.core.errors import StoreError
from homeostat.core.world import World
from homeostat.loop import Loop, Monitor, Plan, status
from homeostat.nn import Estimator
from homeostat.probe import ShiftKind

PLAN = Plan(
    window=50, trial=2, verify=2, patience=8, retry=4, monitor=Monitor(run_length=100, block=1),
    diagnose=ShiftKind(simulations=24, reference=100),
)  # fmt: skip


def samples(count: int, seed: int, rare: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that overlap; class 1 has the share `rare`."""
    draws = np.random.default_rng(seed)
    y = (draws.random(count) < rare).astype(np.int64)
    return draws.normal(size=(count, 3)) + 0.7 * y[:, None], y


def stream() -> tuple[np.ndarray, np.ndarray]:
    parts = [samples(300, 2), samples(1200, 3, rare=0.02)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x, y


def opened(folder, net) -> Loop:
    return Loop(net, World(source=samples(800, 1)), [PriorCorrection(rule="add")], folder, plan=PLAN)


def test_the_loop_corrects_the_prior_of_an_estimator_and_resumes_over_it(tmp_path):
    fitted = RandomForestClassifier(30, min_samples_leaf=10, random_state=0).fit(*samples(900, 0))
    x, y = stream()
    with opened(tmp_path / "store", Estimator(fitted)) as loop:
        trace = loop.run((x[:1000], y[:1000]), labels=50)
        served, at = loop.progress.served, loop.progress.at
    assert served == "PriorCorrection" and at == 20
    late = [entry for entry in trace if entry.subject == served]
    assert sum(e["accuracy"].value - e["frozen"].value for e in late) > 0
    again = RandomForestClassifier(30, min_samples_leaf=10, random_state=0).fit(*samples(900, 0))
    with opened(tmp_path / "store", Estimator(again)) as loop:
        assert (loop.progress.served, loop.progress.at) == (served, at)
        rest = loop.run((x, y), labels=50)
    assert len(rest) == 10 and status(tmp_path / "store").windows == 30


def test_a_store_is_not_resumed_over_an_estimator_that_was_fitted_otherwise(tmp_path):
    x, y = samples(300, 0)
    with opened(tmp_path / "store", Estimator(LogisticRegression().fit(x, y))) as loop:
        loop.step(torch.from_numpy(samples(50, 4)[0]))
    with pytest.raises(StoreError, match="begun with another network"):
        opened(tmp_path / "store", Estimator(LogisticRegression(C=0.1).fit(x, y)))
