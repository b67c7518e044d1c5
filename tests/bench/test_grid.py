"""Cells, their keys, what is computed and what is kept, and the same bits wherever they are computed."""

from __future__ import annotations

import dataclasses
import importlib.util
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from homeostat.adapt import EATA, BatchNormBlend, PriorCorrection, Source, Tent
from homeostat.bench import (
    Axis,
    Continual,
    Episodic,
    Looped,
    Measured,
    Named,
    Refitted,
    Result,
    Results,
    Setting,
    Stream,
    Sweep,
    bench,
    grid as grids_module,
    open_suite,
    shipped,
)  # fmt: skip
from homeostat.bench.grid import cells
from homeostat.bench.streams import drawn
from homeostat.bench.workers import workers
from homeostat.core import reach
from homeostat.core.data import Joined
from homeostat.core.errors import InputError, MissingPart, SpecError, StoreError
from homeostat.core.probe import prequential
from homeostat.core.run import Event, Run
from homeostat.core.world import World
from homeostat.probe import ECE, Accuracy
from homeostat.shift import Clean, Corrupt
from tests.bench.grids import NET, NOISE, SETTING, STREAM, Counter, Dies, Raises, tiny


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny suite, computed here."""
    return bench(tiny(), tmp_path_factory.mktemp("bench"))


def test_every_cell_is_computed_once_and_then_kept(done: Any) -> None:
    assert (done.computed, done.kept, done.failed, len(done.results)) == (6, 0, 0, 6)
    again = bench(tiny(), done.path.parent)
    assert (again.computed, again.kept) == (0, 6) and again.results == done.results


def test_a_cell_gives_what_the_parts_give_by_hand(done: Any) -> None:
    found = next(r for r in done.results if r.entrant == "Tent" and r.seed == 1)
    assert SETTING.before is not None and SETTING.pool is not None
    net, run = NET.build(Run(scratch=done.path.parent / "cache")), Run(seed=1)
    parts = drawn(SETTING.pool.read(), STREAM.phases, STREAM.each, net, run)
    model = Tent()(net, World(source=SETTING.before.read(), target=parts[0][:20].unlabelled()), run=run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seen = prequential(model, Joined(parts), ["out", "y"], batch=20)
    torch.set_num_threads(threads)
    right = (seen.logits.argmax(1) == seen.labels).double()
    assert found.readings["accuracy"].values == (float(right[:60].mean()), float(right[60:].mean()))
    assert found.windows == tuple(pytest.approx(float(w.mean()), abs=1e-6) for w in right.split(25))
    assert found.phases == ("clean", "gaussian noise 3") and found.samples == 120


def test_more_seeds_entrants_and_streams_add_cells_and_keep_what_is_there(done: Any, tmp_path: Path) -> None:
    one = bench(tiny(), tmp_path, seeds=1)
    more = bench(tiny(), tmp_path)
    assert (one.computed, more.computed, more.kept) == (3, 3, 3)
    wider = bench(tiny(entrants=(Source(), BatchNormBlend(), Tent(), PriorCorrection())), tmp_path)
    assert (wider.computed, wider.kept) == (2, 6)
    assert [r.readings for r in more.results] == [r.readings for r in done.results]


def test_names_are_labels_and_change_no_key(tmp_path: Path) -> None:
    bench(tiny(), tmp_path)
    renamed = tiny(settings=(SETTING.replace(name="numbers"),), streams=(STREAM.replace(name="hiss"),), name="other")
    found = bench(renamed, tmp_path)
    assert found.computed == 0
    assert {(r.suite, r.setting, r.stream) for r in found.results} == {("other", "numbers", "hiss")}


@pytest.mark.parametrize(
    "changes",
    [
        {"streams": (Stream("noise", (Clean(), Corrupt("gaussian_noise", 4)), each=60),)},
        {"streams": (STREAM.replace(each=61),)},
        {"protocols": (Continual(batch=30),)},
        {"probes": (Accuracy(), ECE())},
        {"settings": (SETTING.replace(pool=SETTING.pool.replace(start=901)),)},  # type: ignore[union-attr]
    ],
)
def test_whatever_its_numbers_depend_on_changes_a_key(changes: dict[str, Any]) -> None:
    before, now = ({cell.key for cell in cells(suite)} for suite in (tiny(), tiny(**changes)))
    assert not before & now


def test_changed_code_changes_the_keys_of_the_cells_that_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {(cell.name, cell.seed): cell.key for cell in cells(tiny())}
    said, tent = reach._said, reach._file("homeostat.adapt.tent")
    monkeypatch.setattr(reach, "_said", lambda file: "changed" if file == tent else said(file))
    now = {(cell.name, cell.seed): cell.key for cell in cells(tiny())}
    assert {name for name in before if before[name] != now[name]} == {("Tent", 0), ("Tent", 1)}


def test_cells_do_not_reach_reports_statistics_or_the_loop() -> None:
    found = reach.reached([grids_module.COMPUTING, "homeostat.adapt.tent"])
    strange = ("loop.loop", "loop.controller", "bench.summary", "bench.comparisons", "bench.runner", "cli")
    assert not [name for name in found if any(name.endswith(part) for part in strange)]


def test_weights_in_a_file_are_part_of_the_key(tmp_path: Path) -> None:
    import homeostat as hs

    net = NET.build()
    keys = []
    for scale in (1.0, 1.5):
        with torch.no_grad():
            next(net.parameters()).mul_(scale)
        hs.save(net, tmp_path / "net")
        made = cells(tiny(settings=(SETTING.replace(model=str(tmp_path / "net")),)))
        keys.append({cell.key for cell in made})
    assert not keys[0] & keys[1]


def test_failed_cells_are_kept_with_their_error_and_tried_again_on_request(tmp_path: Path) -> None:
    suite = tiny(entrants=(Source(), Raises("the sky is falling")), seeds=1)
    first = bench(suite, tmp_path)
    assert (first.computed, first.failed) == (2, 1)
    (bad,) = [r for r in first.results if r.status == "failed"]
    assert bad.error.startswith("RuntimeError: the sky is falling\n") and "grids.py" in bad.error
    again = bench(suite, tmp_path)
    assert (again.computed, again.failed) == (0, 1)
    retried = bench(suite, tmp_path, retry=True)
    assert (retried.computed, retried.kept) == (1, 1)
    with sqlite3.connect(retried.path) as link:  # nothing that was written is gone
        assert link.execute("select count(*) from cells").fetchone() == (3,)


def test_processes_give_the_same_bits_and_what_dies_takes_nothing_with_it(done: Any, tmp_path: Path) -> None:
    made = bench(tiny(entrants=(*tiny().entrants, Dies()), seeds=1), tmp_path, on="processes", count=2)
    alive = [r for r in made.results if r.entrant != "Dies"]
    assert [(r.entrant, r.readings, r.windows) for r in alive] == [
        (r.entrant, r.readings, r.windows) for r in done.results if r.seed == 0
    ]
    (dead,) = [r for r in made.results if r.entrant == "Dies"]
    assert dead.status == "failed" and "ended without a word" in dead.error


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.nightly
def test_ray_gives_the_same_bits(done: Any, tmp_path: Path) -> None:
    made = bench(tiny(), tmp_path, on="ray", count=2)
    assert [(r.readings, r.windows, r.error) for r in made.results] == [
        (r.readings, r.windows, r.error) for r in done.results
    ]


def test_a_kill_loses_what_was_being_computed_and_nothing_else(done: Any, tmp_path: Path) -> None:
    seen = []

    def interrupt(event: Event) -> None:
        seen.append(event)
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(tiny(), tmp_path, watch=interrupt)
    assert len(Results(tmp_path / "results.sqlite").read()) == 4
    rest = bench(tiny(), tmp_path)
    assert (rest.computed, rest.kept) == (2, 4)
    assert [r.readings for r in rest.results] == [r.readings for r in done.results]
    fractions = [event.values["fraction"] for event in seen]
    assert fractions == sorted(fractions) and 0 < fractions[0] < 1


def test_a_sweep_is_an_entrant_for_each_combination_and_costs_nothing_twice(tmp_path: Path) -> None:
    sweep = Sweep(EATA(), (Axis("margin", (0.2, 0.4)), Axis("optimizer.lr", (1e-3,))))
    made = bench(tiny(entrants=(Source(), EATA(margin=0.2).replace(optimizer=EATA().optimizer.replace(lr=1e-3)), sweep),
                      seeds=1), tmp_path)  # fmt: skip
    names = {r.entrant: r.sweep for r in made.results}
    assert names["EATA[margin=0.2, optimizer.lr=0.001]"] == "EATA" and len(made.results) == 4
    assert made.computed == 3  # the plain one is a member, too
    assert {"accuracy", "entropy"} == set(made.results[0].readings)  # by which the rule without labels chooses


def test_a_phase_can_only_be_answered_by_who_can(tmp_path: Path) -> None:
    entrants = (Source(), Refitted(), Looped((BatchNormBlend(),)))
    found = cells(tiny(entrants=entrants, protocols=(Continual(), Continual(labels=8), Episodic()), seeds=1))
    assert {(cell.name, cell.protocol.called()) for cell in found} == {
        *(("Source", name) for name in ("Continual", "Continual(labels=8)", "Episodic")),
        ("Refitted", "Continual(labels=8)"), ("Looped", "Continual"), ("Looped", "Continual(labels=8)"),
    }  # fmt: skip


def test_the_loop_and_a_refit_are_entrants(tmp_path: Path) -> None:
    suite = tiny(
        entrants=(Source(), Refitted(every=2), Looped((BatchNormBlend(),)), Named("mine", Source())),
        protocols=(Continual(batch=30, labels=30),), seeds=1,
    )  # fmt: skip
    by = {r.entrant: r for r in bench(suite, tmp_path).results}
    assert not [r.error for r in by.values() if r.error]
    assert by["mine"].readings == by["Source"].readings
    assert by["Refitted"].windows[0] == by["Source"].windows[0]  # nothing was learnt yet
    assert by["Refitted"].readings != by["Source"].readings
    assert by["Looped"].samples == 120 and by["Looped"].about["alarms"] >= 0


def test_each_seed_may_train_a_network_of_its_own(tmp_path: Path) -> None:
    setting = SETTING.replace(retrain=True)
    own = bench(tiny(settings=(setting,), entrants=(Source(),)), tmp_path)
    same = bench(tiny(entrants=(Source(),)), tmp_path)
    assert own.results[0].readings == same.results[0].readings  # seed 0 is the one network
    assert own.results[1].readings != same.results[1].readings


def test_an_online_method_starts_anew_in_every_cell(tmp_path: Path) -> None:
    made = bench(tiny(entrants=(Counter(),), streams=(STREAM, STREAM.replace(name="again")), seeds=1), tmp_path)
    assert made.computed == 1 and len(made.results) == 2  # two streams that are one, by other names


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tiny(entrants=(Tent(), Tent())), "'Tent' comes twice"),
        (lambda: tiny(name="a/b"), "name a folder"),
        (lambda: tiny(streams=()), "no streams"),
        (lambda: tiny(settings=(SETTING.replace(streams=("nois",)),)), "Did you mean 'noise'"),
        (lambda: Sweep(EATA(), (Axis("margn", (1.0,)),)), "Did you mean 'margin'"),
        (lambda: Sweep(EATA(), (Axis("margin.lr", (1.0,)),)), "has no field 'lr'"),
        (lambda: Sweep(EATA()), "needs axes"),
        (lambda: Setting("a", "folder", pool=SETTING.pool), "needs before"),
        (lambda: Setting("a", "folder", SETTING.before, SETTING.pool, retrain=True), "cannot retrain"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()


def test_suites_that_ship_are_read_and_a_wrong_name_is_helped() -> None:
    assert {"tta-small", "ttab-small", "loop-small", "corruption-small"} <= set(shipped())
    for name in shipped():
        assert open_suite(name).name == name and open_suite(name).seeds >= 5
    with pytest.raises(MissingPart, match="Did you mean 'tta-small'"):
        open_suite("tta-smal")


def test_a_suite_in_a_file_is_read_with_lines_in_its_errors(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(tiny().to_config(), sort_keys=False))
    assert open_suite(path) == tiny()
    path.write_text(path.read_text().replace("severity: 3", "severty: 3"))
    with pytest.raises(SpecError, match=r"suite.yaml, line \d+: Corrupt has no field 'severty'"):
        open_suite(path)


def test_workers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="'here', 'processes' or 'ray'"):
        workers("moon", 1)
    with pytest.raises(InputError, match="at least one"):
        workers("here", 0)
    with pytest.raises(InputError, match="Ray cluster"):
        workers("here", 1, "auto")


def test_results_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "deep" / "r.sqlite")
    assert results.read() == []
    one = Result(
        "k", "s", "net", "noise", "Continual", "EATA", 0, phases=("a", "b"), windows=(0.5, 0.25), samples=9,
        readings={"accuracy": Measured((0.5, 1.0), "higher", "fraction")}, about={"torch": "2"}, at="now",
    )  # fmt: skip
    results.add(one)
    results.add(dataclasses.replace(one, key="l", seed=1, status="failed", error="x", readings={}))
    results.add(dataclasses.replace(one, windows=(0.1, 0.2)))
    assert [r.key for r in results] == ["l", "k"] and results.read(["k", "m"])[0].windows == (0.1, 0.2)
    assert len(results.to_pandas()) == 2 and set(results.to_pandas()["what"]) == {"a", "b"}


def test_a_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Results(tmp_path / "r.sqlite")
    with sqlite3.connect(tmp_path / "o.sqlite") as link:
        link.execute("create table other (x)")
    with pytest.raises(StoreError, match="no results that this version reads"):
        Results(tmp_path / "o.sqlite")


def test_noise_is_what_the_stream_says() -> None:
    assert STREAM.phrases() == ("clean", "gaussian noise 3") and NOISE in STREAM.phases


def test_the_suite_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    path = tmp_path / "suite.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    made = open_suite(path)
    assert [stream.name for stream in made.streams if stream.tuning] == ["other noise"]
    assert len(made.rivals()) == 7 and made.settings[0].model == str(tmp_path / "nets" / "shop")
