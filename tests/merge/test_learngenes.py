from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn

from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.data import Tensors
from homeostat.core.errors import CheckpointError, InputError, MissingPart, ModelError, SpecError
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.merge import SWS, SharedBlock, expand, learngene, share_stages, stage_map
from homeostat.nn import MLP, SGD, Adam, CausalTransformer, SmallViT, resized

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def vit(depth: int, seed: int = 0, width: int = 8) -> SmallViT:
    return SmallViT(3, 1, 8, 4, width, depth, 2, seed).double()


def with_teacher() -> World:
    return small_world().replace(models={"teacher": small_network()})


def quick(**changes: object) -> SWS:
    recipe = Recipe(optimizer=Adam(lr=1e-3), batch=16)
    return SWS(**{"stages": (2, 1), "recipe": recipe, **changes})  # type: ignore[arg-type]


@pytest.mark.exact("S167")
def test_a_shared_block_equals_the_same_block_written_out():
    net = vit(2)
    auxiliary = share_stages(net, (3, 2))

    def written_out(x: Tensor) -> Tensor:
        tokens = net.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([net.token.expand(len(x), -1, -1), tokens], 1) + net.position
        a, b = net.blocks
        return net.linear(net.norm(b(b(a(a(a(h))))))[:, 0])

    assert torch.allclose(auxiliary(X), written_out(X), atol=1e-14)
    # One parameter with the sum of the gradients of its uses, seen by the optimiser once.
    for f in (auxiliary, written_out):
        f(X).square().sum().backward()
    gradients = [p.grad for p in auxiliary.parameters()]
    assert len(gradients) == len(list(net.parameters()))
    assert all(torch.allclose(g, p.grad) for g, p in zip(gradients, net.parameters(), strict=True))


@pytest.mark.exact("S167")
def test_expansion_takes_each_block_from_its_stage_and_the_rest_as_it_is():
    auxiliary, target = share_stages(vit(3, seed=1), (1, 2, 1)), vit(5, seed=2)
    made = expand(auxiliary, target, (0, 0, 1, 2, 2))
    genes = learngene(auxiliary)
    assert set(genes) == set(vit(3).state_dict())
    for block, stage in enumerate((0, 0, 1, 2, 2)):
        for name, tensor in made.blocks[block].state_dict().items():
            assert torch.equal(tensor, genes[f"blocks.{stage}.{name}"])
    for name in ("token", "position", "patches.weight", "norm.bias", "linear.weight"):
        assert torch.equal(made.state_dict()[name], genes[name])
    assert torch.equal(target.linear.weight, vit(5, seed=2).linear.weight)


@pytest.mark.exact("S167")
def test_the_network_of_the_auxiliary_ones_own_depth_computes_the_same_and_its_blocks_are_untied():
    auxiliary = share_stages(vit(2), (2, 3))
    made = expand(auxiliary, vit(5))
    assert stage_map(5, 2) == (0, 0, 0, 1, 1)
    same = expand(auxiliary, vit(5), (0, 0, 1, 1, 1))
    assert torch.allclose(same(X), auxiliary(X), atol=1e-14) and not torch.allclose(made(X), auxiliary(X))
    with torch.no_grad():
        same.blocks[0].up.weight.zero_()
    assert same.blocks[1].up.weight.abs().sum() > 0 and auxiliary.blocks[0].block.up.weight.abs().sum() > 0


@pytest.mark.exact("S167")
def test_the_default_map_is_the_authors_for_twelve_blocks_of_five_stages():
    assert stage_map(12, 5) == (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4)
    assert [stage_map(depth, 4) for depth in (1, 2, 4, 6)] == [(2,), (1, 3), (0, 1, 2, 3), (0, 0, 1, 1, 2, 3)]


