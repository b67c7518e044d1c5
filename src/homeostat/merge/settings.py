"""Settings of a merge plan: numbers, lists that run over the layers, and choices by the tensor's name.

    density: 0.5                          for all tensors
    density: [1.0, 0.5, 0.0]              from the first layer to the last, between these on straight lines
    density:                              the first whose filter is in the tensor's name
      - {filter: mlp, value: [0.2, 0.8]}
      - {filter: self_attn, value: 0.5}
      - {value: 0.1}

A setting that has nothing for a tensor leaves it to the next place where it is looked for.

>>> evaluate([0.0, 1.0, 0.5], "model.layers.3.mlp", at=0.75)
0.75
>>> evaluate([{"filter": "mlp", "value": 2.0}], "model.norm", at=0.0) is None
True
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def evaluate(setting: Any, name: str, at: float) -> Any:
    """What a setting says of a tensor; None where it says nothing.

    Args:
        setting: as in the plan.
        name: of the tensor.
        at: how far its layer is among the layers, from 0 to 1.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if not any(isinstance(item, dict) for item in setting):
        return _between(setting, at)
    for choice in setting:
        wanted = choice.get("filter")
        if wanted in (None, "*") or wanted in name:
            return evaluate(choice["value"], name, at)
    return None


def _between(values: list[Any], at: float) -> Any:
    if not values:
        return None
    place = at * (len(values) - 1)
    before = int(place)
    if any(isinstance(value, bool) for value in values):
        return values[before]
    share = place - before
    return (1 - share) * values[before] + share * values[min(before + 1, len(values) - 1)]


def wrong_with(setting: Any, kind: type) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a setting is not as it should be, and how.

    Args:
        setting: as in the plan.
        kind: `float` or `bool`.
    """
    wanted = "true or false" if kind is bool else "a number"
    if isinstance(setting, list):
        mixed = any(isinstance(item, dict) for item in setting)
        for place, item in enumerate(setting):
            if mixed != isinstance(item, dict) or isinstance(item, list):
                yield (place,), "a list is one of numbers, or one of {filter: ..., value: ...}"
            else:
                yield from (((place, *path), text) for path, text in wrong_with(item, kind))
    elif isinstance(setting, dict):
        if unknown := sorted(set(map(str, setting)) - {"filter", "value"}):
            yield (unknown[0],), f"{unknown[0]} is not known here; a choice is {{filter: part of a name, value: ...}}"
        elif "value" not in setting:
            yield (), "a choice needs a value"
        elif not isinstance(setting.get("filter"), str | None):
            yield ("filter",), "a filter is a part of a tensor's name"
        else:
            yield from ((("value", *path), text) for path, text in wrong_with(setting["value"], kind))
    elif kind is bool:
        if not isinstance(setting, bool):
            yield (), f"{wanted} is wanted, not {setting!r}"
    elif isinstance(setting, bool) or not isinstance(setting, int | float) or setting != setting:
        yield (), f"{wanted} is wanted, not {setting!r}"
