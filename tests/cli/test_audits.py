from __future__ import annotations

import json
from pathlib import Path

import pytest

DEPLOYMENT = """
Deployment:
  model: {shop}/net
  before: {{NPZ: {{path: {shop}/before.npz}}}}
  stream: {{NPZ: {{path: {shop}/{stream}.npz}}}}
  remedies: [BatchNormBlend]
  plan: {{Plan: {{window: 50}}}}
  labels: {{OnDemand: {{calm: 4, trial: 20}}}}
  store: store
"""


@pytest.fixture
def file(shop: Path, tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT.format(shop=shop, stream="now"))
    return path


def test_a_deployment_whose_inputs_changed_is_told_so_before_and_after_it_ran(file, ends, prints, monkeypatch):
    code, out, _ = ends("audit", str(file), "--json")
    made = json.loads(out)
    states = {check["name"]: check["state"] for check in made["checks"]}
    assert code == 1 and made["failed"] == ["drift"]
    assert {name for name, state in states.items() if state == "not checked"} == {"rollback", "lineage", "explanation"}
    prints("run", str(file))
    code, out, _ = ends("audit", str(file.parent / "store"))
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 1 and rows[-1] == ["in all", "11 pass, 1 fail, 0 not checked"]
    assert [row[1] for row in rows if row[2:3] == ["fail"]] == ["drift"]


def test_a_deployment_in_good_order_ends_with_0(shop, tmp_path, ends):
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT.format(shop=shop, stream="before"))
    code, out, _ = ends("audit", str(path))
    assert code == 0 and "0 fail" in out


def test_a_file_that_is_not_there_is_named(tmp_path, ends):
    code, _, err = ends("audit", str(tmp_path / "nothing.yaml"))
    assert code == 2 and "nothing.yaml" in err and len(err.splitlines()) == 1
