"""What a shell completes: names, options and values, asked for as bash asks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from homeostat.core.outline import outline

CODE = "import sys; sys.argv = ['homeostat']; from homeostat.cli import main; main()"


def completes(line: str) -> list[str]:
    """What bash is offered at the end of this line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_HOMEOSTAT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("homeostat pro", ["probe"]),
        ("homeostat apply EAT", ["EATA"]),
        ("homeostat apply EATA --mar", ["--margin"]),
        ("homeostat apply EATA --backward ", ["masked", "subset"]),
        ("homeostat apply EATA --optimizer S", ["SGD"]),
        ("homeostat shift Corrupt --name gl", ["glass_blur"]),
        ("homeostat shift Compose --shifts Clean,Corre", ["Clean,CorrelatedOrder"]),
        ("homeostat probe net data --probe EC", ["ECE"]),
        ("homeostat show EAT", ["EATA", "EATAOnline"]),
        ("homeostat list re", ["remedy", "reader"]),
        ("homeostat schema Depl", ["Deployment"]),
        ("homeostat apply EATTA --m", []),
        ("homeostat apply 'EATA(", []),
    ],
)
def test_names_options_and_choices(line, offered):
    assert completes(line) == offered


def test_all_remedies_are_offered():
    assert completes("homeostat apply ") == [entry.name for entry in outline("Remedy")]


def test_completing_a_name_imports_no_torch():
    line = "homeostat apply EAT"
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {CODE}"
    asked = {"COMP_WORDS": line, "COMP_CWORD": "2", "_HOMEOSTAT_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stderr.split() == ["False"] and done.stdout.split() == ["EATA"]
