"""DCC: its loss by hand and by loops, its gradient by differences, its effect on digits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor, nn

from homeostat.core.check import check_shift
from homeostat.core.data import Tensors
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.curate import DCC, DSA, class_mean_loss, gradient_distance, matching
from homeostat.data import digits
from homeostat.fit import Fit, Recipe
from homeostat.nn import SGD, SmallCNN

SMALL = DCC(outer=2, warm_outer=1, steps=2, epochs=1, width=4, depth=2, batch=8)


def images(count: int, side: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(classes: int = 3, side: int = 4) -> nn.Module:
    return SmallCNN(classes, 1, side, width=3, depth=1, seed=2).double()


class Linear(nn.Module):
    """A linear classifier whose weights are zero, so that every class has probability 1 / classes."""

    def __init__(self, classes: int, inputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, inputs, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.exact("S174")
def test_the_distance_of_two_hand_worked_matrices():
    real = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 5.0], [0.0, 3.0], [-2.0, -2.0]], dtype=torch.float64)
    assert float(gradient_distance([real, real[0]], [other, -real[0]])) == pytest.approx(1 + 0 + 2, abs=1e-6)
    assert float(gradient_distance([real], [0 * real])) == 3


@pytest.mark.exact("S174")
def test_the_distance_equals_loops_over_layers_and_rows():
    draw = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (5, 7), (2, 3, 4)]
    one, two = ([torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes] for _ in range(2))
    wanted = 0.0
    for a, b in zip(one, two, strict=True):
        for row in range(len(a) if a.ndim > 1 else 0):
            p, q = a[row].flatten().tolist(), b[row].flatten().tolist()
            dot = sum(x * y for x, y in zip(p, q, strict=True))
            wanted += 1 - dot / (math.hypot(*p) * math.hypot(*q) + 1e-6)
    assert float(gradient_distance(one, two)) == pytest.approx(wanted, abs=1e-12)


def test_one_backward_pass_gives_the_mean_of_the_classes_gradients():
    net = network()
    groups = [images(5, seed=1), images(2, seed=2), images(9, seed=3)]
    found = torch.autograd.grad(class_mean_loss(net, groups), list(net.parameters()))
    each = [
        torch.autograd.grad(F.cross_entropy(net(x), torch.full((len(x),), k)), list(net.parameters()))
        for k, x in enumerate(groups)
    ]
    for number, gradient in enumerate(found):
        wanted = sum(g[number] for g in each) / 3
        assert float((gradient - wanted).abs().max()) < 1e-10


def test_dc_compares_images_and_dcc_compares_their_difference():
    # With zero weights the gradient of row k for an image a of class c is (1/2 - [k = c]) a.
    a, b, c, d = (images(1, seed=s) for s in range(4))
    net, real = Linear(2, 16), [a, b]

    def loss(shared: float, contrast: bool) -> float:
        return float(matching(net, real, [c + shared, d + shared], contrast).detach())

    assert loss(0, False) == pytest.approx(2 * (1 - cosine(a, c)) + 2 * (1 - cosine(b, d)), abs=1e-5)
    assert loss(0, True) == pytest.approx(2 * (1 - cosine(a - b, c - d)), abs=1e-5)
    # What both classes share is invisible to DCC.
    assert loss(7, True) == pytest.approx(loss(0, True), abs=1e-9)
    assert abs(loss(7, False) - loss(0, False)) > 0.01


@pytest.mark.parametrize("contrast", [True, False])
def test_the_gradient_in_the_pixels_is_that_of_finite_differences(contrast):
    net, real = network(2), [images(3, seed=1), images(4, seed=2)]
    synthetic = images(2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: matching(net, real, list(s.split(1)), contrast), (synthetic,))


@pytest.mark.parametrize("contrast", [True, False])
def test_the_loss_is_zero_and_flat_where_synthetic_images_are_the_real_ones(contrast):
    net, real = network(2), [images(3, seed=1), images(3, seed=2)]
    copy = torch.cat(real).requires_grad_()
    loss = matching(net, real, list(copy.split(3)), contrast)
    (slope,) = torch.autograd.grad(loss, copy)
    (far,) = torch.autograd.grad(matching(net, real, list((copy.flip(0)).split(3)), contrast), copy)
    assert float(loss.detach()) < 5e-3 and float(slope.abs().max()) < 1e-2 * float(far.abs().max())


@pytest.mark.parametrize("contrast", [True, False])
@pytest.mark.exact("S174")
def test_two_steps_are_momentum_descent_of_the_loss_from_real_images(contrast):
    x, y = images(12, side=8), torch.arange(12) % 2
    run, real = Run(seed=4), [x[y == k] for k in (0, 1)]
    method = DCC(
        ipc=2, outer=1, warm_outer=0, steps=2, epochs=0, lr=0.3, momentum=0.5, contrast=contrast, width=4, depth=2
    )
    found = method((x, y), run=run).load().x
    own = run.replace(seed=run.seed_for("dcc", 0))
    net = SmallCNN(2, 1, 8, 4, 2, seed=own.seed_for("network")).double()
    # A vanishing learning rate shows where it starts.
    start = method.replace(lr=1e-12)((x, y), run=run).load().x
    for image, label in zip(start, [0, 0, 1, 1], strict=True):
        assert float((real[label] - image).abs().amax((1, 2, 3)).min()) < 1e-9
    now = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([now], lr=0.3, momentum=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        now.grad = torch.autograd.grad(matching(net, real, list(now.split(2)), contrast), now)[0]
        optimizer.step()
    assert float((found - now.detach()).abs().max()) < 1e-8
    assert float((found - start).abs().max()) > 1e-3


def test_the_warm_up_is_dc_and_ends_when_it_should():
    data, run = digits()[:200], Run(seed=1)

    def made(**changes) -> Tensor:
        return SMALL.replace(**changes)(data, run=run).load().x

    plain = made(contrast=False)
    assert torch.equal(made(warm_outer=2), plain)
    assert torch.equal(made(warm_outer=2, warm_inner=0), made(warm_outer=0))
    mixed = [made(warm_outer=1), made(warm_outer=1, warm_inner=1), made(warm_outer=0)]
    assert not any(torch.equal(a, b) for a, b in [(mixed[0], plain), (mixed[0], mixed[1]), (mixed[1], mixed[2])])


def test_the_network_learns_between_steps_only():
    data, run = digits()[:200], Run(seed=1)
    for steps, same in ((1, True), (2, False)):
        one, two = (SMALL.replace(steps=steps, epochs=e)(data, run=run).load().x for e in (1, 3))
        assert torch.equal(one, two) == same


def test_labels_keep_their_names_ids_are_new_and_unknown_labels_are_left_out():
    x, y = images(12, side=8).float(), torch.tensor([7, 3, -100] * 4)
    made = SMALL.replace(ipc=2)((x, y)).load()
    assert made.y.tolist() == [3, 3, 7, 7] and made.id.tolist() == [-1, -2, -3, -4]
    start = SMALL.replace(ipc=2, lr=1e-12)((x, y)).load().x
    for image, label in zip(start, made.y, strict=True):
        assert float((x[y == label] - image).abs().amax((1, 2, 3)).min()) < 1e-6


def test_other_seeds_give_other_images():
    data = digits()[:100]
    one, two = (SMALL(data, run=Run(seed=s)).load().x for s in (0, 1))
    assert not torch.allclose(one, two, atol=1e-3)


def test_misfits_are_refused():
    x, y = images(6, side=8).float(), torch.arange(6) % 2
    with pytest.raises(MissingPart, match="no labels"):
        SMALL(x)
    with pytest.raises(InputError, match=r"4 real images.*0 has 3"):
        SMALL.replace(ipc=4)((x, y))
    with pytest.raises(InputError, match="there are 1 classes"):
        SMALL((x, 0 * y))
    with pytest.raises(InputError, match="square float images"):
        SMALL((x[..., :7], y))
    with pytest.raises(InputError, match="one class per image"):
        SMALL((x, y.float()))
    with pytest.raises(SpecError, match="never end"):
        DCC(outer=10)


@pytest.mark.parametrize(
    "method", [SMALL.replace(ipc=3), SMALL.replace(ipc=3, augment=DSA()), SMALL.replace(ipc=3, contrast=False)]
)
def test_dcc_keeps_the_promises_of_a_shift(method):
    check_shift(method)


def test_digits_condensed_to_one_a_class_teach_more_than_one_real_digit_a_class():
    whole = digits().load()[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    train, test = Tensors(whole.x[:1000], whole.labels[:1000]), whole[1000:]
    recipe = Recipe(optimizer=SGD(lr=0.01), epochs=60, batch=10)

    def accuracy(x: Tensor, y: Tensor, seed: int) -> float:
        net = Fit(recipe=recipe)(SmallCNN(10, 1, 8, 16, 2, seed=seed), World(source=(x, y)), run=Run(seed=seed))
        with torch.no_grad():
            return float((net(test.x).argmax(1) == test.labels).double().mean())

    gains = []
    method = DCC(outer=8, warm_outer=2, steps=3, epochs=5, width=16, depth=2, batch=16)
    for seed in range(4):
        small = method(train, run=Run(seed=seed)).load()
        draw = torch.Generator().manual_seed(seed)
        rows = [torch.nonzero(train.batch.labels == k)[:, 0] for k in range(10)]
        picked = torch.stack([row[torch.randint(len(row), (), generator=draw)] for row in rows])
        gains.append(accuracy(small.x, small.labels, seed) - accuracy(train.batch.x[picked], torch.arange(10), seed))
    found = torch.tensor(gains, dtype=torch.float64)
    low = float(found.mean()) - float(student.ppf(0.975, 3)) * float(found.std()) / math.sqrt(4)
    assert low > 0
