from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import T3A
from homeostat.core.errors import ModelError


class Slow:
    """T3A with one list a class, sorted by Python."""

    def __init__(self, net: nn.Sequential, keep: int):
        self.body, self.linear, self.keep = net[:-1], net[-1], keep
        self.sets: list[list[tuple[float, Tensor]]] = [[] for _ in range(self.linear.out_features)]
        for row in self.linear.weight.detach():
            self.add(row)

    def add(self, feature: Tensor) -> None:
        with torch.no_grad():
            z = self.linear(feature)
        p = z.softmax(0)
        own = self.sets[int(z.argmax())]
        own.append((float(-(p * p.log()).sum()), feature))
        own.sort(key=lambda entry: entry[0])
        if self.keep:
            del own[self.keep :]

    def observe(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x)
        for feature in features:
            self.add(feature)
        out = torch.zeros(len(x), len(self.sets), dtype=x.dtype)
        for k, entries in enumerate(self.sets):
            if entries:
                center = sum(f / f.norm() for _, f in entries)
                for n, f in enumerate(features):
                    out[n, k] = f @ center / center.norm()
        return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
@pytest.mark.parametrize("keep", [0, 1, 5])
def test_equals_a_sorted_list_for_each_class(network, stream, kind, dtype, tolerance, keep):
    net = network(kind, dtype)
    ours, slow = T3A(keep=keep)(net), Slow(net, keep)
    for x in stream(6, dtype=dtype):
        expected = slow.observe(x)
        assert torch.allclose(ours.observe(x), expected, rtol=0, atol=tolerance)
        assert torch.allclose(ours(x), expected, rtol=0, atol=tolerance)
    assert len(ours.carry["class"]) == sum(map(len, slow.sets)) and (keep == 0) == (len(ours.carry["class"]) == 124)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    net = nn.Sequential(nn.Identity(), nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype))
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return net.eval()


def test_by_hand():
    """Templates along the axes; one sample of class 0 between them turns its centroid by half the angle."""
    net = linear(10 * torch.eye(2, dtype=torch.float64))
    x = torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    center = torch.tensor([1.0, 0.0]).double() + x[0] / 5
    expected = torch.stack([x[0] @ center / center.norm(), x[0, 1]])
    assert torch.allclose(T3A(keep=2)(net).observe(x)[0], expected)


def test_before_anything_was_seen_it_is_the_cosine_with_the_templates(network, stream):
    net, x = network(), stream(1)[0]
    features = net[:-1](x)
    t3a = T3A()(net)
    own = set(t3a.carry["class"].tolist())
    cosine = features @ F.normalize(net[8].weight, dim=1).T
    assert own == {0, 1, 2, 3}
    assert torch.allclose(t3a(x), cosine, atol=1e-12)


def test_where_features_turned_the_centroids_follow():
    draws = torch.Generator().manual_seed(0)
    net = linear(5 * torch.eye(2, dtype=torch.float64))
    angle = torch.tensor(0.7)  # of a quarter turn's 1.57: some samples cross the border
    y = torch.arange(400) % 2
    x = F.one_hot(y, 2).double() + 0.25 * torch.randn(400, 2, generator=draws, dtype=torch.float64)
    turn = torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]], dtype=torch.float64)
    x, t3a = x @ turn, T3A(keep=0)(net)
    out = torch.cat([t3a.observe(part) for part in x.split(40)])
    frozen = float((net(x).argmax(1) == y).double().mean())
    assert float((out.argmax(1) == y).double().mean()) > frozen + 0.02


def test_as_documented_one_sure_mistake_moves_a_class_for_good():
    net = linear(torch.eye(2, dtype=torch.float64))
    t3a, sure = T3A(keep=1)(net), T3A(keep=0)(net)
    outlier, ordinary = torch.tensor([[100.0, 60.0]]).double(), torch.tensor([[0.3, 1.0]]).double()
    away = torch.tensor([[2.0, 3.0]]).double()  # class 1 by the network and by the templates
    assert net(away).argmax() == 1 and t3a(away).argmax() == 1
    t3a.observe(outlier)
    assert t3a.carry["feature"][t3a.carry["class"] == 0].tolist() == outlier.tolist()
    for _ in range(20):
        t3a.observe(ordinary)
    assert t3a(away).argmax() == 0
    sure.observe(outlier)
    assert sure(away).argmax() == 1


def test_as_documented_a_class_whose_template_is_called_another_has_the_logit_0():
    net = linear(torch.eye(2, dtype=torch.float64), torch.tensor([0.0, -5.0], dtype=torch.float64))
    t3a = T3A()(net)
    x = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    assert t3a.carry["class"].tolist() == [0, 0] and t3a(x)[0, 1] == 0
    assert net(x).argmax() == 0 and t3a(x).argmax() == 1


def test_the_layer_can_be_named_and_must_make_the_logits(network, stream):
    x = stream(1)[0]
    net = network()
    assert torch.equal(T3A(layer="8")(net).observe(x), T3A()(net).observe(x))
    with pytest.raises(ModelError, match="a ReLU"):
        T3A(layer="2")(net)
    with pytest.raises(ModelError, match="no layer"):
        T3A(layer="tail")(net)
    with pytest.raises(ModelError, match="linear"):
        T3A()(net[:8])
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 5, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64))
    with pytest.raises(ModelError, match="name the layer that makes the logits"):
        T3A(layer="1")(two).observe(x)
