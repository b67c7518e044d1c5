"""What is served is watched in every window: also during a trial, and with whatever labels came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.adapt import BatchNormBlend
from homeostat.loop.estimate import Estimate, Signs
from homeostat.loop.trial import Trial


class Against(Estimate):
    """Says that the candidate harms, which is wrong here."""

    def __init__(self) -> None:
        self.known = True

    def gain(self, signs: Signs) -> float:
        return -1.0


def committed(problem, folder):
    """A loop that has committed a remedy on dark images."""
    made = problem.loop(folder, problem.net, [BatchNormBlend(blend=0.0)])
    made.run(problem.stream([(problem.DARK, 25)]), labels=problem.WINDOW)
    assert made.progress.served == "BatchNormBlend"
    return made


def test_a_breach_during_a_trial_ends_the_trial_and_rolls_back(problem, tmp_path):
    made = committed(problem, tmp_path)
    made.progress.phase, made.progress.since = "trial", made.progress.at
    made.progress.trials = [Trial("source")]
    made.state.shadows = nn.Sequential(made.frozen)
    batch = problem.stream([(problem.CLEAN, 1)], seed=9).load()
    collapsed = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        collapsed[1].weight.zero_()
    made.state.served = collapsed
    made.step(batch)
    assert made.progress.served == "source" and made.progress.phase == "watch"
    last = made.store.last("rollback")
    assert last is not None and "predicts only" in last.content["why"]


@pytest.mark.parametrize(("share", "rolls_back"), [(0, True), (1, False)])
def test_labels_outweigh_an_estimate_against_what_is_served(problem, tmp_path, share, rolls_back):
    made = committed(problem, tmp_path)
    made.repertoire.estimate = lambda name, kinds, served=False: Against()
    start = made.progress.at
    data = problem.stream([(problem.DARK, start + 6)])
    made.run(data, labels=share * problem.WINDOW)
    switched = [row for row in made.store.rows("rollback") if row.step >= start]
    assert bool(switched) == rolls_back
