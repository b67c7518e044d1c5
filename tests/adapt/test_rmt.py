from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import RMT, RMTOnline
from homeostat.adapt.rmt import nearest_prototypes
from homeostat.core.data import UNKNOWN, Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.run import Run
from homeostat.core.weights import weights
from homeostat.core.world import World
from homeostat.nn import SmallViT
from homeostat.nn.optimizers import SGD, Adam


def sce(z: Tensor, t: Tensor, alpha: float) -> Tensor:
    p, q = F.softmax(z, 1), F.softmax(t, 1)
    return ((alpha - 1) * q * torch.log(p) - alpha * p * torch.log(q)).sum(1)


class Slow:
    """RMT with two whole networks, a projector of layers, and loops; views and source batches are handed in."""

    def __init__(self, net: nn.Module, optimizer, remedy: RMT, projector: dict[str, Tensor]):
        self.remedy = remedy
        self.student, self.teacher = net, copy.deepcopy(net)
        width = net[-1].in_features
        self.projector = nn.Sequential(
            nn.Linear(width, remedy.projection), nn.ReLU(), nn.Linear(remedy.projection, remedy.projection)
        ).to(net[-1].weight.dtype)
        if projector:
            pairs = zip(
                self.projector.parameters(), ("first.weight", "first.bias", "second.weight", "second.bias"), strict=True
            )
            for parameter, name in pairs:
                nn.init.zeros_(parameter).data.add_(projector[name])
        self.optimizer = optimizer([*self.student.parameters()])
        self.optimizer.add_param_group({"params": self.projector.parameters()})
        self.means: list[Tensor] = []

    def prototypes(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        with torch.no_grad():
            h = torch.cat([self.student[:-1](x) for x, _ in batches])
        y = torch.cat([y for _, y in batches])
        self.means = [h[y == k].mean(0) for k in range(self.student[-1].out_features)]

    def ema(self) -> None:
        keep = self.remedy.average
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.copy_(keep * slow + (1 - keep) * fast)

    def warm(self, batches: list[Tensor]) -> None:
        base = [group["lr"] for group in self.optimizer.param_groups]
        for i, x in enumerate(batches):
            for group, lr in zip(self.optimizer.param_groups, base, strict=True):
                group["lr"] = lr * (i + 1) / len(batches)
            self.step(sce(self.student(x), self.teacher(x).detach(), self.remedy.alpha).mean())
        assert not batches or self.optimizer.param_groups[0]["lr"] == base[0]

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema()

    def contrast(self, triples: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        rows = [(n, F.normalize(self.projector(v), dim=0)) for n, views in enumerate(triples) for v in views]
        total = torch.zeros((), dtype=rows[0][1].dtype)
        for i, (sample, a) in enumerate(rows):
            scores = {j: a @ b / self.remedy.temperature for j, (_, b) in enumerate(rows) if j != i}
            bottom = torch.logsumexp(torch.stack(list(scores.values())), 0)
            friends = [j for j in scores if rows[j][0] == sample]
            total = total - sum(scores[j] - bottom for j in friends) / len(friends)
        return total / len(rows)

    def observe(self, x: Tensor, view: Tensor, replay: tuple[Tensor, Tensor] | None) -> Tensor:
        h, seen = self.student[:-1](x), self.student[:-1](view)
        z, z_view = self.student[-1](h), self.student[-1](seen)
        with torch.no_grad():
            taught = self.teacher(x)
        gaps = [sce(logits, taught, self.remedy.alpha) for logits in (z, z_view)]
        loss = self.remedy.w_trg * 0.5 * torch.cat(gaps).sum() / len(x)
        if self.remedy.w_con:
            triples = []
            for n in range(len(x)):
                near = [float(F.cosine_similarity(c, h[n].detach(), dim=0)) for c in self.means]
                triples.append((self.means[near.index(max(near))], h[n], seen[n]))
            loss = loss + self.remedy.w_con * self.contrast(triples)
        if replay is not None:
            loss = loss + self.remedy.w_src * F.cross_entropy(self.student(replay[0]), replay[1])
        self.step(loss)
        return z.detach() + taught


ADAM = (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3))
MOMENTUM = (SGD(lr=0.01), lambda p: torch.optim.SGD(p, 0.01, 0.9))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("kind", "pair", "options"),
    [
        ("batch", ADAM, {}),
        ("batch", MOMENTUM, {"w_src": 0.0, "w_con": 0.5, "w_trg": 2.0}),
        ("batch", ADAM, {"warmup": 0, "w_con": 0.0}),
        ("group", ADAM, {}),
        ("layer", MOMENTUM, {"w_src": 0.3, "alpha": 0.2}),
    ],
)
@pytest.mark.exact("S057")
def test_equals_whole_networks_and_loops(network, stream, batch_mode, source, kind, pair, options, dtype, tolerance):
    net, data = network(kind, dtype), source(dtype)
    remedy = RMT(pair[0], average=0.9, projection=5, batch=10, replay=17, **{"warmup": 40} | options)
    run, world = Run(seed=5), World(source=data)
    kit = remedy.kit(net, world, run=run)
    ours = remedy(net, kit=kit, run=run)
    asked = data.batches_asked()
    slow = Slow(batch_mode(copy.deepcopy(net)), pair[1], remedy, kit.under("projector"))
    if remedy.w_con:
        slow.prototypes([(b.x, b.labels) for b in asked[:3]])
    slow.warm([b.x for b in asked[-remedy.warmup // remedy.batch :]] if remedy.warmup else [])
    for step, x in enumerate(stream(6, 12, dtype)):
        replay = ours.replayed(step) if remedy.w_src else None
        view = ours.view_of(x, step)
        assert torch.allclose(ours.observe(x), slow.observe(x, view, replay), rtol=0, atol=tolerance)
    for copies, expected in ((ours.carry.under("student"), slow.student), (ours.owned(), slow.teacher)):
        for name, p in expected.named_parameters():
            assert torch.allclose(copies[name], p, rtol=0, atol=tolerance)


def test_the_contrastive_pull_uses_the_nearest_prototype_by_angle():
    prototypes = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[0.1, 0.2], [3.0, 2.0], [-1.0, 0.5]])
    assert torch.equal(nearest_prototypes(features, prototypes), prototypes[torch.tensor([1, 0, 1])])


def test_what_is_served_is_student_plus_teacher_and_forward_is_pure(network, stream, source):
    rmt = RMT(Adam(lr=0.01), average=0.5, warmup=20, batch=10)(network(), World(source=source()))
    for x in stream(3):
        before = {name: t.clone() for name, t in rmt.state_dict().items()}
        served = rmt(x)
        assert all(torch.equal(t, before[name]) for name, t in rmt.state_dict().items())
        student = copy.deepcopy(rmt.model)
        student.load_state_dict(rmt.carry.under("student"), strict=False)
        assert torch.allclose(served, student(x) + rmt.model(x), atol=1e-12)
        assert not torch.allclose(student(x), rmt.model(x), atol=1e-6)
        assert torch.allclose(rmt.observe(x), served, atol=1e-12)


def test_without_prototypes_replay_and_warm_up_no_world_is_needed(network, stream, batch_mode):
    remedy = RMT(w_src=0.0, w_con=0.0, warmup=0)
    assert remedy.prepares() == frozenset()
    rmt, x = remedy(network()), stream(1)[0]
    assert torch.allclose(rmt.observe(x), 2 * batch_mode(network())(x), atol=1e-12)  # two equal networks at first
    assert not any("fixed" in name for name in rmt.state_dict())


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, {"source.x", "source.y"}),
        ({"w_src": 0.0}, {"source.x", "source.y"}),
        ({"w_src": 0.0, "w_con": 0.0}, {"source.x"}),
    ],
)
def test_what_must_be_there_follows_from_the_weights(network, source, options, needs):
    remedy = RMT(warmup=10, batch=10, **options)
    assert remedy.prepares() == needs and remedy.needs() == {"model.parameters"}
    with pytest.raises(MissingPart):
        remedy(network(), World())
    kit = remedy.kit(network(), World(source=source()))
    assert bool(kit.under("fixed.replay")) == (remedy.w_src > 0)
    remedy(network(), World(), kit=kit)  # the kit is all that serving needs


