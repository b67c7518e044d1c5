"""What a merge plan is made of, as it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeostat.merge.dialect import Known


@dataclass
class Source:
    """A model that goes into a merge, or layers of it.

    Attributes:
        model: its path as written.
        parameters: settings of it alone.
        layers: the first and the one after the last; None for all.
    """

    model: str
    parameters: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass
class Slice:
    """Some layers of the result.

    Attributes:
        sources: what they are made of.
        base: path of its base model.
        parameters: settings of these layers.
    """

    sources: list[Source]
    base: str | None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """A merge plan as it is written.

    Attributes:
        method: its name.
        known: what that name means.
        base: path of the base model.
        slices: one with all layers where the plan has `models`.
        parameters: settings of all.
        dtype: to write.
        whole: whether the plan has `models`.
        notes: settings that have no effect.
        content: the plan as read.
        folder: that relative paths begin at.
    """

    method: str
    known: Known
    base: str | None
    slices: list[Slice]
    parameters: dict[str, Any]
    dtype: str | None
    whole: bool
    notes: list[str]
    content: dict[str, Any]
    folder: Path

    def find(self, model: str) -> str:
        """A model's path, from the plan's folder or as it is."""
        there = self.folder / Path(model).expanduser()
        return str(there) if there.exists() else model
