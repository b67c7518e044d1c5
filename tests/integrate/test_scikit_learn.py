"""A fitted scikit-learn classifier kept by the loop."""

from __future__ import annotations

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from homeostat.core.errors import StoreError
from homeostat.loop import status
from homeostat.nn import Estimator


def forest(loops) -> Estimator:
    return Estimator(RandomForestClassifier(30, min_samples_leaf=10, random_state=0).fit(*loops.samples(900, 0)))


def test_the_loop_corrects_the_prior_of_an_estimator_and_resumes_over_it(tmp_path, loops):
    x, y = loops.stream(300, 1200)
    with loops.opened(tmp_path / "store", forest(loops)) as loop:
        trace = loop.run((x[:1000], y[:1000]), labels=50)
        served, at = loop.progress.served, loop.progress.at
    assert served == "PriorCorrection" and at == 20
    late = [entry for entry in trace if entry.subject == served]
    assert sum(e["accuracy"].value - e["frozen"].value for e in late) > 0
    with loops.opened(tmp_path / "store", forest(loops)) as loop:
        assert (loop.progress.served, loop.progress.at) == (served, at)
        rest = loop.run((x, y), labels=50)
    assert len(rest) == 10 and status(tmp_path / "store").windows == 30


def test_a_store_is_not_resumed_over_an_estimator_that_was_fitted_otherwise(tmp_path, loops):
    x, y = loops.samples(300, 0)
    with loops.opened(tmp_path / "store", Estimator(LogisticRegression().fit(x, y))) as loop:
        loop.step(torch.from_numpy(loops.samples(50, 4)[0]))
    with pytest.raises(StoreError, match="begun with another network"):
        loops.opened(tmp_path / "store", Estimator(LogisticRegression(C=0.1).fit(x, y)))