def test_memory_of_the_source_is_bounded_and_snapshots_are_without_it(network, source):
    rmt = RMT(warmup=0, batch=10, replay=7)(network(), World(source=source()))
    assert rmt.carry["fixed.replay.x"].shape == (7, 3, 8, 8)
    kept = [name for name in rmt.snapshot() if "replay" in name or "prototypes" in name]
    assert kept == [] and "start/fixed/replay/x" not in rmt.carry.state_dict()


def test_labels_that_are_not_known_are_neither_replayed_nor_prototypes(network, source):
    data = source()
    y = data.load().labels.clone()
    y[::2] = UNKNOWN
    x = data.load().x
    with pytest.raises(InputError, match="no sample of class"):
        RMT(warmup=0)(network(), World(source=Tensors(x, y)))  # classes 0 and 2 have none
    y = torch.where(torch.arange(30) < 16, torch.arange(30) % 4, torch.tensor(UNKNOWN))
    rmt = RMT(warmup=0, batch=50)(network(), World(source=Tensors(x, y)))
    assert len(rmt.carry["fixed.replay.y"]) == 16
    assert torch.isfinite(rmt.observe(x)).all()


def test_without_one_known_label_there_is_nothing_to_replay(network, source):
    data = Tensors(source().load().x, torch.full((30,), UNKNOWN))
    with pytest.raises(MissingPart, match="w_src=0"):
        RMT(warmup=0, w_con=0.0)(network(), World(source=data))


