"""Deployments: what a file says is what is served, and stores are not mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from homeostat.core.data import Data
from homeostat.core.errors import CheckpointError, InputError, MissingPart, SpecError, StoreError, UnknownName
from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash, save
from homeostat.core.spec import from_config
from homeostat.core.trace import Trace
from homeostat.data import NPZ, Digits
from homeostat.data.strings import Strings
from homeostat.data.tokenizers import ByteTokenizer
from homeostat.fit import Recipe
from homeostat.loop.deployment import Deployment, deploy, kept_deployment, open_stream, read_deployment, set_aside
from homeostat.loop.judged import Judged
from homeostat.loop.network import Network
from homeostat.loop.operate import EVENTS, history, rollback, status
from homeostat.loop.samples import Samples
from homeostat.loop.serving import in_words, phase_names, serve, windows_served, words_of, write_report
from homeostat.loop.store import Store
from homeostat.nn import ResNet
from homeostat.shift import Clean, Corrupt, Phases

TEXT = """
Deployment:
  model: net
  before: {NPZ: {path: before.npz}}
  stream: {NPZ: {path: stream.npz}}
  shift:
    Phases:
      shifts: [Clean, {LoopTestLight: {gain: 0.4, offset: -0.2}}]
  remedies: [{BatchNormBlend: {blend: 0.0}}]
  plan:
    Plan:
      {window: 25, trial: 3, verify: 2, patience: 6, snapshot: 7, monitor: {Monitor: {run_length: 200, block: 5}},
       diagnose: {ShiftKind: {simulations: 4, reference: 100}}}
  labels: 8
  store: out/store
