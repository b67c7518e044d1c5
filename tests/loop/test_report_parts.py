"""What the report is made of: the best in hindsight, costs, what is lost on data from before, pages, inputs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from homeostat.core.data import Tensors
from homeostat.core.reading import Reading
from homeostat.core.trace import Entry, Trace
from homeostat.loop.judged import TRIED, Judged
from homeostat.loop.reporting import costs, hindsight
from homeostat.loop.reporting.page import MOST, Pages, report
from homeostat.loop.reporting.pictures import PICTURE_BYTES, shown_samples
from homeostat.loop.reporting.summary import Stream
from homeostat.loop.samples import FILES, Pair, Samples, Side
from homeostat.loop.store import Row

NAN = math.nan


def test_the_best_in_hindsight_is_the_best_constant_choice_in_each_piece():
    draws = np.random.default_rng(0)
    served = ["A"] * 6 + ["B"] * 6
    where = ["0"] * 4 + ["1"] * 8
    ours, theirs, other, third = draws.random((4, 12))
    other[:8], third[:8], other[10:], third[9:] = NAN, NAN, NAN, NAN
    found = hindsight.best(served, where, ours, theirs, {"C": other, "D": third})
    # Phase, what is served, and who is on trial: pieces 0-3, 4-5, 6-7, 8, 9, 10-11.
    for first, last in itertools.pairwise([0, 4, 6, 8, 9, 10, 12]):
        rivals = [v[first:last].mean() for v in (ours, theirs, other, third) if np.isfinite(v[first:last]).all()]
        assert found[first:last].mean() == pytest.approx(max(rivals))


def test_in_hindsight_nothing_is_said_where_no_label_judged_and_a_piece_never_loses():
    ours, theirs = np.array([0.5, NAN, 0.5, 0.4]), np.array([0.6, NAN, 0.3, 0.1])
    found = hindsight.best(["A"] * 4, [""] * 4, ours, theirs, {})
    assert np.isnan(found[1]) and found[[0, 2, 3]].tolist() == [0.5, 0.5, 0.4]
    assert hindsight.best([], [], np.empty(0), np.empty(0), {}).size == 0


def rows(passes=True, lost=0.03):
    cards = {"passes": {"EATA": 3.0, "Blend": 1.0, "source": 1.0}} if passes else {}
    verdicts = [{"name": "Blend", "word": "better", "lost": lost}, {"name": "EATA", "word": "refused", "lost": 0.4}]
    return [
        Row(2, "alarm", {"kind": "features"}),
        Row(2, "propose", {"tried": ["EATA", "Blend"], "left": {}, **cards}),
        Row(5, "decision", {"verdicts": [*verdicts, {"name": "source", "word": "better", "lost": 0.0}]}),
        Row(5, "commit", {"from": "source", "to": "Blend", "why": ""}),
        Row(8, "rollback", {"from": "Blend", "to": "source", "why": ""}),
        Row(8, "propose", {"tried": [], "left": {}}),
        Row(8, "keep", {"served": "source"}),
        *(Row(i, "window", {"served": "Blend" if 5 < i <= 8 else "source"}) for i in range(12)),
    ]


def test_passes_are_those_of_what_answers_watches_and_is_on_trial():
    found = costs.passes(rows(), Stream.of(rows(), Trace()))
    # Windows 3 to 5 have both candidates on trial, 6 to 8 are answered by Blend; the network as deployed always runs.
    assert found is not None and found.windows == 3
    assert found.mean == pytest.approx((12 * 1 + 3 * 4 + 3 * 1) / 12)
    assert found.trial == pytest.approx(5) and found.watching == pytest.approx((9 + 3) / 9)


def test_passes_of_an_older_journal_come_from_the_cards_or_are_not_known():
    known = [
        r if r.kind != "window" else Row(r.step, "window", {"served": "BatchNormBlend"}) for r in rows(False)[-12:]
    ]
    found = costs.passes(known, Stream.of(known, Trace()))
    assert found is not None and found.mean == 2.0 and math.isnan(found.trial)
    assert costs.passes(rows(False), Stream.of(rows(False), Trace())) is None, "no card is called Blend"


def test_what_was_lost_on_data_from_before_is_told_of_those_that_were_tried_on_them():
    found = costs.anchored(rows(), Stream.of(rows(), Trace()))
    assert [(a.name, a.lost, a.outcome, a.windows) for a in found] == [
        ("Blend", 0.03, "taken", 3), ("EATA", 0.4, "refused", 0),
    ]  # fmt: skip
    assert costs.anchored(rows(lost=None)[:3], Stream.of(rows(), Trace()))[0].name == "EATA"


def test_the_page_says_what_it_cost_and_what_was_kept(tmp_path):
    readings = (
        Reading("accuracy", 0.6),
        Reading("frozen", 0.5),
        Reading("memory", 812.4),
        Reading(TRIED + "EATA", 0.9),
    )
    trace = Trace(tuple(Entry(i, "", "", readings[: 4 if 2 < i <= 5 else 3]) for i in range(12)))
    start = Row(0, "start", {"accuracy_before": 0.862, "plan": {"Plan": {"anchor": 0.25}}})
    text = report([start, *rows()], trace, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "812 MiB" in text and ">2.25<" in text and ">5.00<" in text
    assert "−3.0 points" in text and "−40.0 points" in text and "more than 25 points lost" in text
    assert "right on 67.5%, 7.5 points more." in text, "0.9 in three windows of twelve, else 0.6"
    assert ">90.0%<" in text and "what answered was right on 60.0% over 3 windows" in text
    old = report(rows(lost=None)[:2] + rows()[-12:], Trace(), tmp_path / "b.html").read_text(encoding="utf-8")
    assert "no candidate was put to that test" in old and "Not kept" in old and "kept no example inputs" in old


def test_pages_hold_everything_in_order_or_the_two_ends():
    few = Pages.of(range(41), 20)
    assert list(few) == list(range(41)) and [len(page) for page in few.pages] == [20, 20, 1] and few.left == 0
    many = Pages.of(range(10 * MOST), 20)
    assert list(many) == [*range(MOST // 2), *range(10 * MOST - MOST // 2, 10 * MOST)] and many.left == 9 * MOST
    assert Pages.of([], 20).pages == []


# -- inputs


def window(step, x):
    return Tensors(x).load().replace(meta={"step": torch.full((len(x),), step)})


def test_inputs_are_kept_from_both_sides_of_a_shift(tmp_path):
    recent = [window(step, torch.full((6, 1, 8, 8), step / 10)) for step in (4, 5, 6, 7)]
    samples = Samples(tmp_path)
    samples.keep(7, recent, 2, Tensors(torch.zeros(9, 1, 8, 8)), 4)
    samples.keep(8, recent, 9, Tensors(torch.ones(9, 1, 8, 8)), 4)
    found = samples.read()
    assert (found[7].before.name, found[7].after.name) == ("windows 4 to 5", "windows 6 to 7")
    assert found[7].before.leaves["x"][:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.4, 0.5, 0.5], abs=1e-3)
    assert found[8].before.name == "data from before deployment" and bool((found[8].before.leaves["x"] == 1).all())


def test_what_is_kept_is_small_whatever_the_inputs_are(tmp_path):
    big = torch.rand(5, 3, 300, 200, generator=torch.Generator().manual_seed(0))
    for step, x in enumerate((big, torch.rand(5, 100_000), (big * 255).byte(), {"input_ids": torch.ones(5, 9).long()})):
        Samples(tmp_path).keep(step, [window(step, x)], 1, Tensors(x), 4)
    found = Samples(tmp_path).read()
    sizes = [file.stat().st_size for file in (tmp_path / "samples").iterdir()]
    assert len(sizes) == 4 and max(sizes) < 250_000
    kept, picture = found[0].after.leaves["x"], found[2].after.leaves["x"]
    assert kept.shape == (4, 3, 64, 43) and float(kept.mean()) == pytest.approx(float(big.mean()), abs=0.01)
    assert float((picture - kept).abs().max()) < 0.01, "bytes are pictures in 0..1"
    assert found[3].after.leaves["x.input_ids"].tolist() == [[1] * 9] * 4


def test_the_newest_files_stay_and_damaged_ones_are_passed_over(tmp_path):
    samples, x = Samples(tmp_path), torch.rand(3, 2)
    for step in range(FILES + 5):
        samples.keep(step, [window(step, x)], 1, Tensors(x), 2)
    assert sorted(samples.read()) == list(range(5, FILES + 5))
    (tmp_path / "samples" / "9.safetensors").write_bytes(b"cut")
    (tmp_path / "samples" / "notes.txt").write_text("somebody's")
    assert sorted(samples.read())[:5] == [5, 6, 7, 8, 10]
    assert Samples(tmp_path / "nowhere").read() == {}


def test_a_disk_that_takes_nothing_does_not_stop_the_loop(tmp_path):
    (tmp_path / "samples").write_text("a file is in the way")
    Samples(tmp_path).keep(1, [window(1, torch.rand(3, 2))], 1, Tensors(torch.rand(3, 2)), 2)
    assert (tmp_path / "samples").read_text() == "a file is in the way"


def test_what_cannot_be_kept_does_not_stop_the_loop_and_what_is_no_pair_is_passed_over(tmp_path):
    samples, odd = Samples(tmp_path), torch.rand(3, 2).to_sparse()
    samples.keep(1, [window(1, torch.rand(3, 2))], 1, Tensors({"another": torch.rand(3, 2)}), 2)
    assert samples.read() == {}, "nothing has the same name on both sides"
    batch = window(1, torch.rand(3, 2))
    samples.keep(2, [batch.replace(x=odd)], 1, Tensors(torch.rand(3, 2)), 2)
    assert samples.read() == {}


def test_a_loop_keeps_inputs_at_its_alarms_and_decides_the_same_without(problem, tmp_path):
    stream, told = problem.stream([(problem.CLEAN, 4), (problem.DARK, 10)]), []
    for count in (2, 0):
        with problem.loop(tmp_path / str(count), problem.net, plan=problem.PLAN.replace(samples=count)) as loop:
            judged = Judged(loop.store.path)
            judged.add(loop.run(stream, labels=problem.WINDOW))
            told.append([row for row in problem.told(loop) if row[1] not in ("start", "snapshot")])
            alarms = [row.step for row in loop.store.rows("alarm") if not row.content["again"]]
            proposed = [row for row in loop.store.rows("propose") if row.content["tried"]]
            decided = [v for row in loop.store.rows("decision") for v in row.content["verdicts"]]
    assert told[0] == told[1]
    found = Samples(tmp_path / "2").read()
    assert list(found) == alarms and len(alarms) > 0 and not (tmp_path / "0" / "samples").exists()
    pair = found[alarms[0]]
    assert pair.before.leaves["x"].shape == pair.after.leaves["x"].shape == (2, 1, 8, 8)
    assert float(pair.after.leaves["x"].mean()) < 0.5 * float(pair.before.leaves["x"].mean()), "it got dark"
    # What a report needs besides: costs, losses on data from before, and how right candidates on trial were.
    assert proposed[0].content["passes"].keys() == set(proposed[0].content["tried"])
    assert any(v["lost"] is not None for v in decided if v["word"] == "better")
    first = proposed[0].step + 1
    entry = next(entry for entry in judged.trace() if entry.step == first)
    assert {f"{TRIED}{name}" for name in proposed[0].content["tried"]} <= {reading.name for reading in entry.readings}
    before = next(entry for entry in judged.trace() if entry.step == first - 1)
    assert not any(reading.name.startswith(TRIED) for reading in before.readings)


def test_pictures_beyond_what_fits_become_smaller_and_fewer():
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pairs = {step: Pair(step, Side("a", {"x": x}), Side("b", {"x": x})) for step in range(200)}
    found = shown_samples(pairs)
    size = sum(len(png) for shown in found.values() for _, pngs in shown.sides for png in pngs)
    assert len(found) == 200 and size <= PICTURE_BYTES
    assert len(shown_samples({0: pairs[0]})[0].sides[0][1]) == 4


def test_values_beyond_pictures_are_shown_from_black_to_white_and_said():
    x = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)
    (shown,) = shown_samples({3: Pair(3, Side("a", {"x": x}), Side("b", {"x": x / 2}))}).values()
    assert shown.kind == "pictures" and "-2 to 2" in shown.note
    assert len(set(shown.sides[0][1]) | set(shown.sides[1][1])) == 2


def test_tokens_are_shown_as_text_where_a_tokenizer_reads_them_else_as_numbers():
    leaves = {"x.input_ids": torch.tensor([[72, 105, 0]]), "x.attention_mask": torch.tensor([[1, 1, 0]])}
    pairs = {1: Pair(1, Side("a", leaves), Side("b", leaves))}
    assert shown_samples(pairs, lambda ids: "".join(map(chr, ids)))[1].sides == [("a", ["Hi"]), ("b", ["Hi"])]
    plain = shown_samples(pairs)[1]
    assert plain.kind == "numbers" and plain.sides[0][1] == [["72", "105", "0"]]

    def broken(ids: list[int]) -> str:
        raise KeyError("no such token")

    assert "cannot be read" in shown_samples(pairs, broken)[1].sides[0][1][0]


def test_of_many_numbers_those_are_shown_that_moved():
    before = torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[:, [3, 21]] += 5
    shown = shown_samples({1: Pair(1, Side("a", {"x": before}), Side("b", {"x": after}))})[1]
    assert {"no. 3", "no. 21"} <= set(shown.columns) and len(shown.columns) == 8
    assert "8 of 30" in shown.note and float(shown.sides[1][1][0][list(shown.columns).index("no. 3")]) > 4.9