def test_class_tokens_and_position_embeddings_stay_as_in_the_authors_code(source):
    net = SmallViT(4, 3, size=8, patch=4, width=8, depth=1, heads=2).double().eval()
    rmt = RMT(Adam(lr=0.1), average=0.5, warmup=20, batch=10)(net, World(source=source()))
    rmt.observe(source().load().x)
    moved = {name for name, p in net.named_parameters() if not torch.equal(rmt.model.get_parameter(name), p)}
    rest = {name for name, _ in net.named_parameters()} - moved
    assert rest == {"token", "position"} and not rest & set(rmt.carry.under("student"))


def test_only_the_contrastive_loss_needs_a_layer_of_features(source):
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).double().eval()
    with pytest.raises(ModelError, match="name the layer"):
        RMT(warmup=0)(net, World(source=source()))
    rmt = RMT(warmup=0, w_con=0.0)(net, World(source=source()))
    assert rmt.observe(source().load().x).shape == (30, 4)


def test_reset_goes_back_to_the_warmed_up_pair(network, stream, source):
    net = network()
    rmt = RMT(Adam(lr=0.01), average=0.9, warmup=40, batch=10)(net, World(source=source()))
    warmed = {name: t.clone() for name, t in rmt.state_dict().items()}
    assert not torch.allclose(weights(rmt)["model.0.weight"], net[0].weight)
    for x in stream(2):
        rmt.observe(x)
    rmt.reset()
    assert all(torch.equal(t, warmed[name]) for name, t in rmt.state_dict().items())


def test_pixels_that_are_not_in_0_to_1_are_refused_with_the_source_and_in_the_stream(network, stream, source):
    data = source()
    with pytest.raises(InputError, match=r"0\.\.1; these span"):
        RMT(warmup=0)(network(), World(source=Tensors(data.load().x * 255, data.load().labels)))
    rmt = RMT(warmup=0)(network(), World(source=data))
    with pytest.raises(InputError, match=r"0\.\.1; these span"):
        rmt.observe(stream(1)[0] * 255)
    assert rmt.step == 0


def test_a_model_that_cannot_learn_is_refused():
    with pytest.raises(ModelError):
        RMT(w_src=0.0, w_con=0.0, warmup=0)(nn.Flatten())


class Counting(RMTOnline, register=False):
    views = 0

    def view_of(self, x, step):
        self.views += 1
        return super().view_of(x, step)


def test_one_view_a_batch_is_made(network, stream):
    rmt = Counting(network(), w_src=0.0)
    for x in stream(3):
        rmt.observe(x)
    assert rmt.views == 3


def test_a_stream_sorted_by_class_makes_it_worse_than_the_frozen_network(trained, shades, right):
    """As the docstring says; the same images in mixed order are no worse than before."""
    world, found = World(source=shades(192, seed=1)), {}
    for order in ("mixed", "sorted"):
        test = shades(240, seed=2, sort=order == "sorted")
        rmt = RMT(warmup=200, batch=40)(trained, world)
        found[order] = right(rmt, test, 40) - right(trained, test, 40)
    assert found["mixed"] > -0.05 and found["sorted"] < -0.3
