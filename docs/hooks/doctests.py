"""Shows the runnable examples in docstrings as Python code; as they stand Markdown would take `>>>` for a quotation."""

from __future__ import annotations

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around each run of lines that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with every example, up to the next empty line, between fences."""
    made, inside = list[str](), False
    for line in [*text.split("\n"), ""]:
        if not inside and line.lstrip().startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())]
            made += ["", f"{indent}```pycon"] if made and made[-1].strip() else [f"{indent}```pycon"]
            inside = True
        elif inside and not line.strip():
            made.append(f"{indent}```")
            inside = False
        made.append(line)
    return "\n".join(made[:-1])
