from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import ViDA, ViDALayer
from homeostat.core.errors import MissingPart, ModelError, NonFiniteError, SpecError
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.fit import Recipe
from homeostat.nn import SmallViT
from homeostat.nn.optimizers import SGD, Adam


class Beside(nn.Module):
    """A layer and two pairs of plain matrices, whose scales are numbers."""

    def __init__(self, layer: nn.Linear, kit: dict[str, Tensor]):
        super().__init__()
        self.layer, self.low, self.high = layer, 1.0, 1.0
        for name, tensor in kit.items():
            setattr(self, name, nn.Parameter(tensor.clone()))

    def forward(self, x: Tensor) -> Tensor:
        narrow = torch.einsum("or,ri,...i->...o", self.vida_low_up, self.vida_low_down, x)
        wide = torch.einsum("or,ri,...i->...o", self.vida_high_up, self.vida_high_down, x)
        return self.layer(x) + self.low * narrow + self.high * wide


class Slow:
    """ViDA with two whole networks; views and masks are handed in."""

    def __init__(self, net: nn.Module, optimizers, remedy: ViDA, kit):
        for path, module in list(net.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, leaf = path.rpartition(".")
                setattr(net.get_submodule(parent), leaf, Beside(module, kit.under(path)))
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        self.student, self.teacher, self.first = net, copy.deepcopy(net), copy.deepcopy(net)
        named = dict(net.named_parameters())
        self.host = optimizers[0]([p for n, p in named.items() if "vida" not in n])
        self.adapters = optimizers[1]([p for n, p in named.items() if "vida" in n])
        self.remedy, self.unsure = remedy, []

    def observe(self, x: Tensor, views: list[Tensor], masks: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            logits = torch.stack([self.teacher(view) for view in views])
            center = logits.mean(0)
            u = 0.1 * float((((logits - center) ** 2).sum(0) / (len(views) - 1)).mean())
            self.unsure.append(u)
            low, high = (1 - u, 1 + u) if u >= self.remedy.threshold else (1 + u, 1 - u)
            for module in (*self.student.modules(), *self.teacher.modules()):
                if isinstance(module, Beside):
                    module.low = low
                    module.high = 1.0 if self.remedy.compat else high
            target = self.teacher(x)
        z = self.student(x)
        loss = F.cross_entropy(z, F.softmax(target, 1))
        if self.remedy.symmetric:
            loss = 0.5 * loss - 0.5 * (F.softmax(z, 1) * F.log_softmax(target, 1)).sum(1).mean()
        self.host.zero_grad()
        self.adapters.zero_grad()
        loss.backward()
        self.host.step()
        self.adapters.step()
        with torch.no_grad():
            triples = zip(*(net.named_parameters() for net in (self.teacher, self.student, self.first)), strict=True)
            for (name, slow), (_, fast), (_, first) in triples:
                keep = self.remedy.adapter_average if "vida" in name else self.remedy.average
                slow.copy_(keep * slow + (1 - keep) * fast)
                fast.copy_(torch.where(masks[name], first, fast))
        return target


def vit(dtype: torch.dtype) -> nn.Module:
    return SmallViT(4, 3, size=8, patch=4, width=8, depth=1, heads=2, seed=3).to(dtype).eval()


RECIPE = Recipe(optimizer=Adam(lr=0.01), epochs=2, batch=10)
ADAM = (Adam(lr=1e-3), Adam(lr=1e-2)), (lambda p: torch.optim.Adam(p, 1e-3), lambda p: torch.optim.Adam(p, 1e-2))
PLAIN = (
    (SGD(lr=0.01, momentum=0.0), SGD(lr=0.03)),
    (lambda p: torch.optim.SGD(p, 0.01), lambda p: torch.optim.SGD(p, 0.03, 0.9)),
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("kind", "pair", "options"),
    [
        ("vit", PLAIN, {"threshold": "median"}),
        ("vit", PLAIN, {"threshold": 0.0, "restore": 0.2}),
        ("vit", PLAIN, {"threshold": 0.0, "compat": True}),
        ("batch", ADAM, {"threshold": 1e9}),
        ("group", ADAM, {"threshold": "median"}),
    ],
)
@pytest.mark.exact("S143")
def test_equals_two_networks_and_plain_matrices(
    network, stream, batch_mode, source, kind, pair, options, dtype, tolerance
):
    net, batches, run = vit(dtype) if kind == "vit" else network(kind, dtype), stream(6, dtype=dtype), Run(3)
    remedy = ViDA(
        2, 5, optimizer=pair[0][0], adapter_optimizer=pair[0][1], average=0.9, adapter_average=0.7, views=3,
        recipe=RECIPE, **options | {"threshold": 0.0 if options["threshold"] == "median" else options["threshold"]},
    )  # fmt: skip
    kit = remedy.kit(net, World(source=source(dtype)), run=run)
    if options["threshold"] == "median":
        made = remedy(net, kit=kit, run=run)
        found = sorted(float(made.uncertainty(x, step)) for step, x in enumerate(batches))
        remedy = remedy.replace(threshold=(found[2] + found[3]) / 2)
    ours = remedy(net, kit=kit, run=run)
    slow = Slow(batch_mode(copy.deepcopy(net)), pair[1], remedy, kit)
    for step, x in enumerate(batches):
        views, masks = list(ours.views_of(x, step)), ours.masks(step)
        assert torch.allclose(ours.observe(x), slow.observe(x, views, masks), rtol=0, atol=tolerance)
        assert float(ours.carry["uncertainty"]) == pytest.approx(slow.unsure[-1], abs=tolerance)
    if options["threshold"] == "median":
        assert 0 < sum(u >= remedy.threshold for u in slow.unsure) < 6
    student, owned = ours.carry.under("student"), ours.owned()
    for copies, expected in ((student, slow.student), (owned, slow.teacher)):
        for name, p in expected.named_parameters():
            assert torch.allclose(copies[name], p, rtol=0, atol=tolerance)
    assert any(float(t.abs().max()) > 0 for name, t in owned.items() if name.endswith("_up"))


@pytest.mark.exact("S143")
def test_scales_by_hand():
    layer = ViDALayer(nn.Linear(2, 1, bias=False), 1, 1).double()
    with torch.no_grad():
        layer.layer.weight.copy_(torch.tensor([[1.0, 1.0]]))
        layer.vida_low_down.copy_(torch.tensor([[1.0, 0.0]]))
        layer.vida_high_down.copy_(torch.tensor([[0.0, 1.0]]))
        layer.vida_low_up.fill_(2.0)
        layer.vida_high_up.fill_(3.0)
        world = World(source=(torch.rand(9, 2, dtype=torch.float64), torch.tensor([0, 1, 2] * 3)))
        vida = ViDA(threshold=0.2, recipe=RECIPE)(nn.Linear(2, 3).double(), world)
        x = torch.tensor([[10.0, 100.0]], dtype=torch.float64)
        layer.low_scale.fill_(0.7)
        layer.high_scale.fill_(1.3)
    assert float(layer(x).detach()) == pytest.approx(110 + 0.7 * 20 + 1.3 * 300)
    for u, scales in ((0.3, (0.7, 1.3)), (0.2, (0.8, 1.2)), (0.1, (1.1, 0.9))):
        vida._weigh(torch.tensor(u, dtype=torch.float64))
        made = vida.model
        assert (float(made.low_scale), float(made.high_scale)) == pytest.approx(scales)


def test_new_adapters_change_nothing_and_have_the_deviation_of_their_rank(network, stream):
    net, x = network("layer"), stream(1)[0]
    made = ViDA(rank_low=2, rank_high=16, convolutions=True).inject(net, Run(seed=1))
    assert torch.equal(made(x), net(x))
    wide = torch.cat([m.vida_high_down.detach().flatten() for m in made.modules() if isinstance(m, ViDALayer)])
    assert float(wide.std() * 256) == pytest.approx(1.0, abs=0.1)
    assert isinstance(made[0], ViDALayer) and made[0].vida_high_down.shape == (16, 3, 3, 3)


def test_preparing_trains_the_adapters_alone_and_lowers_the_source_loss(trained, shades):
    data = shades(192, seed=5)
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    remedy = ViDA(rank_high=8, recipe=Recipe(optimizer=Adam(lr=0.02), epochs=10, batch=32))
    kit: Any = remedy.kit(trained, World(source=data))
    assert set(kit) == {f"5.vida_{rank}_{way}" for rank in ("low", "high") for way in ("down", "up")}
    adapted = remedy.inject(trained)
    adapted.load_state_dict(dict(adapted.state_dict()) | {name: kit[name] for name in kit})
    batch = data.load()
    losses = [float(F.cross_entropy(net(batch.x), batch.labels).detach()) for net in (trained, adapted)]
    assert losses[1] < losses[0]
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())


def test_scales_last_until_the_next_batch_and_are_saved_and_reset(network, stream, source, tmp_path):
    vida = ViDA(2, 4, views=3, threshold=0.0, recipe=RECIPE)(network("group"), World(source=source()))
    x = stream(1)[0]
    vida.observe(x)
    scale = float(vida.model[8].high_scale)
    assert scale > 1 and float(vida.model[8].low_scale) == pytest.approx(2 - scale)
    save(vida, tmp_path / "a")
    back = load(tmp_path / "a", base=network("group"))
    assert float(back.model[8].high_scale) == scale and torch.equal(back(x), vida(x))
    vida.reset()
    assert float(vida.model[8].high_scale) == 1.0


def test_logits_that_are_too_large_turn_the_adapters_round(network, stream, source):
    """As the docstring says: uncertainty grows with the square of the logits."""
    made = []
    for factor in (1.0, 100.0):
        net = network("group")
        with torch.no_grad():
            net[8].weight.mul_(factor)
            net[8].bias.mul_(factor)
        vida = ViDA(2, 4, views=4, threshold=0.0, recipe=Recipe(optimizer=SGD(lr=1e-9), batch=10))(
            net, World(source=source())
        )
        vida.observe(stream(1)[0])
        made.append(vida)
    assert float(made[1].carry["uncertainty"]) == pytest.approx(1e4 * float(made[0].carry["uncertainty"]), rel=1e-3)
    assert float(made[1].model[8].low_scale) < 0 < float(made[0].model[8].low_scale)


def test_logits_that_overflow_are_an_error_and_do_not_become_scales(network, stream, source):
    vida = ViDA(2, 4, views=2, recipe=RECIPE)(network("group", torch.float32), World(source=source(torch.float32)))
    x = stream(1, dtype=torch.float32)[0]
    vida.observe(x)
    with torch.no_grad():
        vida.model[8].layer.weight.fill_(1e38)
    before = {name: t.clone() for name, t in vida.state_dict().items()}
    with pytest.raises(NonFiniteError, match="logits vary"):
        vida.observe(x)
    assert all(torch.equal(t, before[name]) for name, t in vida.state_dict().items())


def test_without_the_symmetric_loss_nothing_is_learnt(network, stream, source):
    """As the docstring says: student and teacher start equal, and no view tells them apart."""
    for symmetric in (True, False):
        vida = ViDA(
            2, 4, optimizer=SGD(lr=0.1), adapter_optimizer=SGD(lr=0.1), views=2, symmetric=symmetric, recipe=RECIPE
        )
        online = vida(network("group"), World(source=source()))
        for x in stream(3):
            online.observe(x)
        start = online.anchor()
        moved = max(float((t - start[n]).abs().max()) for n, t in online.owned().items() if n not in online.moving)
        assert (moved > 1e-6) == symmetric and (symmetric or moved < 1e-12)


def test_a_vit_gets_adapters_where_they_are_asked_for():
    made = ViDA(layers=("*attention*",)).inject(vit(torch.float32))
    names = {name for name, m in made.named_modules() if isinstance(m, ViDALayer)}
    assert names == {f"blocks.0.attention.{leaf}" for leaf in ("query", "key", "value", "out")}


def test_what_is_missing_or_does_not_fit_is_refused(network):
    with pytest.raises(MissingPart):
        ViDA()(network())
    with pytest.raises(ModelError, match="no Linear layer matches"):
        ViDA(layers=("decoder.*",)).inject(network())
    with pytest.raises(SpecError):
        ViDA(views=1)
