from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

from homeostat.core.check import check_shift, small_network, small_world
from homeostat.core.data import Batch, Tensors
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.fork import versions
from homeostat.core.probe import read
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam
from homeostat.probe import Accuracy
from homeostat.robust import PGD, TRADES, BatchPoisoning, ascend, project
from homeostat.robust.trades import divergence


def linear(weight: list[float]) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weight), 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0] * len(weight), weight]))
    return net


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_on_a_linear_model_the_attack_is_the_closed_form(norm):
    weight = [3.0, -4.0]
    x = torch.full((5, 1, 1, 2), 0.5)
    found = (
        PGD(eps=0.1, norm=norm, steps=20, start=False)(Tensors(x, torch.zeros(5).long()), model=linear(weight)).load().x
    )
    direction = torch.tensor([1.0, -1.0]) if norm == "inf" else torch.tensor([0.6, -0.8])
    assert torch.allclose(found.flatten(1), 0.5 + 0.1 * direction.expand(5, 2), atol=1e-4)


@given(st.lists(st.floats(-2, 3), min_size=6, max_size=6), st.floats(0.01, 1), st.sampled_from(["inf", "2"]))
def test_projection_lands_in_the_ball_and_in_range_and_repeats(values, eps, norm):
    x, center = torch.tensor(values).view(2, 1, 1, 3), torch.full((2, 1, 1, 3), 0.4)
    once = project(x, center, eps, norm)
    size = (once - center).flatten(1)
    length = size.abs().amax(1) if norm == "inf" else size.norm(dim=1)
    assert bool((length <= eps + 1e-5).all()) and bool(((once >= 0) & (once <= 1)).all())
    assert torch.allclose(project(once, center, eps, norm), once, atol=1e-6)


def test_the_attack_raises_the_loss_and_leaves_the_model():
    net, data = small_network(), small_world().source
    before = versions(net)
    attacked = PGD(eps=0.1)(data, model=net)
    clean, worst = (F.cross_entropy(net(d.load().x), d.load().y) for d in (data, attacked))
    assert worst > clean + 0.05 and versions(net) == before
    assert all(p.grad is None for p in net.parameters())


def test_the_attack_on_a_sample_does_not_depend_on_its_batch():
    net, data = small_network(), small_world().source
    whole = PGD(eps=0.05)(data, model=net).load().x
    alone = PGD(eps=0.05, batch=1)(data, model=net).load().x
    assert torch.allclose(whole, alone, atol=1e-5)


def test_pgd_keeps_all_promises_of_a_shift():
    check_shift(PGD(eps=0.05, steps=2), model=small_network())


def test_missing_model_labels_and_wrong_inputs_are_refused():
    data = small_world().source
    with pytest.raises(MissingPart, match="model=net"):
        PGD()(data)
    with pytest.raises(MissingPart, match="labels"):
        PGD()(data.unlabelled(), model=small_network())
    with pytest.raises(InputError, match="floating"):
        PGD()(Tensors(torch.zeros(2, 3).long(), torch.zeros(2).long()), model=linear([1.0] * 3))


def test_trades_equals_the_loss_written_out():
    net, run = small_network().train(), Run(seed=4)
    batch = next(small_world().source.batches(10))
    objective = TRADES(eps=0.05, step=0.02, steps=3, beta=2.0)
    x = batch.x
    net.eval()
    with torch.no_grad():
        center = net(x).softmax(1)
    moved = (x + 0.001 * run.draw(batch.id, "trades").normal(*x.shape[1:])).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    for _ in range(3):
        moved.requires_grad_(True)
        loss = F.kl_div(net(moved).log_softmax(1), center, reduction="sum")
        step = torch.autograd.grad(loss, moved)[0].sign() * 0.02
        moved = (moved.detach() + step).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    net.train()
    fresh = small_network().train()
    clean = fresh(x)
    natural = F.cross_entropy(clean, batch.labels)
    robust = 2.0 * F.kl_div(fresh(moved).log_softmax(1), clean.softmax(1), reduction="batchmean")
    found = objective.losses(small_network().train(), {"source": batch}, Classify(), None, run)
    assert torch.allclose(found["natural"], natural, atol=1e-6) and torch.allclose(found["robust"], robust, atol=1e-5)


def test_trades_leaves_the_training_flags_as_they_were():
    net = small_network().train()
    net[1].eval()
    TRADES(eps=0.01, steps=1).losses(net, {"source": next(small_world().source.batches(4))}, Classify(), None, Run())
    assert net.training and not net[1].training


