"""Fixtures and hypothesis profiles shared by the tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("dev", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _device() -> ModuleType:
    found = importlib.util.spec_from_file_location("strict_device", Path(__file__).with_name("device.py"))
    assert found is not None and found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    made.begin()
    return made


# Now, and not when a test asks for it: PyTorch counts devices at the first backward pass and never again.
_DEVICE = _device()


@pytest.fixture
def strict() -> ModuleType:
    """`device.py`: there is a device called `strict`, and nothing was moved to it yet."""
    _DEVICE.moves.clear()
    return _DEVICE