@given(st.integers(1, 30), st.integers(1, 12))
def test_maps_keep_the_order_and_spread_evenly(depth, stages):
    made = stage_map(depth, stages)
    assert len(made) == depth and list(made) == sorted(made) and set(made) <= set(range(stages))
    counts = [made.count(stage) for stage in range(stages)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.exact("S167")
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (0.7, 2.0)])
def test_a_step_of_training_is_down_the_gradient_of_the_stated_loss(alpha, temperature):
    world, net = with_teacher(), vit(4).float()
    recipe = Recipe(optimizer=SGD(lr=0.1, momentum=0.0), batch=48)
    run = Run(seed=3)
    kit = quick(alpha=alpha, temperature=temperature, recipe=recipe).kit(net, world, run=run)
    auxiliary = share_stages(resized(net, depth=2, seed=run.seed_for("learngene")), (2, 1))
    batch = world.source.load()
    with torch.no_grad():
        soft = (small_network()(batch.x) / temperature).softmax(1)
    out = auxiliary(batch.x)
    divergence = -(soft * F.log_softmax(out / temperature, 1)).sum(1).mean()
    loss = alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(out, batch.y)
    loss.backward()
    for (name, found), parameter in zip(kit.named_parameters(), auxiliary.parameters(), strict=True):
        assert torch.allclose(found, parameter - 0.1 * parameter.grad, atol=1e-6), name


def test_batches_without_a_known_label_are_learnt_from_the_teacher_alone():
    world, net = with_teacher(), vit(4).float()
    batch = world.source.load()
    y = torch.full_like(batch.labels, -100)
    method = quick(alpha=0.5, recipe=Recipe(optimizer=SGD(lr=0.1, momentum=0.0), batch=8))
    for known in (0, 3):
        y[:known] = batch.labels[:known]
        kit = method.kit(net, world.replace(source=Tensors(batch.x, y)), run=Run(seed=3))
        assert all(bool(torch.isfinite(p).all()) for p in kit.parameters())


def test_the_remedy_keeps_all_promises_and_one_kit_serves_all_depths():
    world, net = with_teacher(), vit(3).float()
    check_remedy(quick(), net, world)
    check_remedy(quick(alpha=0.5, expansion=(0, 0, 1)), net, world)
    kit = quick().kit(net, world)
    made = [quick()(vit(depth, seed=depth).float(), World(), kit=kit) for depth in (1, 2, 6)]
    assert [len(m.blocks) for m in made] == [1, 2, 6]
    assert torch.equal(made[1].linear.weight, made[2].linear.weight)


def test_an_auxiliary_network_survives_save_and_load(tmp_path):
    auxiliary = share_stages(CausalTransformer(5, 6, 8, 2, 2), (3, 1)).eval()
    save(auxiliary, tmp_path / "a")
    back = load(tmp_path / "a")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(back(tokens), auxiliary(tokens)) and isinstance(back.blocks[0], SharedBlock)
    assert len(expand(back, CausalTransformer(5, 6, 8, 4, 2)).blocks) == 4


def test_far_from_its_own_depth_a_descendant_starts_worse():
    """The documented weakness: distance of outputs from the auxiliary network's grows with the distance in depth."""
    auxiliary = share_stages(vit(2), (2, 2))
    apart = [float((expand(auxiliary, vit(depth))(X) - auxiliary(X)).detach().norm()) for depth in (4, 6, 12)]
    assert apart[0] < 1e-12 < 0.05 < apart[1] < apart[2]


def test_misfits_are_refused():
    auxiliary = share_stages(vit(2), (1, 1))
    with pytest.raises(InputError, match="3 stages for a network of 2"):
        share_stages(vit(2), (1, 1, 1))
    with pytest.raises(SpecError, match="at least once"):
        share_stages(vit(2), (1, 0))
    for wrong in ((1, 0, 0), (0, 1), (0, 1, 2)):
        with pytest.raises(InputError, match="does not fit 3 blocks and 2 stages"):
            expand(auxiliary, vit(3), wrong)
    with pytest.raises(CheckpointError, match=r"token is \(1, 1, 16\), the learngene's token is \(1, 1, 8\)"):
        expand(auxiliary, vit(3, width=16))
    with pytest.raises(ModelError, match="no shared blocks"):
        expand(vit(2), vit(3))
    with pytest.raises(ModelError, match="give such a transformer"):
        share_stages(MLP(4), (1,))
    with pytest.raises(ModelError, match="blocks give a tensor"):
        SharedBlock(nn.LSTM(2, 2))(torch.zeros(1, 1, 2))
    with pytest.raises(SpecError, match="empty"):
        SWS(stages=())
    with pytest.raises(MissingPart, match=r"models\.teacher"):
        quick()(vit(2).float(), small_world())
    with pytest.raises(ModelError, match="the teacher gives"):
        teacher = MLP(64, 4, (), seed=1)
        quick()(vit(2).float(), small_world().replace(models={"teacher": teacher}))
    assert math.isclose(SWS().recipe.optimizer.lr, 5e-4)
