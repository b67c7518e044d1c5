"""MLflow itself, with a database in a folder."""

from __future__ import annotations

import pytest

from homeostat.core.errors import InputError, TrackerError
from homeostat.core.run import Event
from homeostat.integrate import MLflow, export
from homeostat.loop import history

mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
pytest.importorskip("alembic", reason="mlflow-skinny has no local store that its newer releases allow")


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)  # artifacts of a database without a server lie in the folder one is in
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_store_becomes_a_run(uri, corrected):
    with MLflow("light & dark", "north", uri, tags={"site": "north"}) as tracker:
        export(corrected, tracker)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(tracker.run)
    assert run.info.run_name == "north" and run.info.status == "FINISHED" and run.data.tags["site"] == "north"
    assert run.data.params["Plan.window"] == "50"
    windows = history(corrected, ("window",))
    found = client.get_metric_history(tracker.run, "entropy")
    assert {m.step: m.value for m in found} == {row.step: row.content["entropy"] for row in windows}
    assert [m.timestamp for m in found] == [int(1000 * row.time) for row in windows]
    assert len(client.get_metric_history(tracker.run, "accuracy")) == 20
    assert {a.path for a in client.list_artifacts(tracker.run)} == {"report.html", "events.txt"}
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/events.txt")
    assert "commit: PriorCorrection in place of the network as deployed" in text
    assert mlflow.active_run() is None


def test_events_are_followed_and_an_earlier_run_goes_on(uri):
    with MLflow(uri=uri) as tracker:
        tracker(Event("window", 1, values={"served": "source", "accuracy": 0.5, "odd name (%)": 1}))
    assert tracker.failed == 0
    with MLflow(uri=uri, run=tracker.run) as again:
        again(Event("window", 2, values={"accuracy": 0.75}))
        for step in range(1200):
            again.log(step, {"loss": 1 / (1 + step)})
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert again.run == tracker.run and client.get_run(again.run).info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(again.run, "accuracy")] == [(0, 0.5), (1, 0.75)]
    assert len(client.get_metric_history(again.run, "loss")) == 1200
    assert "odd_name____" in client.get_run(again.run).data.metrics


def test_what_mlflow_does_not_know_is_our_error(uri):
    with pytest.raises(TrackerError, match="MLflow cannot go on"):
        MLflow(uri=uri, run="0" * 32)
    with pytest.raises(InputError, match="name is empty"):
        MLflow("", uri=uri)
