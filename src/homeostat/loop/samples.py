"""A few inputs from before and after each shift, kept beside the journal for people to look at.

At an alarm the loop writes one small file into the store's folder `samples`: inputs of the windows since the shift, and
of the windows before it (or, where no such window is kept, of the data from before). Pictures are shrunk to what a
report shows and other inputs cut to their first numbers, so that a file has a bounded size whatever the inputs are; the
newest files stay. Nothing is decided by them and nothing is lost with them: a file that a kill or a full disk cut short
is passed over, and the folder may be deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from homeostat.core.data import Batch, Data, join
from homeostat.core.tree import Tree, map_tree, named_leaves

FOLDER = "samples"
SIDE, NUMBERS, FILES = 64, 512, 200
"""Longest side of a picture in pixels, most numbers of another input, and most files."""
FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError)
"""What a full disk, or an input of a kind that cannot be kept, may raise."""


@dataclass(frozen=True)
class Side:
    """Inputs from one side of a shift.

    Attributes:
        name: where they come from, in words.
        leaves: tensors `[samples, ...]` by name; one called `x` where the network takes one tensor.
    """

    name: str
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Inputs from before a shift and from after it; `step` is the window of the alarm."""

    step: int
    before: Side
    after: Side


class Samples:
    """The inputs that a store keeps of its alarms.

    Args:
        store: the store's folder.

    >>> import tempfile
    >>> from homeostat.core.data import Tensors
    >>> window = Tensors(torch.arange(6.0).view(3, 2)).load().replace(meta={"step": torch.tensor([7, 7, 7])})
    >>> samples = Samples(tempfile.mkdtemp())
    >>> samples.keep(7, [window], 1, Tensors(torch.zeros(5, 2)), count=2)
    >>> pair = samples.read()[7]
    >>> pair.before.name, pair.after.name, pair.after.leaves["x"].tolist()
    ('data from before deployment', 'window 7', [[0.0, 1.0], [4.0, 5.0]])
    """

    def __init__(self, store: str | Path):
        self.folder = Path(store) / FOLDER

    def keep(self, step: int, recent: Sequence[Batch], since: int, before: Data, count: int) -> None:
        """Write a file for an alarm.

        Args:
            step: the alarm's window.
            recent: the last windows, oldest first, with `meta["step"]`.
            since: how many of them came after the shift.
            before: data from before, shown where all the recent windows came after the shift.
            count: samples of each side.
        """
        # People look at these and nothing depends on them: what cannot be kept must not stop what serves.
        with suppress(*FAILURES):
            self._write(step, *_sides(recent, since, before, count))

    def _write(self, step: int, before: tuple[str, Tree], after: tuple[str, Tree]) -> None:
        tensors = dict[str, Tensor]()
        for side, (_, x) in (("before", before), ("after", after)):
            tensors |= {f"{side}.{key}": leaf for key, leaf in named_leaves(map_tree(_small, x), "x")}
        self.folder.mkdir(exist_ok=True)
        made = self.folder / f".{step}"
        made.write_bytes(save(tensors, {"before": before[0], "after": after[0]}))
        os.replace(made, self.folder / f"{step}.safetensors")
        for old in sorted(self._files(), key=_number)[:-FILES]:
            old.unlink()

    def read(self) -> dict[int, Pair]:
        """What is kept, by the window of the alarm; damaged files are passed over."""
        found = dict[int, Pair]()
        for file in sorted(self._files(), key=_number):
            with suppress(SafetensorError, OSError, KeyError):
                with safe_open(file, "pt") as kept:
                    names, tensors = kept.metadata() or {}, {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118
                sides = [
                    Side(names[side], {key.removeprefix(f"{side}."): leaf for key, leaf in tensors.items()
                                       if key.startswith(f"{side}.")})
                    for side in ("before", "after")
                ]  # fmt: skip
                if sides[0].leaves.keys() & sides[1].leaves.keys():
                    found[_number(file)] = Pair(_number(file), *sides)
        return found

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("*.safetensors") if re.fullmatch("[0-9]+", path.stem)]


def _number(file: Path) -> int:
    return int(file.stem)


def _sides(recent: Sequence[Batch], since: int, before: Data, count: int) -> tuple[tuple[str, Tree], tuple[str, Tree]]:
    earlier = recent[:-since]
    if earlier:
        return _side(earlier, count), _side(recent[-since:], count)
    old = before.fetch(_spread(len(before), count)).x
    return ("data from before deployment", old), _side(recent[-since:], count)


def _side(windows: Sequence[Batch], count: int) -> tuple[str, Tree]:
    """Where samples come from, and some of them, from all of these windows."""
    steps = [int(batch.meta["step"][0]) for batch in windows]
    name = f"window {steps[0]:,}" if len(steps) == 1 else f"windows {steps[0]:,} to {steps[-1]:,}"
    every = join(list(windows))
    places = _spread(len(every), count)
    return name, map_tree(lambda leaf: leaf[places], every.x)


def _spread(length: int, count: int) -> Tensor:
    """At most `count` positions, evenly spread."""
    return torch.linspace(0, length - 1, min(length, count)).round().long()


def _small(leaf: Tensor) -> Tensor:
    leaf = leaf.detach().cpu()
    if is_pictures(leaf):
        height, width = (max(1, round(side * min(1.0, SIDE / max(leaf.shape[2:])))) for side in leaf.shape[2:])
        if not leaf.is_floating_point():
            leaf = leaf.clamp(0, 255).float() / 255  # as bytes of a picture
        same = tuple(leaf.shape[2:]) == (height, width)
        leaf = leaf.float() if same else adaptive_avg_pool2d(leaf.float(), (height, width))
        return leaf.half().contiguous()
    if leaf.is_floating_point():
        leaf = leaf.float()
    return leaf if leaf[0].numel() <= NUMBERS else leaf.flatten(1)[:, :NUMBERS].contiguous()


def is_pictures(leaf: Tensor) -> bool:
    """Whether a tensor looks like pictures: `[n, 1 or 3, height, width]`, neither side short."""
    return leaf.ndim == 4 and leaf.shape[1] in (1, 3) and min(leaf.shape[2:]) >= 4
