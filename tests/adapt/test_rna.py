from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import RNA, RNAController, RNAOnline, error_signal
from homeostat.adapt.rna import _hidden, _skewed
from homeostat.core.data import Batch
from homeostat.core.errors import InputError, MissingPart, ModelError, SpecError
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.task import Classify, MultiLabel, Regress, Segment
from homeostat.core.weights import weights
from homeostat.core.world import World
from homeostat.fit import Fit, Recipe
from homeostat.nn.blocks import start
from homeostat.nn.optimizers import Adam

NAN = float("nan")
QUICK = Recipe(optimizer=Adam(lr=2e-3, amsgrad=True), epochs=1, batch=16)


def dense_network(channels: int = 1, out: int = 1) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, out, 1),
    )  # fmt: skip
    start(net, 0)
    return net.eval()


def dimmed(count: int, low: float, high: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Smooth images, and the same under a light of unknown strength: what the input alone cannot tell."""
    y = F.interpolate(torch.rand(count, 1, 3, 3, generator=draws), size=(8, 8), mode="bilinear")
    return y / (low + (high - low) * torch.rand(count, 1, 1, 1, generator=draws)), y


def randomised(controller: RNAController) -> RNAController:
    """With convolutions that are not 0."""
    for layer in (*controller.shifts, *controller.scales):
        nn.init.normal_(layer.weight, std=0.3)  # type: ignore[arg-type]
    return controller


def test_sparse_pixels_lower_the_error_elsewhere_also_under_unseen_light():
    draws = torch.Generator().manual_seed(0)
    world = World(source=dimmed(160, 0.5, 1.5, draws), task=Regress())
    net = Fit(recipe=Recipe(optimizer=Adam(lr=1e-2), epochs=6, batch=32))(dense_network(), world)
    recipe = Recipe(optimizer=Adam(lr=2e-3, amsgrad=True), epochs=8, batch=32)
    rna = RNA(recipe=recipe, width=4, density=0.2)(net, world)
    for low, high in ((0.5, 1.5), (1.5, 2.0)):
        x, y = dimmed(200, low, high, draws)
        given = torch.rand(y.shape, generator=draws) < 0.1
        before = (net(x).detach() - y).abs()[~given]
        after = (rna.observe(Batch(x, torch.where(given, y, NAN))) - y).abs()[~given]
        assert float(after.mean()) < 0.95 * float(before.mean())


def test_a_few_labels_tell_which_classes_are_common():
    draws = torch.Generator().manual_seed(0)

    def batch(count: int, prior: list[float]) -> tuple[Tensor, Tensor]:
        y = torch.multinomial(torch.tensor(prior), count, replacement=True, generator=draws)
        return torch.eye(4)[y] + 0.8 * torch.randn(count, 4, generator=draws), y

    world = World(source=batch(384, [0.25] * 4))
    net = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    start(net, 1)
    net = Fit(recipe=Recipe(optimizer=Adam(lr=1e-2), epochs=8, batch=64))(net, world)
    rna = RNA(recipe=Recipe(optimizer=Adam(lr=3e-3), epochs=30, batch=64), width=4)(net, world)
    given = torch.arange(64) < 16
    right = torch.zeros(2)
    for _ in range(12):
        x, y = batch(64, [0.7, 0.1, 0.1, 0.1])
        corrected = rna.observe(Batch(x, torch.where(given, y, -100)))
        right += torch.stack([(out.argmax(1) == y)[~given].float().mean() for out in (net(x), corrected)]) / 12
    assert float(right[1]) > float(right[0]) + 0.04


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.exact("S249")
def test_equals_the_two_passes_written_out(scale):
    net = dense_network()
    controller = randomised(RNAController(2, ("1", "4"), (8, 8), True, 4, scale, seed=3))
    rna = RNAOnline(net, controller, Regress())
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(3, 1, 8, 8, generator=draws), torch.rand(3, 1, 8, 8, generator=draws)
    known = torch.rand(y.shape, generator=draws) < 0.2
    first = net(x)
    embedding = controller.encoder(torch.cat([torch.where(known, y, 0.0), torch.where(known, first, 0.0)], 1))
    h = x
    for index, layer in enumerate(net):
        h = layer(h)
        if index in (1, 4):
            number = (1, 4).index(index)
            small = F.interpolate(embedding, size=h.shape[2:], mode="bilinear", align_corners=False)
            if scale:
                h = h * (1 + controller.scales[number](small))
            h = h + controller.shifts[number](small)
    corrected = rna.observe(Batch(x, torch.where(known, y, NAN)))
    assert torch.allclose(corrected, h, atol=1e-6) and not torch.allclose(corrected, first, atol=1e-2)


def test_the_encoder_has_the_published_shape():
    """Four stages of 16 to 128 channels and a last one, three convolutions each, an eighth of the size."""
    controller = RNAController(2, ("1",), (8,))
    widths = [m.out_channels for m in controller.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16] * 3 + [32] * 3 + [64] * 3 + [128] * 6
    assert all(m.num_groups == 8 for m in controller.encoder.modules() if isinstance(m, nn.GroupNorm))
    assert controller(torch.zeros(1, 2, 64, 64)).shape == (1, 128, 8, 8)


def test_rounds_feed_the_corrected_prediction_back():
    net = dense_network()
    controller = randomised(RNAController(2, ("1",), (8,), True, 4, seed=3))
    x, y = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    once, twice = (RNAOnline(net, controller, Regress(), rounds=n).observe(Batch(x, y)) for n in (1, 2))
    with controller.steering(net, controller(torch.cat([y, once], 1)), torch.tensor([True, True])):
        expected = net(x)
    assert torch.allclose(twice, expected, atol=1e-6) and not torch.allclose(once, twice, atol=1e-3)


def test_without_feedback_it_is_the_frozen_network_sample_by_sample():
    net = dense_network()
    controller = randomised(RNAController(2, ("1", "4"), (8, 8), True, 4, True, seed=3))
    rna, x = RNAOnline(net, controller, Regress()), torch.rand(4, 1, 8, 8)
    y = torch.full_like(x, NAN)
    for nothing in (Batch(x), Batch(x, y)):
        assert torch.equal(rna.observe(nothing), net(x))
    assert torch.equal(rna(x), net(x))
    y[2, 0, 4, 4] = 1.0
    some = rna.observe(Batch(x, y))
    assert [bool(torch.equal(a, b)) for a, b in zip(some, net(x), strict=True)] == [True, True, False, True]


def test_it_starts_equal_to_the_frozen_network():
    net, x = dense_network(), torch.rand(4, 1, 8, 8)
    fresh = RNAController(2, ("1", "4"), (8, 8), True, 4, True)
    assert torch.equal(RNAOnline(net, fresh, Regress()).observe(Batch(x, 1 - x)), net(x))


def test_training_leaves_the_main_network_and_the_hooks_alone():
    net, x = dense_network(), torch.rand(16, 1, 8, 8)
    before = {name: t.clone() for name, t in weights(net).items()}
    kit = RNA(recipe=QUICK, width=4, density=1.0).kit(net, World(source=(x, 1 - x), task=Regress()))
    assert isinstance(kit, RNAController)
    assert any(float(layer.weight.detach().abs().sum()) > 0 for layer in kit.shifts)  # type: ignore[operator]
    assert all(torch.equal(before[n], t) for n, t in weights(net).items())
    assert not any(m._forward_hooks for m in net.modules())


def test_labels_of_others_speak_for_the_batch_and_not_for_their_own():
    out = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    signal, present = error_signal(Classify(), out, torch.tensor([1, -100, 0]))
    p = out.softmax(1)
    error = ((torch.tensor([0.0, 1.0]) - p[0]) + (torch.tensor([1.0, 0.0]) - p[2])) / 2
    assert present.tolist() == [True] * 3 and signal.shape == (3, 7)
    assert torch.allclose(signal[:, :2], p)
    assert torch.allclose(signal[:, 3:5], error.expand(3, 2)) and torch.allclose(signal[0, 5:], (p[0] + p[2]) / 2)
    silent, nobody = error_signal(Classify(), out, torch.tensor([-100] * 3))
    assert not bool(nobody.any()) and float(silent[:, 3:].abs().sum()) == 0


def test_entropy_is_a_signal_without_labels(network, stream):
    draws = torch.Generator().manual_seed(0)
    world = World(source=(stream(1, 32, torch.float32)[0], torch.randint(4, (32,), generator=draws)))
    net, x = network(dtype=torch.float32), stream(1, dtype=torch.float32, seed=5)[0]
    rna = RNA(signal="entropy", recipe=QUICK, width=2)(net, world)
    assert not torch.equal(rna(x), net(x)) and torch.equal(rna(x), rna.observe(x))


def test_segmentation_takes_labels_of_single_pixels():
    net, draws = dense_network(out=3), torch.Generator().manual_seed(0)
    x, y = torch.rand(8, 1, 8, 8, generator=draws), torch.randint(3, (8, 8, 8), generator=draws)
    rna = RNA(recipe=QUICK, width=2, density=0.5)(net, World(source=(x, y), task=Segment()))
    sparse = torch.full_like(y, -100)
    assert torch.equal(rna.observe(Batch(x, sparse)), net(x))
    sparse[0, 1, 1] = 2
    out = rna.observe(Batch(x, sparse))
    assert not torch.equal(out[0], net(x)[0]) and torch.equal(out[1:], net(x)[1:])


def test_a_saved_controller_corrects_the_same_way(tmp_path):
    net, draws = dense_network(), torch.Generator().manual_seed(0)
    x = torch.rand(16, 1, 8, 8, generator=draws)
    world, remedy = World(source=(x, 1 - x), task=Regress()), RNA(recipe=QUICK, width=4, density=0.5)
    kit = remedy.kit(net, world)
    assert kit is not None
    save(kit, tmp_path / "kit")
    save(remedy(net, world, kit=kit), tmp_path / "rna")
    batch = Batch(x, torch.where(x > 0.9, 1 - x, NAN))
    expected = remedy(net, world, kit=kit).observe(batch)
    assert torch.equal(remedy(net, world, kit=load(tmp_path / "kit")).observe(batch), expected)
    again = load(tmp_path / "rna")
    assert isinstance(again, RNAOnline) and torch.equal(again.observe(batch), expected)
    assert not torch.equal(expected, net(x))


def test_the_known_share_is_random_up_to_the_density():
    y = torch.rand(64, 1, 16, 16)
    shares = [float((~_hidden(y, True, 0.4, Run(seed=s)).isnan()).float().mean()) for s in range(60)]
    assert max(shares) < 0.41 and min(shares) < 0.05 and max(shares) > 0.35
    labels = torch.zeros(1000, dtype=torch.long)
    assert 0 < int((_hidden(labels, False, 1.0, Run()) == -100).sum()) < 1000


def test_channels_of_a_pixel_are_known_together():
    known = ~_hidden(torch.rand(4, 3, 8, 8), True, 1.0, Run()).isnan()
    assert bool((known == known[:, :1]).all()) and bool(known.any()) and not bool(known.all())


def test_training_batches_have_skewed_classes():
    y = torch.arange(400) % 4
    counts = [_skewed(Batch(torch.zeros(400, 1), y), Run(seed=s)).y.bincount(minlength=4) for s in range(30)]  # type: ignore[union-attr]
    shares = torch.stack(counts) / 400
    assert float(shares.max()) > 0.7 and torch.allclose(shares.mean(0), torch.full((4,), 0.25), atol=0.12)


def test_what_it_cannot_do_is_said(network):
    images, y = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    with pytest.raises(ModelError, match="MultiLabel"):
        RNA()(network(dtype=torch.float32), World(source=(images, y), task=MultiLabel()))
    with pytest.raises(SpecError, match="classifiers"):
        RNA(signal="entropy")(dense_network(), World(source=(images, y), task=Regress()))
    with pytest.raises(MissingPart, match=r"source\.y"):
        RNA()(dense_network(), World(source=images, task=Regress()))
    rna = RNAOnline(dense_network(), RNAController(2, ("1",), (8,), width=2), Regress())
    with pytest.raises(InputError, match="shape"):
        rna.observe(Batch(images, y[:, :, :4]))
