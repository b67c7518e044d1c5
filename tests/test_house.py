"""The house rules, read from the syntax tree: nothing unpickles, names say what a module does, imports stay light."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import homeostat
from homeostat.core.random import seed_for

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "homeostat"
MODULES = sorted(SOURCE.rglob("*.py"))
SCRIPTS = sorted(p for folder in ("tests", "claims", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.py"))

PICKLERS = {"pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "jsonpickle", "marshal", "shelve"}
UNPICKLING = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.jit.save",
    "torch.serialization.load",
    "torch.serialization.save",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.utils.model_zoo.load_url",
    "pandas.read_pickle",
    "numpy.lib.format.read_array",
}
RUNNERS = {"eval", "exec", "__import__"}
CONVERTER = SOURCE / "core" / "convert.py"
VAGUE = {"util", "utils", "helper", "helpers", "misc", "manager", "managers"}
LONGEST = 350
HEAVY = {"torch", "numpy", "transformers", "sklearn", "scipy", "pandas", "matplotlib"}


def absolute_names(tree: ast.AST) -> dict[str, str]:
    """What each imported local name stands for: `import torch as t` gives `{"t": "torch"}`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The absolute dotted name an expression stands for, or an empty string."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    """The absolute modules or names an import brings in, also when it is spelt as a call with a string."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        return [node.args[0].value] if isinstance(node.args[0].value, str) else []
    return []


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    """Whether the call has `keyword=value`, written out."""
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def numpy_may_unpickle(call: ast.Call, names: dict[str, str]) -> bool:
    """Whether a call could let NumPy unpickle: `allow_pickle` is there and is not plainly False, or may be there."""
    if any(k.arg == "allow_pickle" for k in call.keywords):
        return not says(call, "allow_pickle", False)
    hidden = any(k.arg is None for k in call.keywords) or any(isinstance(a, ast.Starred) for a in call.args)
    return dotted(call.func, names) == "numpy.load" and (hidden or len(call.args) > 2)


def offences(code: str, converter: bool = False) -> Iterator[str]:
    """`line: what` for everything in `code` that could run what a file says. A converter may read weights only."""
    tree = ast.parse(code)
    names = absolute_names(tree)
    trusted = {
        id(node.func)
        for node in ast.walk(tree)
        if converter and isinstance(node, ast.Call) and says(node, "weights_only", True)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for name in imported(node):
            if name.split(".")[0] in PICKLERS or (name in UNPICKLING and not converter):
                yield f"{line}: {name}"
        if isinstance(node, ast.Name) and node.id in RUNNERS and isinstance(node.ctx, ast.Load):
            yield f"{line}: {node.id}"
        name = dotted(node, names) if isinstance(node, ast.Attribute | ast.Name) else ""
        if name.removeprefix("builtins.") in RUNNERS and isinstance(node, ast.Attribute):
            yield f"{line}: {name}"
        if name in UNPICKLING and not (name == "torch.load" and id(node) in trusted):
            yield f"{line}: {name}"
        if isinstance(node, ast.Call):
            if numpy_may_unpickle(node, names):
                yield f"{line}: allow_pickle"
            if dotted(node.func, names) == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                fetched = f"{dotted(node.args[0], names)}.{node.args[1].value}"
                if fetched in UNPICKLING or fetched.removeprefix("builtins.") in RUNNERS:
                    yield f"{line}: {fetched}"


def torchvision_imports(code: str) -> list[str]:
    """The imports of torchvision in `code`."""
    return [n for node in ast.walk(ast.parse(code)) for n in imported(node) if n.split(".")[0] == "torchvision"]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_never_unpickles_or_runs_what_a_file_says(path):
    assert list(offences(path.read_text(), converter=path == CONVERTER)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import cloudpickle as safe",
        "from joblib import load",
        "def later():\n    import dill",
        "import importlib\nimportlib.import_module('marshal')",
        "import shelve as s, json",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import torch as t\nt.save({}, 'x')",
        "from torch import load",
        "from torch import serialization as s\ns.load('x')",
        "import torch\nread = torch.load",
        "import torch\ngetattr(torch, 'load')('x')",
        "import torch.hub\ntorch.hub.load('a', 'b')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None, True)",
        "import numpy as np\nnp.load('x', allow_pickle=trust)",
        "import numpy as np\nnp.load('x', **options)",
        "import pandas as pd\npd.read_pickle('x')",
        "eval('1')",
        "list(map(exec, lines))",
        "import builtins\nbuiltins.eval('1')",
        "__import__('os')",
    ],
)
def test_the_checker_finds_each_way_to_unpickle_or_run(code):
    assert list(offences(code))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "import torch\ntorch.compile(model)\nmodel.load('x')\nself.save('x')",
        "import numpy as np\nnp.load('x', allow_pickle=False)\nnp.load('x')",
        "from safetensors.torch import load_file",
        "from homeostat.core import load, save",
        "def pickle_free(): return 'pickle'",
        "import json\njson.load(open('x'))",
    ],
)
def test_the_checker_lets_harmless_code_pass(code):
    assert list(offences(code)) == []


