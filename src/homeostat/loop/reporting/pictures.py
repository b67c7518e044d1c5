"""Example inputs inside the page: pictures as PNG, texts as text, other inputs as a table of numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from homeostat.core.errors import DtypeError, InputError
from homeostat.loop.reporting import wording
from homeostat.loop.samples import Pair, Side, is_pictures

PICTURES, GROUPS, PICTURE_BYTES = 12, 12, 1_500_000
COLUMNS, LETTERS = 8, 280
"""Numbers of an input, and letters of a text, that are shown."""

Words = Callable[[list[int]], str]
"""Gives the text of token numbers, such as a tokenizer's `decode`."""


@dataclass(frozen=True)
class Shown:
    """Inputs from before and after a shift, as a page shows them.

    Attributes:
        kind: `"pictures"`, `"texts"` or `"numbers"`.
        sides: for before and after, where the inputs come from, and each as data address, as text, or as numbers.
        columns: names of the numbers.
        note: what a reader should know of how they are shown.
    """

    kind: str
    sides: list[tuple[str, list[Any]]]
    columns: Sequence[str] = ()
    note: str = ""


def inline_pictures(examples: Sequence[tuple[str, Tensor | Any]]) -> list[tuple[str, int, list[str]]]:
    """Per group its name, the width of its pictures, and the pictures as data addresses."""
    groups = [(wording.clip(name, 80), _checked(name, x)[:PICTURES]) for name, x in examples][:GROUPS]
    for side in (96, 64, 32, 16):
        made = [(name, [_png(x, side) for x in inputs]) for name, inputs in groups]
        if sum(len(png) for _, pngs in made for png in pngs) <= PICTURE_BYTES:
            break
    return [(name, 64, pngs) for name, pngs in made]


def shown_samples(pairs: Mapping[int, Pair], words: Words | None = None) -> dict[int, Shown]:
    """What a page shows of the inputs around each alarm; fewer and smaller pictures where there are many alarms."""
    for most, side in ((8, 64), (4, 64), (2, 48), (1, 32), (1, 16)):
        made = {step: _shown(pair, words, most, side) for step, pair in pairs.items()}
        size = sum(len(item) for shown in made.values() for _, items in shown.sides for item in items
                   if isinstance(item, str))  # fmt: skip
        if size <= PICTURE_BYTES:
            break
    return made if pairs else {}


def _shown(pair: Pair, words: Words | None, most: int, side: int) -> Shown:
    sides = (pair.before, pair.after)
    names = [name for name in pair.before.leaves if name in pair.after.leaves]
    for name in names:
        if all(is_pictures(s.leaves[name]) for s in sides):
            return _as_pictures(sides, name, most, side)
    tokens = next((name for name in names if name.rpartition(".")[2] == "input_ids"), None)
    if tokens is not None and words is not None:
        mask = tokens.removesuffix("input_ids") + "attention_mask"
        said = [(s.name, [_text(ids, kept, words) for ids, kept in
                          zip(s.leaves[tokens][:most], s.leaves.get(mask, s.leaves[tokens])[:most], strict=True)])
                for s in sides]  # fmt: skip
        return Shown("texts", said)
    return _as_numbers(sides, tokens or names[0], most)


def _as_pictures(sides: Sequence[Side], name: str, most: int, side: int) -> Shown:
    low = min(float(s.leaves[name].min()) for s in sides)
    high = max(float(s.leaves[name].max()) for s in sides)
    plain, note = low >= -0.001 and high <= 1.001, ""
    if not plain:
        note = f"Their values are {low:.3g} to {high:.3g}; here from black to white."
    made = []
    for s in sides:
        x = s.leaves[name][:most].float()
        x = x if plain else (x - low) / max(high - low, 1e-9)
        made.append((s.name, [_png(one, side) for one in x]))
    return Shown("pictures", made, note=note)


def _text(ids: Tensor, kept: Tensor, words: Words) -> str:
    try:
        return wording.clip(words([int(i) for i, there in zip(ids, kept, strict=True) if int(there) != 0]), LETTERS)
    except Exception as error:  # a stranger's tokenizer must not take the report with it
        return f"(cannot be read: {wording.clip(error, 80)})"


def _as_numbers(sides: Sequence[Side], name: str, most: int) -> Shown:
    """The numbers that moved most between these few inputs, against how much they vary."""
    before, after = (s.leaves[name].flatten(1).double()[:most] for s in sides)
    width = min(before.shape[1], after.shape[1])
    before, after = before[:, :width], after[:, :width]
    spread = torch.cat([before - before.mean(0), after - after.mean(0)]).square().mean(0).sqrt()
    moved = (after.mean(0) - before.mean(0)).abs() / (spread + 1e-9)
    chosen = sorted(moved.nan_to_num().argsort(descending=True, stable=True)[:COLUMNS].tolist())
    rows = [(s.name, [[f"{float(v):.3g}" for v in row[chosen]] for row in x])
            for s, x in zip(sides, (before, after), strict=True)]  # fmt: skip
    note = f"The {len(chosen)} of {width:,} numbers that differ most between these inputs." if width > COLUMNS else ""
    return Shown("numbers", rows, [f"no. {place}" for place in chosen], note)


def _checked(name: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.is_complex():
        raise DtypeError(f"examples {name!r} are {type(x).__name__}; a tensor [n, 1 or 3, height, width] is needed")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise InputError(f"examples {name!r} have shape {tuple(x.shape)}; wanted is [n, 1 or 3, height, width]")
    low, high = float(x.min()), float(x.max())
    if not (low >= -1e-4 and high <= 1.0001):
        raise InputError(f"examples {name!r} are in {low:.3g}..{high:.3g}; wanted is 0..1, before any normalisation")
    return x.detach().float().cpu()


def _png(x: Tensor, side: int) -> str:
    pixels = (255 * x.clamp(0, 1)).round().byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > side:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
