"""A store in which something happened, made by a real loop over a classifier of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from homeostat.adapt import PriorCorrection
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.loop import Loop, Monitor, Plan
from homeostat.loop.judged import Judged
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


def stream(before: int = 250, after: int = 750) -> tuple[np.ndarray, np.ndarray]:
    """Classes as often as before, then class 1 rarely."""
    x, y = (np.concatenate(p) for p in zip(samples(before, 2), samples(after, 3, rare=0.02), strict=True))
    return x, y


def opened(folder: Path, net: Estimator | None = None, run: Run = Run()) -> Loop:
    net = Estimator(LogisticRegression().fit(*samples(900, 0))) if net is None else net
    return Loop(net, World(source=samples(800, 1)), [PriorCorrection(rule="add")], folder, plan=PLAN, run=run)


@pytest.fixture(scope="session")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twenty windows, in which a correction was committed."""
    folder = tmp_path_factory.mktemp("corrected") / "store"
    with opened(folder) as loop:
        trace = loop.run(stream(), labels=50)
        assert loop.progress.served == "PriorCorrection"
    Judged(folder).add(trace)
    return folder


@pytest.fixture(scope="session")
def loops():
    """The functions above, for tests that open loops of their own."""
    from types import SimpleNamespace

    return SimpleNamespace(samples=samples, stream=stream, opened=opened)
