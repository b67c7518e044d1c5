"""What each protocol shows, and when it forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.bench.protocols import (
    BatchOfOne,
    Continual,
    CorrelatedStream,
    Episodic,
    MixedStream,
    PhaseReset,
    Protocol,
)  # fmt: skip
from homeostat.bench.streams import drawn, share
from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import InputError
from homeostat.core.online import Online
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.shift import Clean, LabelShift
from tests.bench.grids import NOISE, Counting


def parts(each: int = 40, phases: int = 2) -> list[Data]:
    x = torch.arange(each * phases).float().view(-1, 1)
    made = [
        Tensors(x[i * each : (i + 1) * each], torch.arange(each) % 4, torch.arange(i * each, (i + 1) * each),
                {"phase": torch.full((each,), i)})
        for i in range(phases)
    ]  # fmt: skip
    return list(made)


def counts(protocol: Protocol, each: int = 40) -> list[int]:
    """How many samples the network had seen when it answered each sample."""
    run = Run(seed=1)
    out = protocol.answer(Counting(nn.Linear(1, 4)), protocol.pieces(parts(each), run), ["y"], Classify(), run).logits
    return [int(value) for value in out[:, 0]]


def test_continual_never_resets_and_phase_reset_does_between_phases() -> None:
    assert counts(Continual(batch=20)) == [0] * 20 + [20] * 20 + [40] * 20 + [60] * 20
    assert counts(PhaseReset(batch=20)) == ([0] * 20 + [20] * 20) * 2


def test_episodic_resets_before_every_batch_and_answers_after_its_steps() -> None:
    assert counts(Episodic(batch=20)) == [80] * 80
    assert counts(Episodic(batch=20, steps=1)) == [0] * 80


def test_a_batch_of_one_is_one_sample_at_a_time_and_samples_cuts_each_phase() -> None:
    assert counts(BatchOfOne(samples=5)) == list(range(10))


def test_the_oracle_takes_the_answer_with_most_right_and_the_unlabelled_rule_the_surest() -> None:
    # The count goes to class 0, so that the last answer is the surest, and right where the label is 0.
    assert counts(Episodic(batch=20, steps=3, select="unlabelled")) == [40] * 80
    run, net = Run(), Counting(nn.Linear(1, 4))
    wrong = [Tensors(torch.zeros(20, 1), torch.full((20,), 1), meta={"phase": torch.zeros(20, dtype=torch.long)})]
    out = Episodic(batch=20, steps=3, select="oracle").answer(net, wrong, ["y"], Classify(), run).logits
    # All answers are wrong, so the least sure of them has the least cross-entropy.
    assert out[:, 0].tolist() == [0.0] * 20


def test_mixed_and_correlated_streams_hold_the_same_samples_in_another_order() -> None:
    run = Run(seed=3)
    for protocol in (MixedStream(batch=20), CorrelatedStream(batch=20)):
        (stream,) = protocol.pieces(parts(), run)
        seen = stream.load()
        assert sorted(seen.id.tolist()) == list(range(80)) and seen.id.tolist() != list(range(80))
    (mixed,), (correlated,) = (p.pieces(parts(), run) for p in (MixedStream(), CorrelatedStream()))
    assert mixed.load().meta["phase"].tolist() != sorted(mixed.load().meta["phase"].tolist())
    assert correlated.load().meta["phase"].tolist() == [0] * 40 + [1] * 40
    same = (correlated.load().labels[1:] == correlated.load().labels[:-1]).float().mean()
    assert same > 0.5  # a quarter by chance


class Remembers(Online):
    """Keeps which labels it was shown."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 4))
        self.begin()

    def begin(self) -> None:
        self.shown: list[int] = []

    def adapt(self, batch: Batch) -> torch.Tensor:
        assert batch.y is None or set(batch.meta) == {"phase"}
        LABELS.append([] if batch.y is None else batch.labels.tolist())
        return torch.zeros(len(batch), 4)


LABELS: list[list[int]] = []


@pytest.mark.parametrize("protocol", [Continual(batch=20), PhaseReset(batch=20), Episodic(batch=20, steps=1)])
def test_so_many_labels_are_shown_as_are_asked_for(protocol: Protocol) -> None:
    for labels in (0, 3):
        LABELS.clear()
        asked = protocol.replace(labels=labels)
        asked.answer(Remembers(), asked.pieces(parts(), Run()), ["y"], Classify(), Run())
        known = [sum(value != UNKNOWN for value in batch) for batch in LABELS]
        assert known == [labels] * 4


def test_streams_are_drawn_anew_for_each_seed_and_phases_share_no_sample() -> None:
    pool = Tensors(torch.arange(100.0).view(-1, 1), torch.arange(100) % 5)
    one, again, other = (drawn(pool, (Clean(), Clean()), 50, None, Run(seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a.load().x, b.load().x) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0].load().x, other[0].load().x)
    values = [x for part in one for x in part.load().x.flatten().tolist()]
    assert sorted(values) == list(range(100))
    ids = torch.cat([part.load().id for part in one])
    assert ids.tolist() == list(range(100)) and one[1].load().meta["phase"].unique().tolist() == [1]


def test_a_label_shift_draws_from_the_whole_pool() -> None:
    pool = Tensors(torch.zeros(200, 1), torch.arange(200) % 4)
    (part,) = drawn(pool, (LabelShift(concentration=0.05),), 60, None, Run(seed=2))
    most = torch.bincount(part.load().labels, minlength=4).max()
    assert len(part) == 60 and most > 30  # a part of 60 holds 15 of each


def test_a_pool_smaller_than_a_part_is_refused_and_a_smaller_one_than_the_stream_repeats() -> None:
    pool = Tensors(torch.arange(30.0).view(-1, 1), torch.zeros(30, dtype=torch.long))
    with pytest.raises(InputError, match="part of 40"):
        drawn(pool, (Clean(),), 40, None, Run())
    assert len(drawn(pool, (Clean(), Clean()), 20, None, Run())[1]) == 20


def test_tuning_and_evidence_share_no_sample() -> None:
    pool = Tensors(torch.arange(90.0).view(-1, 1), torch.zeros(90, dtype=torch.long))
    mine, rest = (set(share(pool, tuning).load().x.flatten().tolist()) for tuning in (True, False))
    assert len(mine) == 30 and len(rest) == 60 and not mine & rest


def test_an_episode_leaves_the_given_network_as_it_was() -> None:
    net = Counting(nn.Linear(1, 4))
    Episodic(batch=20).answer(net, parts(), ["y"], Classify(), Run())
    assert float(net.carry["seen"]) == 0 and NOISE.severity == 3
