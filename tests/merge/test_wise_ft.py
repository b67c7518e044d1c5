from __future__ import annotations

import pytest
import torch

from homeostat.adapt import Tent
from homeostat.core.check import small_network, small_world
from homeostat.core.errors import ModelError
from homeostat.fit import Fit, Recipe
from homeostat.merge import DARE, TIES, TaskArithmetic, WiSEFT


def test_it_is_the_point_on_the_line_that_was_asked_for_and_statistics_follow():
    net, world, tune = small_network(), small_world(), Fit(recipe=Recipe(epochs=1))
    tuned = tune(net, world)
    third = WiSEFT(tune, TaskArithmetic(scale=1 / 3))(net, world)
    for name, before in net.state_dict().items():
        if before.is_floating_point():
            wanted = before + (tuned.state_dict()[name] - before) / 3
            assert torch.allclose(third.state_dict()[name], wanted, atol=1e-6), name
    assert not torch.equal(third[1].running_mean, net[1].running_mean)
    whole = WiSEFT(tune, TaskArithmetic(scale=1.0))(net, world)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), tuned.parameters(), strict=True))


def test_another_rule_may_take_the_place_of_the_line():
    net, world, tune = small_network(), small_world(), Fit(recipe=Recipe(epochs=1))
    sparse = WiSEFT(tune, TIES(density=0.1))(net, world)
    changed = sum(int((a != b).sum()) for a, b in zip(net.parameters(), sparse.parameters(), strict=True))
    assert 0 < changed <= 0.1 * sum(p.numel() for p in net.parameters())


def test_what_has_no_weights_to_merge_is_refused():
    with pytest.raises(ModelError, match=r"Tent gives a .*cannot be merged"):
        WiSEFT(Tent())(small_network(), small_world())


@pytest.mark.parametrize("method", [TaskArithmetic(scale=20.0), DARE(density=0.5)])
def test_statistics_go_no_further_than_to_the_other_end(method):
    net, world, tune = small_network(), small_world(), Fit(recipe=Recipe(epochs=1))
    far, tuned = WiSEFT(tune, method)(net, world), tune(net, world)
    for name, before in net.named_buffers():
        after, found = tuned.get_buffer(name), far.get_buffer(name)
        if before.is_floating_point():
            assert bool(((found >= torch.minimum(before, after)) & (found <= torch.maximum(before, after))).all()), name
