"""Runs the Python of a page, block after block, and puts what each prints and shows beneath it.

The blocks of a page share their names, and run in a folder of their own. A block's last expression is shown as in a
notebook: a Matplotlib figure becomes a picture, and what has `_repr_html_` a table. The text for those who cannot see a
picture stands above its block, as `<!-- picture: what it shows -->`. A block that fails stops the build, with its line.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(?:<!-- picture: (?P<alt>.*?) -->\n+)?```python\n(?P<code>.*?)```", re.DOTALL)
PAGES = ("tutorials/", "gallery", "merging.md")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return play(markdown, page.file.src_uri) if page.file.src_uri.startswith(PAGES) else markdown


def play(markdown: str, name: str) -> str:
    """The page with its outputs.

    Args:
        markdown: the page.
        name: what errors call it.
    """
    # A module of its own, where dataclasses look up what their annotations name.
    module = types.ModuleType(f"page_{re.sub(r'[^a-z]+', '_', name)}")
    scope = module.__dict__

    def one(found: re.Match[str]) -> str:
        # Lines are counted on the page, so that a traceback names the place.
        line = markdown.count("\n", 0, found.start("code"))
        said, shown = ran(found["code"], name, line, scope)
        made = [f"```python\n{found['code']}```"]
        if said.strip():
            made.append(f"```text\n{said.rstrip()}\n```")
        if shown is not None:
            made.append(picture(shown, found["alt"], f"{name}, line {line + 1}"))
        return "\n\n".join(made)

    sys.modules[module.__name__] = module
    try:
        with in_a_folder_of_its_own():
            return BLOCK.sub(one, markdown)
    finally:
        del sys.modules[module.__name__]


def ran(code: str, name: str, line: int, scope: dict[str, Any]) -> tuple[str, Any]:
    """What a block prints, and the value of its last expression."""
    tree, value, said = ast.parse("\n" * line + code, name), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, name, "exec"), scope)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), scope)
    return said.getvalue(), value


def picture(shown: Any, alt: str | None, where: str) -> str:
    """HTML of a figure or table."""
    if hasattr(shown, "savefig"):
        if not alt:
            raise ValueError(f"{where}: a picture needs words: <!-- picture: what it shows --> above the block")
        made = io.BytesIO()
        shown.savefig(made, format="png", dpi=110, bbox_inches="tight")
        data = base64.b64encode(made.getvalue()).decode()
        return f'<img class="made" src="data:image/png;base64,{data}" alt="{alt}">'
    return shown._repr_html_() if hasattr(shown, "_repr_html_") else f"```text\n{shown!r}\n```"


@contextlib.contextmanager
def in_a_folder_of_its_own() -> Iterator[None]:
    """Tutorials write stores and checkpoints, which are gone with the folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
