from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from homeostat.continual import ACIL, AnalyticHead
from homeostat.continual.acil import ridge
from homeostat.core.check import check_remedy, small_network, small_world
from homeostat.core.data import Batch, Tensors
from homeostat.core.errors import InputError, ModelError
from homeostat.core.save import load, save
from homeostat.core.world import World


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()


def stream(count: int = 60, classes: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(count) % classes
    return Batch(torch.randn(count, 5, generator=generator, dtype=torch.float64) + y[:, None] * 0.3, y)


def joint(head: AnalyticHead, data: Batch) -> torch.Tensor:
    h = head.expanded(data.x)
    return ridge(h.T @ h, h.T @ torch.nn.functional.one_hot(data.labels).double(), head.gamma)


@settings(max_examples=25)
@given(
    st.permutations(range(60)),
    st.lists(st.integers(1, 25), min_size=1, max_size=8),
    st.sampled_from(["gram", "recursive"]),
)
@pytest.mark.exact("S168")
def test_weights_equal_joint_training_for_any_order_and_batch_sizes(order, sizes, form):
    data = stream()
    head = AnalyticHead(network(), expand=20, form=form)
    at, turn = 0, 0
    while at < 60:
        rows = order[at : at + sizes[turn % len(sizes)]]
        head.observe(data[torch.tensor(rows)])
        at, turn = at + len(rows), turn + 1
    assert torch.allclose(head.weights_now(), joint(head, data), atol=1e-8)


def test_the_sorted_stream_ends_where_the_mixed_one_does():
    data, weights = stream(), []
    for order in (torch.argsort(data.labels), torch.argsort(data.labels, descending=True), torch.arange(60)):
        head = AnalyticHead(network(), expand=20)
        for rows in order.split(7):
            head.observe(data[rows])
        weights.append(head.weights_now())
    assert torch.allclose(weights[0], weights[1], atol=1e-9) and torch.allclose(weights[0], weights[2], atol=1e-9)


def test_forgetting_samples_equals_never_having_seen_them():
    data = stream()
    head, other = AnalyticHead(network(), expand=20), AnalyticHead(network(), expand=20)
    head.observe(data)
    head.forget(data[10:25])
    other.observe(data[torch.cat([torch.arange(10), torch.arange(25, 60)])])
    assert torch.allclose(head.weights_now(), other.weights_now(), atol=1e-9)


def test_clients_heads_add_up_to_one_trained_on_all():
    data = stream()
    a, b, all_ = (AnalyticHead(network(), expand=20) for _ in range(3))
    a.observe(data[:20][data.labels[:20] < 2])
    b.observe(data[20:])
    all_.observe(data[:20][data.labels[:20] < 2])
    all_.observe(data[20:])
    a.absorb(b)
    assert torch.allclose(a.weights_now(), all_.weights_now(), atol=1e-9)
    with pytest.raises(ModelError, match="share the expansion"):
        a.absorb(AnalyticHead(network(), expand=20, seed=1))


def test_new_classes_grow_the_head_and_old_ones_stay():
    data = stream()
    head = ACIL(expand=200)(network(), World(source=Tensors(data.x, data.labels % 2)))
    before = head(data.x)
    assert before.shape[1] == 2
    head.observe(Batch(data.x[:4] + 5, torch.full((4,), 6)))
    assert head(data.x).shape[1] == 7
    assert (head(data.x)[:, :2].argmax(1) == before.argmax(1)).double().mean() > 0.9
    assert head(data.x[:4] + 5).argmax(1).tolist() == [6] * 4


def test_unknown_labels_teach_nothing():
    data = stream()
    head = AnalyticHead(network(), expand=20)
    head.observe(data)
    before = head.weights_now().clone()
    head.observe(Batch(data.x, torch.full((60,), -100)))
    head.observe(data.x)
    assert torch.equal(head.weights_now(), before)


def test_a_grown_head_survives_save_and_load_and_grows_on(tmp_path):
    data = stream()
    head = AnalyticHead(network(), expand=20)
    head.observe(data)
    save(head, tmp_path / "a")
    back = load(tmp_path / "a")
    assert isinstance(back, AnalyticHead) and torch.equal(back(data.x), head(data.x))
    back.observe(Batch(data.x[:2], torch.tensor([7, 7])))
    assert back(data.x).shape[1] == 8


@pytest.mark.parametrize("form", ["gram", "recursive"])
def test_keeps_all_promises_of_a_remedy(form):
    check_remedy(ACIL(expand=32, form=form))


def test_refusals():
    head = AnalyticHead(small_network(), expand=8)
    x = next(small_world().source.batches(4)).x
    with pytest.raises(InputError, match="must have labels"):
        head.observe(x)
    with pytest.raises(ModelError, match="no labelled sample"):
        head(x)
    with pytest.raises(InputError, match="outside"):
        head.observe(Batch(x, torch.tensor([0, 1, -3, 0])))
    with pytest.raises(ModelError, match="form='gram'"):
        AnalyticHead(small_network(), expand=8, form="recursive").forget(Batch(x, torch.zeros(4, dtype=torch.long)))
