"""TTAB's rules, each against a plain reading of its published code: orders, class shares, colors, and the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt import BatchNormBlend, Repeated, Tent
from homeostat.bench import Axis, Continual, Episodic, EpisodicGrid, Named, PhaseReset, Sweep, bench, open_suite
from homeostat.bench.entrants import Opened
from homeostat.bench.grid import cells
from homeostat.core.data import UNKNOWN, Data, Tensors
from homeostat.core.errors import InputError, MissingPart, SpecError
from homeostat.core.probe import prequential
from homeostat.core.run import Run
from homeostat.core.task import Classify
from homeostat.data import Digits, Shifted
from homeostat.nn.optimizers import Adam
from homeostat.shift import ChunkedOrder, CorrelatedOrder, LabelShift, Rotate, SpuriousColor, chunks, label
from tests.bench.grids import NET, SETTING, STREAM, tiny

# ------------------------------------------------------------------------------------------------ non-i.i.d. order


def chunks_of_ttab(counts: list[int], draws: Iterator[np.ndarray]) -> tuple[list[list[int]], int, int]:
    """Samples of each class in each chunk, after their code; how often all was drawn, and shares set to 0."""
    classes, total, turns, closed, smallest = len(counts), sum(counts), 0, 0, -1
    held: list[list[int]] = []
    while smallest < 5:
        held, turns = [[] for _ in range(classes)], turns + 1
        for count in counts:
            open_ = np.array([sum(chunk) < total / classes for chunk in held])
            closed += int((~open_).sum())
            shares = next(draws) * open_
            edges = (np.cumsum(shares / shares.sum()) * count).astype(int)[:-1]
            for chunk, piece in zip(held, np.split(np.arange(count), edges), strict=True):
                chunk.append(len(piece))
        smallest = min(map(sum, held))
    return held, turns, closed


@pytest.mark.exact("S260")
def test_chunks_are_those_of_ttab_and_slots_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same Dirichlet draws chunks hold what theirs hold: the same number of each class, in blocks.

    `CorrelatedOrder` has their Dirichlet shares and neither their limit on a chunk's length nor their blocks.
    """
    counts, seen_turns, seen_closed = [40, 30, 50, 60], 0, 0
    y = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))[torch.arange(180) * 77 % 180]
    for seed in range(10):
        # Rounded to 12 bits, so that shares and their sums are exact, whoever adds them.
        generator = np.random.default_rng(seed)
        draws = [np.maximum(np.round(generator.dirichlet([0.1] * 4) * 4096), 1) / 4096 for _ in range(4000)]
        held, turns, closed = chunks_of_ttab(counts, iter(draws))
        mine = iter(draws)
        monkeypatch.setattr(chunks, "_dirichlet", lambda *_, mine=mine: torch.from_numpy(next(mine)))
        got = ChunkedOrder(0.1)(Tensors(torch.arange(180.0)[:, None], y), run=Run(seed=seed)).load()
        low = 0
        for chunk in held:
            part = got.labels[low : low + sum(chunk)]
            assert torch.bincount(part, minlength=4).tolist() == chunk
            assert int((part.diff() != 0).sum()) + 1 == sum(size > 0 for size in chunk)
            low += len(part)
        assert low == 180 and sorted(got.x[:, 0].tolist()) == list(range(180))
        seen_turns, seen_closed = seen_turns + turns - 1, seen_closed + closed
    assert seen_turns and seen_closed  # both of their rules did something
    slots = CorrelatedOrder(0.1, slots=4)(Tensors(torch.zeros(180, 1), y), run=Run(seed=1)).load().labels
    blocks = ChunkedOrder(0.1)(Tensors(torch.zeros(180, 1), y), run=Run(seed=1)).load().labels
    assert int((blocks.diff() != 0).sum()) < 16 < int((slots.diff() != 0).sum())


def test_chunks_that_cannot_be_made_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="4 chunks of 5 samples"):
        ChunkedOrder(chunks=4)((torch.zeros(19, 1), torch.arange(19) % 2))
    monkeypatch.setattr(chunks, "_TURNS", 3)
    with pytest.raises(InputError, match="in 3 draws"):
        ChunkedOrder(1e-3, chunks=20, least=1)((torch.zeros(20, 1), torch.arange(20) % 2))


