"""Merging as a candidate of the loop, chosen by the same verification as any other."""

from __future__ import annotations

import torch

from homeostat.core.fork import fork
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe, Supervised
from homeostat.merge import Average, TaskArithmetic, WiSEFT
from homeostat.nn.optimizers import Adam


def test_a_donor_from_the_world_is_a_candidate_of_the_loop_like_any_other(problem, tmp_path):
    """Somebody has a network for the dark; the loop is given it, and finds out itself whether to merge it in.

    It does where what is lost in the light does not count, and not where it does, nor a network that is worth nothing.
    """
    net = problem.net
    tuned = Fit(recipe=Recipe(epochs=6))(net, World(source=problem.DARK(problem.images(600, 1))))
    wild = fork(net, own="*")
    with torch.no_grad():
        for p in wild.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14)])

    def served(called: str, donor: torch.nn.Module, anchor: float) -> tuple[list[str], list[str], float]:
        world = World(source=problem.images(200, 2), models={"donor": donor})
        plan = problem.PLAN.replace(anchor=anchor)
        with problem.loop(tmp_path / called, net, (Average(),), world=world, plan=plan) as loop:
            last = list(loop.run(stream, labels=problem.WINDOW))[-1]
            commits = [row.content["to"] for row in problem.rows(loop, "commit")]
            kept = [row.content["why"] for row in problem.rows(loop, "keep")]
        return commits, kept, last["accuracy"].value - last["frozen"].value

    commits, _, gain = served("good", tuned, 1.0)
    assert commits == ["Average"] and gain > 0.1
    commits, kept, gain = served("careful", tuned, 0.05)
    assert not commits and gain == 0 and "on data from before" in kept[0]
    commits, _, gain = served("wild", wild, 1.0)
    assert not commits and gain == 0


def test_the_last_good_network_merged_with_the_refitted_one_is_a_candidate_too(problem, tmp_path):
    """Refitted on the labels of the loop's own windows, and a fifth of the way back."""
    stream = problem.stream([(problem.CLEAN, 6), (problem.DARK, 14)])
    tune = Fit(objective=Supervised(on="target"), recipe=Recipe(epochs=30, optimizer=Adam(lr=0.02)))
    with problem.loop(tmp_path, problem.net, (WiSEFT(tune, TaskArithmetic(scale=0.8)),)) as loop:
        trace = list(loop.run(stream, labels=problem.WINDOW))
        (commit,) = problem.rows(loop, "commit")
    assert commit.content["to"].startswith("WiSEFT")
    assert trace[-1]["accuracy"].value > trace[-1]["frozen"].value + 0.1
