"""What holds for every test and every doctest: shapes are checked, one thread, no network.

It lies at the root, and not in `tests/`, so that it is also read when only doctests of `src/` are run.
"""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if os.environ.get("HOMEOSTAT_NO_TYPECHECK") != "1":
    if "homeostat" in sys.modules:
        raise pytest.UsageError("homeostat was imported before conftest.py, so its shapes would go unchecked")
    from jaxtyping import install_import_hook

    install_import_hook("homeostat", "beartype.beartype")

import torch

torch.set_num_threads(1)
