"""The pages whose code the docs build runs: it runs, and a block that fails or a picture without words stops it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("tutorials/*.md"))


@pytest.fixture(scope="module")
def played() -> ModuleType:
    spec = importlib.util.spec_from_file_location("played", DOCS / "hooks" / "played.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [*PAGES, "merging.md"])
def test_tutorials_run_as_they_stand(page, played):
    made = played.play((DOCS / page).read_text(), page)
    assert made.count("```text") >= 1, "it shows something"


def test_there_are_five_tutorials_and_all_are_in_the_contents():
    assert len(PAGES) == 5
    contents = (DOCS.parent / "mkdocs.yml").read_text()
    assert all(page in contents for page in PAGES)


def test_outputs_stand_beneath_their_block_and_names_are_shared(played):
    made = played.play("a\n```python\nx = 2\n```\nb\n```python\nprint(x + 1)\nx\n```\n", "page.md")
    assert re.findall(r"```text\n(.*?)\n```", made, re.DOTALL) == ["3", "2"] and made.startswith("a\n")


def test_a_block_that_fails_names_the_line_of_the_page(played):
    here = Path.cwd()
    with pytest.raises(ZeroDivisionError) as error:
        played.play("one\n\n```python\ny = 1\n1 / 0\n```\n", "page.md")
    last = error.traceback[-1]
    assert str(last.path).endswith("page.md") and last.lineno + 1 == 5
    assert Path.cwd() == here


def test_a_picture_needs_words(played):
    scope = "class Figure:\n    def savefig(self, file, **_):\n        file.write(b'png')\nFigure()\n"
    with pytest.raises(ValueError, match="a picture needs words"):
        played.play(f"```python\n{scope}```", "page.md")
    made = played.play(f"<!-- picture: a curve -->\n```python\n{scope}```", "page.md")
    assert 'alt="a curve"' in made and "<!--" not in made