"""


def archive(path: Path, data: Data) -> None:
    batch: Any = data.load()
    np.savez(path, x=batch.x.numpy(), y=batch.y.numpy())


@pytest.fixture
def folder(problem: Any, tmp_path: Path) -> Path:
    """A folder with a checkpoint, archives and `deployment.yaml`."""
    save(problem.net, tmp_path / "net")
    archive(tmp_path / "before.npz", problem.images(200, 2))
    archive(tmp_path / "stream.npz", problem.images(25 * 24, 5))
    (tmp_path / "deployment.yaml").write_text(TEXT)
    return tmp_path


@pytest.fixture
def deployment(folder: Path) -> Deployment:
    return read_deployment(folder / "deployment.yaml")


def edited(folder: Path, old: str, new: str) -> Path:
    assert old in TEXT
    (folder / "edited.yaml").write_text(TEXT.replace(old, new))
    return folder / "edited.yaml"


class Stopped(Exception):
    """What stands for a kill."""


def stop_at(window: int) -> Any:
    def watch(event: Event) -> None:
        if event.name == "window" and event.step == window:
            raise Stopped

    return watch


# ----------------------------------------------------------------------------------------------------- what a file says


def test_paths_are_read_from_the_files_folder_and_the_rest_survives_its_config(folder, deployment, monkeypatch):
    assert deployment.model == str(folder / "net") and deployment.store == str(folder / "out" / "store")
    assert deployment.before == NPZ(str(folder / "before.npz"))
    assert from_config(deployment.to_config(), Deployment) == deployment
    monkeypatch.chdir(folder)
    assert read_deployment("deployment.yaml") == deployment


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ("  labels: 8", "  label: 8", SpecError, r"line 14: Deployment has no field 'label'. Did you mean 'labels'"),
        ("  labels: 8", "  labels: -8", SpecError, r"line 14: .*must be >= 0"),
        ("path: stream.npz", "pth: stream.npz", SpecError, r"line 5: NPZ has no field 'pth'. Did you mean 'path'"),
        ("blend: 0.0", "blend: 3.0", SpecError, r"line 9: .*must be <= 1"),
        ("BatchNormBlend", "BatchNormBland", UnknownName, r"line 9: .*Did you mean 'BatchNormBlend'"),
        ("  model: net", "  model: {Network: {layout: {ResNet: {depht: 8}}}}", SpecError, r"line 3: ResNet has no arg"),
        ("  model: net", "  seed: 3", SpecError, r"line 2: Deployment needs model: a checkpoint's fol"),
        ("{NPZ: {path: before.npz}}", "{Clean: {}}", SpecError, r"line 4: .*it must be a Reader"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(folder, old, new, error, said):
    with pytest.raises(error, match=rf"edited.yaml, {said}"):
        read_deployment(edited(folder, old, new))


def test_the_shift_happens_to_the_stream_by_the_deployments_seed(deployment, folder):
    stream = open_stream(deployment).load()
    plain = NPZ(str(folder / "stream.npz")).read().load()
    assert torch.equal(stream.x[:300], plain.x[:300]) and torch.allclose(stream.x[300:], 0.4 * plain.x[300:] - 0.2)
    assert stream.meta["phase"].tolist() == [0] * 300 + [1] * 300
    assert torch.equal(open_stream(deployment.replace(shift=None)).load().x, plain.x)


# --------------------------------------------------------------------------------------------------------- serving


def test_a_deployment_is_served_as_the_same_loop_in_python_would(deployment, folder, problem):
    served = serve(deployment)
    loop, stream = deploy(deployment.replace(store=str(folder / "mine")))
    with loop:
        trace = loop.run(stream, labels=8)
    kinds = (*EVENTS, "window", "snapshot")
    journals = [
        [(r.step, r.kind, r.checkpoint) for r in history(f, kinds)] for f in (deployment.store, folder / "mine")
    ]
    assert journals[0] == journals[1] and served.windows == 24 and served.status.finished
    ours = [reading.value for entry in trace for reading in entry.readings if reading.name == "accuracy"]
    assert served.accuracy == pytest.approx(sum(ours) / len(ours))
    assert served.accuracy is not None and served.frozen is not None
    assert served.accuracy > served.frozen + 0.03 and served.status.served == "BatchNormBlend"
    page = served.report.read_text()
    assert "<h1>" in page and served.report == folder / "out" / "store" / "report.html"
    alarms = [row.step for row in history(deployment.store, ("alarm",)) if not row.content["again"]]
    assert alarms and list(Samples(deployment.store).read()) == alarms
    assert f"from after the shift found at window {alarms[0]}: window" in page
    assert "How often candidates on trial were right" not in page, "labels judge candidates while they are on trial"


def test_tokens_are_read_by_the_tokenizer_that_made_them(problem):
    texts = Strings(["a red apple", "to run"], [0, 1]).tokenized(ByteTokenizer(), length=16)
    words = words_of(problem.images(5, 0), texts)
    assert words is not None and words(texts.load().x["input_ids"][1].tolist()).startswith("to run")
    assert words_of(problem.images(5, 0)) is None


def test_served_again_at_the_end_of_its_stream_nothing_is_done(deployment, folder):
    first = serve(deployment)
    rows = [repr(row) for row in history(deployment.store, ("window", "snapshot", "commit"))]
    second = serve(deployment)
    assert second.windows == 0 and second.status.finished and second.accuracy == first.accuracy
    assert [repr(row) for row in history(deployment.store, ("window", "snapshot", "commit"))] == rows


def test_stopped_and_resumed_from_the_store_alone_it_ends_as_if_it_had_not_stopped(deployment, folder):
    whole = serve(deployment.replace(store=str(folder / "whole")))
    with pytest.raises(Stopped):
        serve(deployment, watch=stop_at(17))
    assert 0 < windows_served(Path(deployment.store)) < 24
    (folder / "deployment.yaml").unlink()
    (folder / "net").rename(folder / "gone")  # the store has the network
    moved = (folder / "out" / "store").rename(folder / "moved")
    again = serve(kept_deployment(moved))
    assert again.status.store == str(moved) and 0 < again.windows < 24 and again.status.finished
    assert again.accuracy == whole.accuracy and again.frozen == whole.frozen
    kinds = ("window", "alarm", "decision", "commit", "rollback", "keep")
    ours, theirs = (
        [(r.step, r.kind, r.checkpoint, {k: v for k, v in r.content.items() if k != "ms"}) for r in history(f, kinds)]
        for f in (moved, folder / "whole")
    )
    assert ours == theirs


def test_after_a_rollback_by_hand_the_resumed_run_serves_what_was_put_back(deployment):
    with pytest.raises(Stopped):
        serve(deployment, watch=stop_at(20))
    assert status(deployment.store).served == "BatchNormBlend"
    at = windows_served(Path(deployment.store))
    rollback(deployment.store, why="complaints")
    loop, _ = deploy(deployment)
    with loop:
        assert loop.progress.served == "source" and loop.progress.at == at


def test_failures_reach_the_hooks_and_the_caller(deployment, caplog):
    (Path(deployment.model)).rename(Path(deployment.model + "2"))
    with pytest.raises(MissingPart, match="no homeostat checkpoint"):
        serve(deployment.replace(alerts=from_config({"Deployment": deployment.to_config()["Deployment"] | {
            "alerts": ["LogAlert"]}}, Deployment).alerts))  # fmt: skip
    assert "the loop stopped: there is no homeostat checkpoint" in caplog.text


def test_commits_reach_the_hooks(deployment, caplog):
    serve(from_config({"Deployment": deployment.to_config()["Deployment"] | {"alerts": ["LogAlert"]}}, Deployment))
    assert "commit: BatchNormBlend is served" in caplog.text and deployment.store in caplog.text


# --------------------------------------------------------------------------------------------- stores are not mixed up


def test_another_deployment_on_the_same_store_is_refused_and_names_what_differs(deployment, folder):
    with pytest.raises(Stopped):
        serve(deployment, watch=stop_at(8))
    for changes, said in (({"labels": 7}, "labels differs"), ({"seed": 1, "shift": None}, "shift, seed differ")):
        with pytest.raises(StoreError, match=f"was begun with another deployment: {said}"):
            serve(deployment.replace(**changes))
    quiet = from_config({"Deployment": deployment.to_config()["Deployment"] | {"alerts": ["LogAlert"]}}, Deployment)
    assert serve(quiet).windows > 0, "alerts may change on the way"
    assert kept_deployment(deployment.store).alerts == quiet.alerts


def test_fresh_sets_the_old_store_aside_and_begins_anew(deployment, folder):
    with pytest.raises(Stopped):
        serve(deployment, watch=stop_at(8))
    other = deployment.replace(labels=5)
    assert serve(other, fresh=True).windows == 24
    assert serve(other, fresh=True).windows == 24
    old = folder / "out"
    assert sorted(path.name for path in old.iterdir()) == ["store", "store.1", "store.2"]
    assert kept_deployment(old / "store.1").labels == 8 and kept_deployment(old / "store.2").labels == 5
    assert status(old / "store.1").windows < 24


def test_what_cannot_be_read_is_found_before_the_old_store_is_set_aside(deployment, folder):
    with pytest.raises(Stopped):
        serve(deployment, watch=stop_at(8))
    for wrong in (deployment.replace(model=str(folder / "none")), deployment.replace(before=NPZ(str(folder / "none")))):
        with pytest.raises(MissingPart, match="none"):
            serve(wrong, fresh=True)
    assert [path.name for path in (folder / "out").iterdir()] == ["store"]


def test_a_store_that_is_served_or_is_no_store_is_not_set_aside(deployment, folder):
    with Store(folder / "out" / "store"), pytest.raises(StoreError, match="another process"):
        set_aside(folder / "out" / "store")
    with pytest.raises(StoreError, match="is not a store"):
        set_aside(folder)
    assert set_aside(folder / "nothing") is None and (folder / "net").exists()


def test_a_failed_beginning_does_not_bind_the_store(deployment, folder):
    with pytest.raises(InputError):
        serve(deployment.replace(before=NPZ(str(folder / "before.npz"), stop=20)))
    assert serve(deployment).windows == 24


def test_a_store_begun_from_python_is_neither_resumed_nor_taken_over(deployment, folder, problem):
    with problem.loop(folder / "out" / "store", problem.net) as loop:
        loop.run(problem.stream([(problem.CLEAN, 2)]))
    for call in (lambda: serve(deployment), lambda: kept_deployment(folder / "out" / "store")):
        with pytest.raises(StoreError, match="begun from Python"):
            call()
    assert status(folder / "out" / "store").windows == 2


# ----------------------------------------------------------------------------------------------- judged, and the report


def test_the_report_is_written_again_with_phases_and_accuracies_while_another_serves(deployment, folder):
    served = serve(deployment)
    first = served.report.read_text()
    with Store(deployment.store):
        again = write_report(deployment.store, folder / "again.html").read_text()
    assert again == first and "LoopTestLight" in first and "as it is" in first
    assert f"{100 * (served.accuracy or 0):.1f}%" in first
    (folder / "stream.npz").unlink()
    assert "LoopTestLight" in write_report(deployment.store, folder / "less.html").read_text()
    (Path(deployment.store) / "judged.jsonl").unlink()
    assert "labels that came" in write_report(deployment.store).read_text()


def test_what_labels_said_is_kept_over_kills_and_cut_lines(tmp_path):
    judged = Judged(tmp_path)
    for step, accuracy in ((1, 0.5), (2, 0.6), (2, 0.8)):
        values = {"served": "EATA", "accuracy": accuracy, "frozen": 0.4, "seconds": 0.1}
        judged(Event("window", step, 3, values))
    judged(Event("train", 1, 3))
    with open(judged.path, "a") as file:
        file.write('{"step": 2, "accur')
    again = Judged(tmp_path)
    again(Event("window", 3, 3, {"served": "source", "accuracy": 0.2, "frozen": 0.4, "where": "1"}))
    trace = Judged(tmp_path).trace()
    assert [(e.step, e.subject, e.where, e["accuracy"].value) for e in trace] == [
        (0, "EATA", "", 0.5), (1, "EATA", "", 0.8), (2, "source", "1", 0.2),
    ]  # fmt: skip
    assert Judged(tmp_path).means() == pytest.approx((0.5, 0.4))


def test_phases_are_added_from_the_trace_and_nothing_is_written_twice(tmp_path):
    judged = Judged(tmp_path)
    judged(Event("window", 1, 2, {"served": "source", "accuracy": 0.5, "frozen": 0.5}))
    entry = judged.trace().entries[0]
    judged.add(Trace((entry,)))
    assert len(judged.path.read_text().splitlines()) == 1
    judged.add(Trace((type(entry)(0, "source", "4", entry.readings),)))
    assert [e.where for e in Judged(tmp_path).trace()] == ["4"]


def test_a_note_that_cannot_be_written_stops_nobody(tmp_path):
    judged = Judged(tmp_path / "none")
    judged(Event("window", 1, 2, {"served": "source"}))
    assert len(judged.trace()) == 0 and judged.means() == (None, None)


def test_phases_are_called_by_their_shift():
    assert (
        phase_names(Phases((Clean(), Corrupt("fog", 5)), cycles=2))
        == ["as it is", "Corrupt (name fog, severity 5)"] * 2
    )
    assert phase_names(Corrupt("fog")) == phase_names(None) == []
    assert in_words(Digits(stop=5)) == "Digits (stop 5)"


# ----------------------------------------------------------------------------------------------------------- networks


def test_a_layout_with_weights_from_a_file_is_that_network(tmp_path):
    net = ResNet(depth=8, in_channels=1, width=4, seed=7).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    layout = {"ResNet": {"depth": 8, "in_channels": 1, "width": 4}}
    built = Network(layout, weights=str(tmp_path / "w.safetensors"), mean=(0.3,), std=(0.4,)).build()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(built(x), net((x - 0.3) / 0.4)) and not built.training
    with pytest.raises(CheckpointError, match="do not fit the ResNet"):
        Network({"ResNet": {"depth": 14}}, weights=str(tmp_path / "w.safetensors")).build()
    with pytest.raises(MissingPart, match="there are no weights at"):
        Network("ResNet", weights=str(tmp_path / "none")).build()


def test_a_network_trained_on_the_spot_learns_and_is_found_again_in_the_scratch_folder(tmp_path):
    network = Network({"MLP": {"inputs": 64, "hidden": [16]}}, data=Digits(stop=600), recipe=Recipe(epochs=8, batch=32))
    seen: list[str] = []
    run = Run(scratch=tmp_path, watch=lambda event: seen.append(event.name))
    first = network.build(run)
    batch = Digits(start=600, stop=900).read().load()
    assert float((first(batch.x).argmax(1) == batch.labels).float().mean()) > 0.8 and "train" in seen
    seen.clear()
    assert content_hash(network.build(run)) == content_hash(first) and "train" not in seen


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (None, "there is none"),
        ({"ResNet": {}, "MLP": {}}, "one name"),
        ({"ResNet": 20}, "its arguments are a mapping"),
        ("ResNut", "Did you mean 'ResNet'"),
        ("EATA", "EATA is no network"),
        ({"ResNet": {"depht": 8}}, "no argument 'depht'. Did you mean 'depth'"),
        ({"MLP": {"hidden": [3]}}, "MLP needs inputs"),
    ],
)
def test_a_layout_that_is_no_network_is_refused(layout, said):
    with pytest.raises((SpecError, UnknownName), match=said):
        Network(layout, weights="w")


def test_arguments_of_the_wrong_kind_or_range_are_our_errors():
    for layout in ({"ResNet": {"depth": "deep"}}, {"ResNet": {"depth": 9}}, {"MLP": {"inputs": [1]}}):
        with pytest.raises(SpecError):
            Network(layout, data=Digits()).build()


def test_a_network_of_guesses_is_refused_and_so_are_half_given_statistics():
    with pytest.raises(SpecError, match="neither weights nor data"):
        Network("ResNet")
    with pytest.raises(SpecError, match="mean has 1 numbers and std 0"):
        Network("ResNet", weights="w", mean=(0.5,))


# ----------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_deployments(path):
    deployment = read_deployment(path)
    assert from_config(deployment.to_config(), Deployment) == deployment
    assert Path(deployment.store).is_relative_to(path.parents[1] / "runs")
