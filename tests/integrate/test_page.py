"""The page of integrations runs as it stands, and nothing needs an optional package to be imported."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCK = re.compile(r"(?:<!-- needs: ([\w, ]+) -->\n)?```python\n(.*?)```", re.DOTALL)


def test_every_piece_of_code_runs_where_its_packages_are_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    scope: dict = {}
    pieces = BLOCK.findall(PAGE.read_text())
    assert len(pieces) >= 8
    for needs, code in pieces:
        if all(importlib.util.find_spec(name) for name in needs.split(", ") if name):
            exec(compile(code, PAGE.name, "exec"), scope)
    said = capsys.readouterr().out
    assert re.search(r"^outlier_share 0\.\d+ \[", said, re.MULTILINE) and "homeostat_windows_total" in said
    assert scope["answers"].shape == (50, 2)
    assert "later" not in scope or scope["later"].unknown == {}


@pytest.mark.parametrize("missing", ["pandas,transformers,accelerate,datasets,mlflow,trackio"])
def test_every_module_is_imported_without_the_optional_packages(missing):
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({missing.split(',')}))\n"
        "for name in ('integrate', 'nn', 'data', 'probe', 'loop'):\n"
        "    package = importlib.import_module(f'homeostat.{name}')\n"
        "    found = [getattr(package, public) for public in package.__all__]\n"
        "print(len(found))"
    )
    path = os.pathsep.join([str(PAGE.parents[1] / "src"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]