@pytest.mark.exact("S260")
def test_class_shares_are_those_of_ttab_up_to_what_they_round_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs are int(n p_k) of n = int(n_max / max p); ours add up to n, so that a class may have one more."""
    y = torch.arange(1000) % 10
    for seed in range(5):
        prior = np.random.default_rng(seed).dirichlet([4.0] * 10)
        monkeypatch.setattr(label, "_dirichlet", lambda *_, prior=prior: torch.from_numpy(prior))
        got = torch.bincount(LabelShift(concentration=4.0)((torch.zeros(1000, 1), y)).load().labels, minlength=10)
        size = int(100 / prior.max())
        theirs = torch.tensor([int(size * share) for share in prior])
        assert int(got.sum()) == size and set((got - theirs).tolist()) <= {0, 1}


# --------------------------------------------------------------------------------------------------------- colors


@pytest.mark.exact("S260")
def test_colors_are_those_of_coloredmnist() -> None:
    images, y = torch.rand(10, 1, 3, 3) + 0.1, torch.arange(10)
    for noise, strength in ((0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)):
        got = SpuriousColor(strength, noise=noise)((images, y)).load()
        wanted = (y >= 5).long() ^ int(noise)  # 0 for 0 to 4, 1 for 5 to 9, turned by noise
        color = wanted ^ int(strength == 0)  # red for label 0, green for label 1
        assert torch.equal(got.labels, wanted)
        assert all(torch.equal(x[c], image[0]) for x, c, image in zip(got.x, color, images, strict=True))
        assert torch.equal(got.x.sum(1, keepdim=True), images)


def test_shares_of_colors_and_labels_are_as_asked_for_and_a_sample_keeps_its_label() -> None:
    data = Tensors(torch.ones(3000, 1, 1, 1), torch.arange(3000) % 9)
    for groups in (2, 3):
        before, after = (SpuriousColor(s, groups, classes=9)(data, run=Run(seed=2)).load() for s in (0.9, 0.1))
        assert torch.equal(before.labels, after.labels)
        plain = torch.arange(3000) % 9 * groups // 9
        assert abs(float((before.labels != plain).float().mean()) - 0.25) < 0.03
        for seen, strength in ((before, 0.9), (after, 0.1)):
            right = (seen.x[:, :, 0, 0].argmax(1) == seen.labels).float().mean()
            assert abs(float(right) - strength) < 0.03
    whole = SpuriousColor()(data, run=Run(seed=2))
    some = torch.tensor([17, 3, 99])
    assert torch.equal(whole.load().x[some], whole.fetch(some).x)


def test_color_says_nothing_of_an_unknown_label_and_needs_grey_images_with_labels() -> None:
    images, y = torch.ones(400, 1, 1, 1), torch.full((400,), UNKNOWN)
    got = SpuriousColor(1.0)((images, y)).load()
    assert set(got.labels.tolist()) == {UNKNOWN}
    assert abs(float(got.x[:, 0].mean()) - 0.5) < 0.1 and float(got.x[:, 2].max()) == 0
    with pytest.raises(MissingPart, match="have none"):
        SpuriousColor()(images).load()
    with pytest.raises(InputError, match="these have 3"):
        SpuriousColor()((images.expand(-1, 3, -1, -1), torch.zeros(400, dtype=torch.long))).load()
    with pytest.raises(InputError, match="below classes = 10"):
        SpuriousColor()((images, torch.full((400,), 10))).load()
    with pytest.raises(SpecError, match="4 groups of 3"):
        SpuriousColor(groups=4, classes=3)


def test_copies_of_shifted_data_are_changed_anew() -> None:
    got = Shifted(of=Digits(stop=3), by=Rotate(30.0, jitter=True), copies=2, stop=6).read().load()
    assert torch.equal(got.labels[:3], got.labels[3:]) and not torch.allclose(got.x[:3], got.x[3:])
    with pytest.raises(SpecError, match="needs by"):
        Shifted(of=Digits())


# --------------------------------------------------------------------------------------------------------- oracle


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def stream(count: int = 60) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator) * 2 + 1
    return Tensors(x, torch.randint(0, 3, (count,), generator=generator), meta={"phase": torch.zeros(count).long()})


class PlainTent:
    """Tent as a few lines of PyTorch."""

    def __init__(self, lr: float):
        self.net = network().requires_grad_(False)
        for norm in (m for m in self.net if isinstance(m, nn.BatchNorm1d)):
            norm.running_mean = norm.running_var = None
            norm.track_running_stats = False
            norm.requires_grad_(True)
        self.optimizer = torch.optim.Adam([p for p in self.net.parameters() if p.requires_grad], lr=lr)

    def step(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.optimizer.zero_grad()
        (-(out.softmax(1) * out.log_softmax(1)).sum(1)).mean().backward()
        self.optimizer.step()
        return out.detach()


@pytest.mark.exact("S260")
@pytest.mark.parametrize("rates", [(1e-3, 1e-1, 1.0), (1.0,)])
def test_the_oracle_takes_what_ttab_takes_over_steps_and_learning_rates(rates: tuple[float, ...]) -> None:
    """Theirs looks at the answers after each of n updates, keeps the most accurate, and of those the least loss."""
    steps, given, picked, ties = 4, stream(), [], 0
    if len(rates) == 1:  # labels that the network gets right as long as it learns nothing
        first = torch.cat([PlainTent(1.0).step(batch.x).argmax(1) for batch in given.batches(20)])
        given = Tensors(given.load().x, first, meta=given.load().meta)
    for batch in given.batches(20):
        best, right, loss = torch.empty(0), -1.0, float("inf")
        for place, lr in enumerate(rates):
            tent = PlainTent(lr)
            for step in range(steps):
                tent.step(batch.x)
                with torch.no_grad():
                    out = tent.net(batch.x)
                now, cost = float((out.argmax(1) == batch.y).sum()), float(F.cross_entropy(out, batch.labels))
                ties += now == right
                if now > right or (now == right and cost < loss):
                    best, right, loss, where = out, now, cost, (place, step)
        picked.append((best, where))
    grid = EpisodicGrid(Tent(), (Axis("optimizer.lr", rates),))
    protocol = Episodic(batch=20, steps=steps + 1, skip=1, select="oracle")
    got = grid.answer(Opened(network(), given, given, Classify()), [given], protocol, frozenset({"y"}), Run()).seen
    torch.testing.assert_close(got.logits, torch.cat([out for out, _ in picked]), atol=1e-5, rtol=1e-4)
    assert len(rates) == 1 or (ties and len({where for _, where in picked}) > 1)  # both of their rules did something
    # The answer from before any update is none of theirs; where it is the best one, it would be taken.
    unskipped = protocol.replace(steps=steps, skip=0)
    other = grid.answer(Opened(network(), given, given, Classify()), [given], unskipped, frozenset({"y"}), Run()).seen
    assert len(rates) > 1 or not torch.equal(other.logits, got.logits)


@pytest.mark.exact("S260")
def test_the_last_iterate_online_is_that_of_ttab() -> None:
    """The answer is from before the last of a batch's updates, and the next batch goes on from after it."""
    tent, given = PlainTent(1e-2), stream()
    wanted = torch.cat([[tent.step(batch.x) for _ in range(3)][-1] for batch in given.batches(20)])
    got = prequential(Repeated(Tent(Adam(lr=1e-2)), steps=3)(network()), given, batch=20)
    torch.testing.assert_close(got.logits, wanted, atol=1e-5, rtol=1e-4)


