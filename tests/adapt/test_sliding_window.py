from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from homeostat.adapt import EATA, ROID, PriorCorrection, SlidingWindow, Tent
from homeostat.adapt.learner import Learner
from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import InputError
from homeostat.core.online import Online
from homeostat.core.save import load, save
from homeostat.nn.norms import batch_statistics
from homeostat.nn.optimizers import Adam

REMEDIES = [Tent(Adam(lr=0.02)), EATA(margin=1.0, fisher_alpha=0.0), ROID()]


class Slow:
    """A list of the last samples by place; one sample at a time."""

    def __init__(self, inner: Online, size: int):
        self.inner, self.size, self.ring, self.count = inner, size, {}, 0
        self.learnt = 0

    def observe(self, sample: Tensor) -> Tensor:
        place = self.count % self.size
        self.ring[place] = sample
        ring = torch.stack([self.ring[i] for i in sorted(self.ring)])
        self.count += 1
        if place == self.size - 1:
            self.learnt += 1
            return self.inner.observe(ring)[place]  # type: ignore[return-value]
        with torch.no_grad():
            return self.inner(ring)[place]


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_one_by_one_it_equals_a_list_of_the_last_samples(network, stream, remedy, kind):
    net, x = network(kind), torch.cat(stream(2, 15))
    served, slow = SlidingWindow(remedy, size=7)(net), Slow(remedy(net), 7)
    for one in x:
        assert torch.allclose(served.observe(one[None])[0], slow.observe(one), rtol=0, atol=1e-12)
    assert slow.learnt == 4


@pytest.mark.parametrize("remedy", REMEDIES)
def test_batches_of_its_size_are_served_as_by_the_method_itself(network, stream, remedy):
    served, plain = SlidingWindow(remedy, size=20)(network()), remedy(network())
    for x in stream(4):
        assert torch.equal(served.observe(x), plain.observe(x))


def test_larger_batches_are_as_many_of_its_size(network, stream):
    x = stream(1, 24)[0]
    served, plain = SlidingWindow(Tent(), size=8)(network()), Tent()(network())
    assert torch.equal(served.observe(x), torch.cat([plain.observe(part) for part in x.split(8)]))


def test_samples_that_come_together_are_answered_together_and_up_to_the_turn(network, stream):
    """Five in a ring of four, then three: [0-3], turn; 4; [4-6]+3 of old, the turn after 7."""
    x = stream(1, 9)[0]
    served, plain = SlidingWindow(Tent(Adam(lr=0.02)), size=4)(network()), Tent(Adam(lr=0.02))(network())
    first = torch.cat([plain.observe(x[:4]), plain(x[[4, 1, 2, 3]])[:1]])
    assert torch.allclose(served.observe(x[:5]), first, atol=1e-12)
    second = torch.cat([plain.observe(x[4:8])[1:], plain(x[[8, 5, 6, 7]])[:1]])
    assert torch.allclose(served.observe(x[5:9]), second, atol=1e-12)


def test_it_learns_once_a_turn(network, stream):
    x = stream(1, 12)[0]
    served = SlidingWindow(Tent(), size=5)(network())
    moved = []
    for one in x.split(1):
        before = served.model.owned()["1.weight"].detach().clone()
        served.observe(one)
        moved.append(not torch.equal(before, served.model.owned()["1.weight"]))
    assert [n for n, m in enumerate(moved) if m] == [4, 9]


def test_forward_answers_in_the_ring_and_keeps_nothing(network, stream):
    x = stream(1, 9)[0]
    served = SlidingWindow(PriorCorrection(), size=50)(network())
    served.observe(x[:6])
    before = served.snapshot()
    out = served(x[6:])
    after = served.snapshot()
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    assert torch.equal(out, served.observe(x[6:]))
    assert served(stream(1, 120)[0]).shape == (120, 4)  # longer than the ring


def test_context_gives_single_samples_the_statistics_of_many(network, stream):
    """With batch statistics a sample alone is far from its answer among others, and in a ring near it."""
    x = stream(1, 40)[0]
    among = Tent()(network())(x).detach()[30:]
    served = SlidingWindow(Tent(), size=40)(network())
    ring = torch.cat([served.observe(one) for one in x.split(1)])[30:]
    alone = torch.cat([Tent()(network())(one).detach() for one in x[30:].split(1)])
    assert float((ring - among).abs().mean()) < 0.3 * float((alone - among).abs().mean())


class Noting(Learner):
    """Tent that writes down what it was shown."""

    def adapt(self, batch: Batch) -> Tensor:
        self.seen = batch
        return self.logits(batch.x)


def test_labels_ids_and_trees_reach_the_method(network):
    from homeostat.adapt.sliding_window import WindowedOnline

    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(self.norm(x["a"] + x["b"][0]))

    served = WindowedOnline(Noting(batch_statistics(Tree())), size=4)
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    inputs = lambda part: {"a": a[part], "b": (b[part],)}  # noqa: E731
    served.observe(Batch(inputs(slice(0, 3)), id=torch.tensor([10, 11, 12])))
    served.observe(Batch(inputs(slice(3, 4)), torch.tensor([1]), torch.tensor([13])))
    seen = served.model.seen
    assert seen.id.tolist() == [10, 11, 12, 13] and seen.labels.tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, 1]
    assert torch.equal(seen.x["a"], a[:4]) and torch.equal(seen.x["b"][0], b[:4])
    with pytest.raises(InputError, match="the ring holds inputs"):
        served.observe({"a": a[:1]})
    with pytest.raises(InputError, match="class labels"):
        served.observe(Batch(inputs(slice(4, 5)), torch.tensor([0.5])))


def test_samples_of_another_shape_are_refused_and_change_nothing(network, stream):
    x = stream(1, 3)[0]
    served = SlidingWindow(Tent(), size=4)(network())
    served.observe(x)
    before = served.snapshot()
    with pytest.raises(InputError, match="one shape"):
        served.observe(x[:1, :, :6, :6])
    after = served.snapshot()
    assert all(torch.equal(t, after[n]) for n, t in before.items())


def test_it_continues_after_save_and_load_in_the_middle_of_a_turn(network, stream, tmp_path):
    x = stream(1, 20)[0]
    served = SlidingWindow(Tent(), size=6)(network())
    served.observe(x[:9])
    save(served, tmp_path / "served")
    rest = [served.observe(one) for one in x[9:].split(1)]
    back = load(tmp_path / "served")
    assert all(torch.equal(back.observe(one), r) for one, r in zip(x[9:].split(1), rest, strict=True))


def test_as_documented_it_is_no_cure_for_a_sorted_stream():
    """One class fills the ring: batch statistics take away what tells it apart, though each sample comes alone."""
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(2))
    y = torch.arange(60) // 30
    x = 4 * nn.functional.one_hot(y, 2) + 0.5 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    right = {}
    for name, order in (
        ("sorted", torch.arange(60)),
        ("mixed", torch.randperm(60, generator=torch.Generator().manual_seed(1))),
    ):
        served = SlidingWindow(Tent(), size=15)(net)
        out = torch.cat([served.observe(x[i : i + 1]) for i in order.tolist()])
        right[name] = float((out.argmax(1) == y[order]).float()[15:].mean())
    assert float((net(x).argmax(1) == y).float().mean()) == 1.0
    assert right["mixed"] > 0.95 and right["sorted"] < 0.8
