"""Loki against brute force and hand-worked trees."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from homeostat.adapt import Loki, NextClass, label_distance, loki, loki_scores, next_class
from homeostat.core.errors import InputError, ModelError, SpecError
from homeostat.core.save import load, save
from homeostat.core.trace import Entry, Trace
from homeostat.core.world import World
from homeostat.data import CompleteMetric, PointMetric, TreeMetric
from homeostat.fit import Fit, Recipe
from homeostat.nn.optimizers import Adam


def random_tree(nodes: int, seed: int) -> TreeMetric:
    draws = torch.Generator().manual_seed(seed)
    return TreeMetric((-1, *(int(torch.randint(0, i, (), generator=draws)) for i in range(1, nodes))))


def drawn(nodes: int, count: int, seed: int) -> list[int]:
    return torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def grid(classes: int, steps: int = 12) -> torch.Tensor:
    """All probabilities that are multiples of 1 / steps."""
    rows = [r for r in itertools.product(range(steps + 1), repeat=classes) if sum(r) == steps]
    return torch.tensor(rows, dtype=torch.float64) / steps


@pytest.mark.exact("S182")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_prediction_is_the_frechet_mean_by_plain_loops(dtype):
    metric = random_tree(9, 1)
    dist, observed = metric.distances().to(dtype), [0, 4, 7, 8]
    probs = torch.rand(40, 4, generator=torch.Generator().manual_seed(0), dtype=dtype).softmax(1)
    for row, said, scores in zip(probs, loki(probs, dist[observed]), loki_scores(probs, dist[observed]), strict=True):
        each = [sum(float(p) * float(dist[o, j]) ** 2 for p, o in zip(row, observed, strict=True)) for j in range(9)]
        assert each[int(said)] <= min(each) + 1e-6
        assert torch.allclose(-scores.double(), torch.tensor(each, dtype=torch.float64), atol=1e-5)


@pytest.mark.exact("S182")
@pytest.mark.parametrize("seed", range(6))
def test_the_locus_of_a_tree_is_what_probabilities_can_reach(seed):
    """Leaf stripping, linear programmes and an enumeration of probabilities find the same classes."""
    metric, observed = random_tree(8, seed), sorted(drawn(8, 3, seed))
    dist = metric.distances()
    scores = loki_scores(grid(3), dist[observed])
    reached = {j for j in range(8) if bool((scores[:, j] >= scores.amax(1) - 1e-9).any())}
    assert metric.locus(observed) == reached == super(TreeMetric, metric).locus(observed)


@pytest.mark.exact("S182")
@pytest.mark.parametrize("seed", range(8))
def test_the_locus_of_a_tree_is_the_union_of_paths(seed):
    metric, observed = random_tree(60, seed), drawn(60, 2 + seed, seed)
    dist = metric.distances()
    union = {
        v for v in range(60) for a, b in itertools.product(observed, repeat=2) if dist[a, v] + dist[v, b] == dist[a, b]
    }
    assert metric.locus(observed) == union


def test_a_path_by_hand():
    """Nodes 0 - 1 - 2 - 3 on a line and 4 beside 1; observed are the ends."""
    metric = TreeMetric((-1, 0, 1, 2, 1))
    assert metric.distances()[0].tolist() == [0, 1, 2, 3, 2]
    assert metric.locus([0, 3]) == {0, 1, 2, 3}
    ends = metric.distances()[[0, 3]]
    assert loki(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9]]).double(), ends).tolist() == [0, 1, 2, 3]
    assert loki(torch.tensor([[0.6, 0.4]]).double(), ends, targets=[0, 3]).tolist() == [0]
    assert next_class(metric.distances(), metric.locus([0, 3])) == 4


def test_lengths_and_classes_of_a_tree():
    metric = TreeMetric((1, -1, 1), lengths=(2.0, 9.0, 0.5), classes=(2, 0))
    assert metric.distances().tolist() == [[0.0, 2.5], [2.5, 0.0]]


def test_where_all_classes_are_equally_far_it_is_argmax():
    probs = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert torch.equal(loki(probs, CompleteMetric(5).distances().float()), probs.argmax(1))
    assert CompleteMetric(5).locus([1, 3]) == {1, 3} == super(CompleteMetric, CompleteMetric(5)).locus([1, 3])


def test_the_locus_of_points_is_what_lies_between():
    """On a line, classes between the observed ends are reachable, classes beyond are not."""
    line = PointMetric(((0.0,), (1.0,), (2.0,), (5.0,), (-1.0,)))
    assert line.locus([0, 2]) == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_predicts_classes_that_it_never_trained_on(dtype, tmp_path):
    torch.manual_seed(0)
    net, metric = nn.Linear(4, 2).to(dtype), TreeMetric((-1, 0, 1, 2))
    made = Loki(metric, observed=(0, 3), temperature=2.0)(net)
    x = torch.randn(200, 4, dtype=dtype)
    expected = loki((net(x) / 2).softmax(1), metric.distances()[[0, 3]].to(dtype))
    assert torch.equal(made(x).argmax(1), expected) and {1, 2} & set(expected.tolist())
    save(made, tmp_path / "a")
    assert torch.equal(load(tmp_path / "a")(x), made(x))


def test_a_constant_added_to_all_logits_changes_nothing_as_it_would_with_logits_in_place_of_probabilities():
    torch.manual_seed(0)
    logits, metric = torch.randn(64, 3, dtype=torch.float64), TreeMetric((-1, 0, 0, 1, 1, 4))
    dist = metric.distances()[[2, 3, 5]]
    moved = logits + 10
    assert torch.equal(loki(logits.softmax(1), dist), loki(moved.softmax(1), dist))
    assert not torch.equal(loki_scores(logits, dist).argmax(1), loki_scores(moved, dist).argmax(1))


def test_its_scores_can_be_trained_through():
    torch.manual_seed(0)
    metric = TreeMetric((-1, 0, 1, 2, 3))
    x = torch.rand(120, 1)
    y = (x[:, 0] * 4.999).long()
    before = Loki(metric, observed=(0, 4))(nn.Linear(1, 2))
    recipe = Recipe(optimizer=Adam(lr=0.05), epochs=30, batch=40)
    after = Fit(recipe=recipe)(before, World(source=(x, y)))
    right = [(net(x).argmax(1) == y).float().mean() for net in (before, after)]
    assert right[1] > 0.6 > right[0]


def test_without_a_metric_the_last_layer_gives_the_distances():
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]))
    squared = Loki()(net).squared
    assert torch.allclose(squared, torch.tensor([[0.0, 2.0, 4.0], [2.0, 0.0, 2.0], [4.0, 2.0, 0.0]]))


def test_failure_an_unsure_network_is_drawn_to_the_middle():
    """What the docstring warns of: the squared distance falls, and so does the share of right answers."""
    metric = TreeMetric((-1, 0, 0, 0, 0))  # a star: the leaves are observed, the hub is nobody's label
    labels = torch.tensor([1, 2, 3, 4] * 5)
    probs = torch.full((20, 4), 0.2).scatter(1, (labels - 1)[:, None], 0.4)
    said = loki(probs, metric.distances()[1:].float())
    argmax = probs.argmax(1) + 1
    assert bool((argmax == labels).all()) and not bool((said == labels).any())
    labels_drawn = labels.roll(1)  # labels that the network gets wrong
    dist = metric.distances()
    assert label_distance(said, labels_drawn, dist) < label_distance(argmax, labels_drawn, dist)


def test_distances_of_predictions_by_hand():
    dist = TreeMetric((-1, 0, 1)).distances()
    said, labels = torch.tensor([0, 2, 1]), torch.tensor([2, 2, -100])
    assert label_distance(said, labels, dist) == 2.0 and label_distance(said, labels, dist, power=1.0) == 1.0
    with pytest.raises(InputError, match="none is known"):
        label_distance(said, torch.full((3,), -100), dist)


def chosen(*subjects: int) -> Trace:
    return Trace(tuple(Entry(i, str(s)) for i, s in enumerate(subjects)))


def test_the_next_class_is_the_farthest_from_the_locus():
    metric = TreeMetric((-1, 0, 1, 2, 1, 4, 5))  # 0-1-2-3, and 4-5-6 below 1
    pick = NextClass(metric)
    assert pick(chosen(0, 3), list(range(7))) == 6
    assert pick(chosen(1), [2, 3]) == 0  # options are classes; option 1 (class 3) is labelled
    assert pick(Trace(), list(range(7))) == 3  # 3 - 1 - 6 is one of the longest paths
    assert pick(chosen(0, 3, 6), [0, 1, 2, 3, 4, 5, 6]) == 1  # the locus is whole; what is left comes in order
    with pytest.raises(InputError, match="none left"):
        pick(chosen(0, 1), [0, 1])
    with pytest.raises(InputError, match="index"):
        pick(chosen(9), [0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_choosing_the_farthest_covers_a_tree_with_as_few_classes_as_there_are_leaves(seed):
    metric = random_tree(20, seed)
    leaves = [i for i in range(20) if sum(p == i for p in metric.parents) + (metric.parents[i] >= 0) == 1]
    observed = leaves[:2]
    while len(metric.locus(observed)) < 20:
        observed.append(next_class(metric.distances(), metric.locus(observed)))
    assert set(observed) == set(leaves)


def test_refusals():
    with pytest.raises(SpecError, match="circle"):
        TreeMetric((-1, 2, 1))
    with pytest.raises(SpecError, match="one -1"):
        TreeMetric((0, 0))
    with pytest.raises(SpecError, match="class 7"):
        Loki(TreeMetric((-1, 0)), observed=(0, 7))(nn.Linear(2, 2))
    with pytest.raises(SpecError, match="another class"):
        Loki(observed=(1, 1))
    with pytest.raises(InputError, match="at least one"):
        TreeMetric((-1, 0)).locus([])
    with pytest.raises(ModelError, match="2 outputs"):
        Loki(TreeMetric((-1, 0, 0)), observed=(0, 1, 2))(nn.Linear(2, 2))(torch.zeros(1, 2))
