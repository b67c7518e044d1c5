"""Which tests pin a system's numbers to an independent derivation, read from the tests' marks.

A test that holds a method against a closed form, a hand-worked value, plain loops over the definition, or another
library carries `@pytest.mark.exact("S058")`. The tests lie in a clone and not in an installed package; without them
nothing is known here.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

TESTS = Path(__file__).parents[3] / "tests"


@functools.cache
def exact_tests(folder: Path = TESTS) -> Mapping[str, tuple[str, ...]]:
    """Tests by the id of the system that they pin, as `tests/adapt/test_eata.py::test_name`.

    Args:
        folder: of the tests; those of a clone by default.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")) if (folder / "test_house.py").is_file() else []:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.exact":
                    for name in mark.args:
                        if isinstance(name, ast.Constant):
                            where = f"{folder.name}/{path.relative_to(folder).as_posix()}::{node.name}"
                            found.setdefault(str(name.value), []).append(where)
    return MappingProxyType({name: tuple(tests) for name, tests in found.items()})
