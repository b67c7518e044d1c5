"""What does not fit between checkpoints that are to be merged, all of it, before anything is written.

A row says which tensor of which checkpoint goes into which tensor of the result. A `Preflight` turns rows into groups,
and keeps what is wrong, each with what to do, and what is right but worth knowing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from homeostat.core.errors import CheckpointError
from homeostat.core.fork import matches
from homeostat.merge.merging import Group
from homeostat.merge.opening import Checkpoint, is_embeddings, is_head, same_values

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""How names of statistics end that are estimated again rather than merged; they stay the base's."""

LEFT = ("rotary_emb.inv_freq", "position_ids", "masked_bias", "attn.bias", "attention.bias", *BUFFERS)
"""How names of tensors end that follow from the configuration; a donor may have them beside the base's."""

SHOWN = 8


@dataclass(frozen=True)
class Row:
    """A tensor of the result, and those that it is made of.

    Attributes:
        name: in the result.
        base: which checkpoint the base's tensor is of, and its name there.
        donors: the same of each donor.
    """

    name: str
    base: tuple[str, str]
    donors: tuple[tuple[str, str], ...] = ()


@dataclass
class Preflight:
    """Looks at rows.

    Attributes:
        inputs: checkpoints by what messages call them; the first lends shapes.
        dtype: to write; None is each tensor's own in the base.
        problems: what is wrong, by what it is about.
        notes: what is worth knowing.
    """

    inputs: Mapping[str, Checkpoint]
    dtype: torch.dtype | None = None
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    used: set[tuple[str, str]] = field(default_factory=set)

    def copied(self, row: Row) -> Group:
        """A tensor that stays as it is."""
        held = self.inputs[row.base[0]]
        place = held.tensors.places[row.base[1]]
        self.used.add(row.base)
        dtype = self.dtype if self.dtype and place.dtype.is_floating_point else place.dtype
        return Group(row.name, (held.tensors, row.base[1]), (), dtype, place.shape)

    def merged(self, row: Row) -> Group | None:
        """A tensor made of several; None where they do not fit, which is kept."""
        group, donors, fits = self.copied(row), [], True
        place = self.inputs[row.base[0]].tensors.places[row.base[1]]
        for donor, name in row.donors:
            held = self.inputs[donor]
            if (found := self._find(donor, name)) is None:
                self.problems[f"{donor} lacks"].append(name)
                fits = False
                continue
            self.used.add((donor, found))
            other = held.tensors.places[found]
            if other.shape != place.shape:
                self._misshapen(donor, found, other.shape, place.shape)
                fits = False
            elif not other.dtype.is_floating_point:
                self.problems[
                    f"{donor} has whole numbers where the base has fractions, as quantised networks have; give the "
                    "network as it was before:"
                ].append(found)
                fits = False
            elif other.dtype != place.dtype:
                self.notes[
                    f"{donor} is {_plain(other.dtype)} where the base is {_plain(place.dtype)}; "
                    f"{_plain(group.dtype)} is written:"
                ].append(found)
            donors.append((held.tensors, found))
        called = tuple(donor for donor, _ in row.donors)
        return Group(row.name, group.base, tuple(donors), group.dtype, group.shape, called) if fits else None

    def check_rest(self, donors: Iterable[str], base: str, ignore: Sequence[str] = (), layers: bool = True) -> None:
        """Look at what donors have beside what is merged, and at heads that are tied in one and not in another.

        Args:
            donors: to look at.
            base: what ties are compared with.
            ignore: globs of tensors that are meant to be left out.
            layers: whether a tensor that is left out is wrong; where only some layers are taken, it is not.
        """
        left, mine = matches(tuple(ignore)), self.inputs[base]
        tied_here = mine.head() is None or mine.head() in mine.tied
        for donor in dict.fromkeys(donors):
            held = self.inputs[donor]
            rest = [n for n in held.names() if (donor, n) not in self.used and not left(n)]
            head, embeddings = held.head(), held.embeddings()
            if head in rest and tied_here and embeddings:
                rest.remove(head)
                if same_values(held, head, held, embeddings):
                    self.notes[f"{donor} holds its head beside the embeddings that it is tied to in the base:"].append(
                        head
                    )
                else:
                    self.problems[
                        f"{donor} has a head of its own where the base ties it to its embeddings; untie the base "
                        "(write its embeddings under the head's name, too, and set tie_word_embeddings to false), or "
                        "leave the donor's out (ignore):"
                    ].append(head)
            if layers:
                rest = [n for n in rest if not n.endswith(LEFT)]
                if extra := [n for n in rest if mine.find(n) is None]:
                    self.problems[
                        f"{donor} has what the base lacks; leave it out (ignore), or see that it is of this base:"
                    ] = extra

    def refuse(self, opened: Sequence[str] = ()) -> None:
        """Raise one error with all that is wrong.

        Args:
            opened: what was wrong with checkpoints before their tensors were looked at.

        Raises:
            CheckpointError: something is.
        """
        told = [*opened, *(self._told(about, names) for about, names in self.problems.items())]
        if told:
            listed = told[0] if len(told) == 1 else "; ".join(f"({i}) {text}" for i, text in enumerate(told, 1))
            raise CheckpointError(f"nothing was written, as the checkpoints do not fit: {listed}")

    def said(self) -> list[str]:
        """The notes, a line each."""
        return [self._told(about, names) for about, names in self.notes.items()]

    def _told(self, about: str, names: list[str]) -> str:
        advice = ""
        if about.endswith(" lacks"):
            advice = "; give one of the same shape, or keep the base's there (skip)"
            donor = about.removesuffix(" lacks")
            if donor in self.inputs and (prefix := self._prefix(self.inputs[donor], names)):
                advice = f"; its names {prefix}: save it under the base's names"
        return f"{about} {several(names)}{advice}"

    def _prefix(self, held: Checkpoint, names: list[str]) -> str:
        """What all of a donor's names have before the base's, or lack."""
        for mine in held.tensors:
            if mine.endswith(f".{names[0]}") and all(mine.removesuffix(names[0]) + n in held.tensors for n in names):
                return f"begin with {mine.removesuffix(names[0])!r} before the base's"
            if names[0].endswith(f".{mine}"):
                front = names[0].removesuffix(mine)
                if all(n.startswith(front) and n.removeprefix(front) in held.tensors for n in names):
                    return f"lack {front!r} before them"
        return ""

    def _find(self, donor: str, name: str) -> str | None:
        held = self.inputs[donor]
        if (found := held.find(name)) is not None:
            return found
        embeddings = held.embeddings()
        if is_head(name) and embeddings and held.ties_head() is not False:
            self.notes[f"{donor} ties its head to its embeddings, which stand for it:"].append(name)
            return embeddings
        return None

    def _misshapen(self, donor: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if (is_embeddings(name) or is_head(name)) and shape[1:] == wanted[1:]:
            self.problems[
                f"{donor} has {shape[0]} tokens and the base {wanted[0]}; resize it, if its first tokens are the "
                f"base's (in transformers: model.resize_token_embeddings({wanted[0]})), or keep the base's (skip), in:"
            ].append(name)
        else:
            self.problems[f"{donor} has other shapes, so it is of another network; skip them, or give another:"].append(
                f"{name} {list(shape)} for {list(wanted)}"
            )


def several(names: Sequence[str]) -> str:
    """Some names, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