def test_the_converter_may_read_weights_only_and_nothing_more():
    assert list(offences("import torch\ntorch.load('x', weights_only=True)", converter=True)) == []
    assert list(offences("from torch import load\nload('x', weights_only=True)", converter=True)) == []
    assert list(offences("import torch\ntorch.load('x')", converter=True))
    assert list(offences("import torch\ntorch.load('x', weights_only=False)", converter=True))
    assert list(offences("import torch\ntorch.hub.load('x', weights_only=True)", converter=True))
    assert list(offences("import pickle", converter=True))


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_is_named_for_what_it_does_and_fits_a_sitting(path):
    assert not VAGUE & set(path.relative_to(SOURCE).with_suffix("").parts)
    length = len(path.read_text().splitlines())
    assert length <= LONGEST, f"{length} lines, at most {LONGEST} are allowed: split the module by what it does"


def test_every_folder_is_a_package_because_the_import_rules_see_nothing_else():
    folders = {path.parent for path in MODULES}
    assert [short(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=short)
def test_torchvision_is_never_imported(path):
    assert torchvision_imports(path.read_text()) == []


def test_the_torchvision_check_sees_every_spelling():
    for code in (
        "import torchvision",
        "from torchvision.ops import nms",
        "def f():\n    import torchvision.transforms as T",
        "importlib.import_module('torchvision')",
    ):
        assert torchvision_imports(code), code


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter at the root of the repository that sees this source tree."""
    search = os.pathsep.join([environment.pop("search", ""), str(SOURCE.parent)]).strip(os.pathsep)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def heavy_imports(statement: str) -> set[str]:
    """Which heavy packages a statement imports in a fresh interpreter."""
    done = python("-c", f"import sys\n{statement}\nprint(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split())


@pytest.mark.skipif(not (SOURCE / "cli.py").exists() and not (SOURCE / "cli").exists(), reason="no command line yet")
def test_importing_the_command_line_imports_nothing_heavy():
    assert heavy_imports("import homeostat.cli") == set()


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_imports("import homeostat") == set()


def test_the_import_check_notices_a_heavy_import():
    assert heavy_imports("import scipy") == {"numpy", "scipy"}


SHAPED = """
from __future__ import annotations
from jaxtyping import Float
from torch import Tensor

def accuracy(logits: Float[Tensor, "batch classes"], labels: Float[Tensor, " batch"]) -> float:
    return 0.0
"""

CALLS_IT_WRONGLY = """
import pathlib

def pytest_sessionfinish(session):
    import torch, homeostat
    homeostat.__path__.append(str(pathlib.Path(__file__).parent))
    from homeostat import shaped
    from homeostat.core.random import seed_for
    calls = {
        "shape": lambda: shaped.accuracy(torch.zeros(4, 3), torch.zeros(5)),
        "type": lambda: seed_for(0, None),
    }
    for name, call in calls.items():
        try:
            call()
            print(f"{name} passed")
        except Exception as error:
            print(f"{name} refused by {type(error).__module__.split('.')[0]}")
"""


@pytest.mark.skipif(os.environ.get("HOMEOSTAT_NO_TYPECHECK") == "1", reason="shape checks are switched off")
def test_shapes_are_checked_in_every_module_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "shaped.py").write_text(SHAPED)
    monkeypatch.setattr(homeostat, "__path__", [*homeostat.__path__, str(tmp_path)])
    shaped = importlib.import_module("homeostat.shaped")
    monkeypatch.delitem(sys.modules, "homeostat.shaped")
    assert shaped.accuracy(torch.zeros(4, 3), torch.zeros(4)) == 0.0
    with pytest.raises(TypeCheckError):
        shaped.accuracy(torch.zeros(4, 3), torch.zeros(5))
    with pytest.raises(TypeCheckError):
        seed_for(0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("switch", "answer"), [("0", "refused by jaxtyping"), ("1", "passed")])
def test_shapes_are_checked_when_only_doctests_run_unless_switched_off(tmp_path, switch, answer):
    (tmp_path / "shaped.py").write_text(SHAPED)
    (tmp_path / "calls_it_wrongly.py").write_text(CALLS_IT_WRONGLY)
    options = ("-q", "-s", "-p", "no:cacheprovider", "-p", "calls_it_wrongly", "src/homeostat/core/random.py")
    done = python("-m", "pytest", *options, search=str(tmp_path), HOMEOSTAT_NO_TYPECHECK=switch)
    assert f"shape {answer}" in done.stdout, done.stdout + done.stderr
    assert f"type {answer}" in done.stdout, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("stub", sorted(SOURCE.rglob("__init__.pyi")), ids=short)
def test_no_module_is_named_like_a_public_name_of_its_package(stub):
    """Python puts a module's name into its package when it is imported, in place of what was there."""
    names = {alias.asname or alias.name for node in ast.walk(ast.parse(stub.read_text()))
             if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    assert names.isdisjoint(path.stem for path in stub.parent.glob("*.py"))
