"""trackio itself, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("trackio", reason="the trackio extra is not installed")

FOLLOWED = """
import json, sys
from homeostat.core.run import Event
from homeostat.integrate import Trackio, export

with Trackio("cameras", "north", settings={"site": "north"}) as tracker:
    export(sys.argv[1], tracker)
with Trackio("cameras", "live") as live:
    live(Event("window", 1, values={"served": "source", "accuracy": 0.5}))
    live(Event("commit", 1, values={"served": "EATA", "why": "better"}))
with Trackio("cameras", "live", resume=True) as again:
    again(Event("window", 2, values={"accuracy": 0.75}))
from trackio.sqlite_storage import SQLiteStorage as S
logs = {name: S.get_logs("cameras", name) for name in S.get_runs("cameras")}
said = {"logs": logs, "config": S.get_run_config("cameras", "north"), "failed": tracker.failed + live.failed,
        "files": [a["name"] for a in S.get_artifacts("cameras")], "alerts": S.get_alert_count("cameras")}
print("SAID" + json.dumps(said, default=str))
"""
"""In a process of its own: trackio reads where its folder is when it is imported."""


def test_a_store_and_events_become_runs(tmp_path, corrected):
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FOLLOWED, str(corrected)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.split("SAID")[1].splitlines()[0])
    assert set(said["logs"]) == {"north", "live"} and said["failed"] == 0
    north = [log for log in said["logs"]["north"] if "entropy" in log]
    assert [log["step"] for log in north] == list(range(20)) and all("accuracy" in log for log in north)
    live = {log["step"]: log["accuracy"] for log in said["logs"]["live"] if "accuracy" in log}
    assert live == {0: 0.5, 1: 0.75}
    assert said["config"]["site"] == "north" and said["config"]["Plan.window"] == 50
    assert "report-html" in said["files"] and said["alerts"] >= 2