def test_answers_that_are_skipped_are_not_selected() -> None:
    given, tent = stream(20), Tent(Adam(lr=1e-1))(network())
    kept = Episodic(20, steps=3, skip=2, select="oracle").answer(tent, [given], ["y"], Classify(), Run()).logits
    last = Episodic(20, steps=3).answer(tent, [given], ["y"], Classify(), Run()).logits
    assert torch.equal(kept, last)
    with pytest.raises(SpecError, match="skips 3 of 3"):
        Episodic(steps=3, skip=3)


def test_a_grid_of_episodes_takes_what_adapts_and_a_protocol_that_selects() -> None:
    assert EpisodicGrid.card.id == "S260"  # by which the catalogue finds it
    grid: Any = EpisodicGrid(BatchNormBlend(), (Axis("blend", (0.0, 0.5)),))
    assert [grid.fits(p) for p in (Continual(), Episodic(), Episodic(select="oracle"))] == [False, False, True]
    given = stream()
    with pytest.raises(SpecError, match="adapts while it serves"):
        grid.answer(Opened(network(), given, given, Classify()), [given], Episodic(select="oracle"), frozenset(), Run())
    with pytest.raises(SpecError, match="has no field"):
        EpisodicGrid(Tent(), (Axis("rate", (1.0,)),))


# ---------------------------------------------------------------------------------------------------------- suite


def test_the_suite_has_its_kinds_of_shift_and_networks_and_each_entrant_where_it_fits() -> None:
    suite = open_suite("ttab-small")
    shifts = {type(shift) for one in suite.streams for shift in one.phases}
    assert {LabelShift, ChunkedOrder, SpuriousColor} < shifts and len(suite.settings) == 4
    for setting in suite.settings:
        mine = [one for one in suite.streams if one.name in setting.streams]
        assert any(one.tuning for one in mine) and any(not one.tuning for one in mine)
    sweep = Sweep(Named("by steps", Repeated(Tent(), 1), whole=True), (Axis("entrant.steps", (1, 2)),))
    assert [sweep.remedy.fits(p) for p in (Continual(), PhaseReset(), Episodic())] == [True, False, False]  # type: ignore[union-attr]


def test_a_grid_with_an_oracle_and_shifted_data_is_computed(tmp_path: Any) -> None:
    steps = Sweep(Named("by steps", Repeated(Tent(), 1), whole=True), (Axis("entrant.steps", (1, 2)),))
    grid = EpisodicGrid(Tent(), (Axis("optimizer.lr", (1e-3, 1e-1)),))
    net = NET.replace(data=Shifted(of=NET.data, by=Rotate(10.0, jitter=True)))
    suite = tiny(
        settings=(SETTING.replace(model=net),), streams=(STREAM.replace(phases=(ChunkedOrder(0.5),), each=80),),
        entrants=(*tiny().entrants, steps, grid), seeds=1,
        protocols=(Continual(batch=20), Episodic(batch=20, steps=3, skip=1, select="oracle")),
    )  # fmt: skip
    done = bench(suite, tmp_path)
    assert done.failed == 0 and len(done.results) == len(cells(suite)) == 5 + 4
    score = {(r.entrant, r.protocol[:8]): r.readings["accuracy"].values[0] for r in done.results}
    assert score["Tent, 2 settings", "Episodic"] >= score["Tent", "Episodic"]
