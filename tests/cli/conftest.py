"""What the tests of commands share: a small network with data, and ways to run a command."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import homeostat as hs
from homeostat import cli
from homeostat.data import digits
from homeostat.fit import Fit, Recipe
from homeostat.nn import Normalized, ResNet

Ends = Callable[..., tuple[int, str, str]]


Prints = Callable[..., str]


@pytest.fixture(scope="session")
def prints() -> Prints:
    """What a command that succeeds prints, without styling."""

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return re.sub(r"\x1b\[[0-9;]*m", "", result.output)

    return run


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ends:
    """`main` with these arguments: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["homeostat", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network `net`, data from `before` and `now` (less contrast), and `bare` without labels."""
    folder = tmp_path_factory.mktemp("shop")
    data = digits()
    net = Normalized(ResNet(8, in_channels=1, width=4), [0.3], [0.37])
    net = Fit(recipe=Recipe(epochs=6, batch=64))(net, hs.World(source=data[:900]))
    hs.save(net, folder / "net")
    before, now = data[900:1200].load(), data[1200:1600].load()
    np.savez(folder / "before.npz", x=before.x.numpy(), y=before.labels.numpy())
    np.savez(folder / "now.npz", x=(now.x * 0.3 + 0.2).numpy(), y=now.labels.numpy())
    np.savez(folder / "bare.npz", x=(now.x * 0.3 + 0.2).numpy())
    np.savez(folder / "color.npz", x=torch.rand(60, 3, 8, 8).numpy(), y=np.arange(60) % 10)
    return folder


@pytest.fixture
def here(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside that folder, so that names are short."""
    monkeypatch.chdir(shop)
    return shop