def test_divergence_is_zero_of_equals_and_positive_otherwise():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(divergence(a, a), torch.zeros(4, dtype=torch.float64)) and bool((divergence(a, b) > 0).all())


def test_trades_trades_clean_loss_for_robust_loss():
    """On overlapping classes a large beta makes the attack cost less and the clean loss higher."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = (
        (0.5 + 0.05 * (2 * y[:, None] - 1) + 0.05 * torch.randn(200, 6, generator=generator))
        .clamp(0, 1)
        .view(200, 1, 2, 3)
    )
    data, rises, clean = Tensors(x, y), [], []
    for beta in (0.0, 20.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        fit = Fit(
            objective=TRADES(beta=beta, eps=0.05, step=0.02, steps=4),
            recipe=Recipe(epochs=15, batch=50, optimizer=Adam(lr=0.01)),
        )
        net = fit(net, World(source=data))
        worst = PGD(eps=0.05)(data, model=net).load().x
        with torch.no_grad():
            clean.append(float(F.cross_entropy(net(x), y)))
            rises.append(float(F.cross_entropy(net(worst), y)) - clean[-1])
    assert rises[1] < 0.5 * rises[0] and clean[1] > clean[0]


def test_ascent_climbs_for_every_sample_by_itself():
    target = Batch(torch.tensor([[0.2], [0.8]]))
    found = ascend(lambda x: -(x - 0.5).square().sum(1), target.x, target.x, 0.1, 0.03, 20, "inf")
    assert torch.allclose(found, torch.tensor([[0.3], [0.7]]), atol=1e-6)


# ------------------------------------------------------------------------------------------------------ poisoning


def striped(count: int) -> Tensors:
    draws = torch.Generator().manual_seed(1)
    y = torch.randint(0, 2, (count,), generator=draws)
    x = 0.5 * torch.rand(count, 1, 4, 4, generator=draws)
    x[:, 0, :, 0] += 0.12 * y[:, None]
    return Tensors(x.clamp(0, 1), y)


def normed(norm: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    recipe = Recipe(epochs=25, batch=40, optimizer=Adam(lr=0.02))
    return Fit(recipe=recipe)(net, World(source=striped(400)), run=Run(seed=1))


def share_right(net: nn.Module, data: Tensors, size: int) -> float:
    seen = read([Accuracy()], net, World(held=data), batch=size)[0]
    return seen.value


def test_poisoned_batches_hurt_the_benign_samples_of_a_network_with_batch_statistics_and_no_other():
    torch.manual_seed(0)
    clean, attack = striped(200), BatchPoisoning(share=0.2, size=50)
    batch_norm = normed(nn.BatchNorm2d(4))
    poisoned = attack(clean, model=batch_norm)
    bad = poisoned.load().labels == -100
    assert bad.view(4, 50).sum(1).tolist() == [10] * 4
    assert torch.equal(poisoned.load().x[~bad], clean.load().x[~bad])
    assert bool((poisoned.load().x[bad] != clean.load().x[bad]).flatten(1).any(1).all())
    judged = Tensors(clean.load().x, torch.where(bad, -100, clean.load().labels))
    adapting = batch_statistics(batch_norm)
    assert share_right(adapting, judged, 50) - share_right(adapting, poisoned, 50) > 0.1
    assert share_right(batch_norm, poisoned, 50) == share_right(batch_norm, judged, 50), "stored statistics"
    untouched = attack(clean, model=normed(nn.GroupNorm(2, 4)))
    assert torch.equal(untouched.load().x, clean.load().x), "no sample touches another: nothing to climb"


@given(eps=st.floats(0, 0.3), share=st.floats(0, 1))
def test_poison_stays_within_its_radius_and_share(eps, share):
    clean, net = striped(21), nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()
    made = BatchPoisoning(share=share, size=8, eps=eps, steps=2)(clean, model=net).load()
    assert float((made.x - clean.load().x).abs().max()) <= eps + 1e-6
    assert float(made.x.min()) >= 0 and float(made.x.max()) <= 1
    assert int((made.labels == -100).sum()) == sum(int(share * n) for n in (8, 8, 5))


def test_poisoning_names_what_is_missing():
    with pytest.raises(MissingPart, match="model=net"):
        BatchPoisoning()(striped(4))
    with pytest.raises(MissingPart, match="have none"):
        BatchPoisoning()(striped(4).unlabelled(), model=nn.Linear(1, 1))
