"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), scope)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["Source", "BatchNormBlend", "EATA"]
    assert scope["logits"].shape == (100, 10)


def test_every_file_it_names_is_there():
    for name in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert name.startswith("http") or (README.parent / name).exists(), name
