"""Noise in texts: typing errors and lost words, on strings or on data that were tokenised from them.

>>> from homeostat.data.strings import Strings
>>> CharacterNoise(rate=1.0, kind="delete")(Strings(["abc"])).texts
('',)
>>> WordNoise(rate=0.5)(Strings(["the quick brown fox"]), run=Run(seed=2)).texts == ("the quick brown fox",)
False
"""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, ClassVar, Literal

from torch import nn

from homeostat.core.data import Data, Joined, Subset, Unlabelled
from homeostat.core.errors import DtypeError
from homeostat.core.method import Card, Shift
from homeostat.core.run import Run
from homeostat.core.spec import Fraction
from homeostat.core.world import World
from homeostat.data.strings import Strings, Tokenized
from homeostat.shift.schedule import Tagged

NEIGHBORS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "o",
    "a": "qsz", "s": "awdx", "d": "sefc", "f": "drgv", "g": "fthb", "h": "gyjn", "j": "hukm", "k": "jil", "l": "ko",
    "z": "ax", "x": "zsc", "c": "xdv", "v": "cfb", "b": "vgn", "n": "bhm", "m": "nj",
    "1": "2", "2": "13", "3": "24", "4": "35", "5": "46", "6": "57", "7": "68", "8": "79", "9": "80", "0": "9",
}  # fmt: skip
"""Keys beside each other on a QWERTY keyboard: letters by letters, digits by digits."""


class TextShift(Shift, abstract=True):
    """Base of shifts of texts; what happens to a text is seeded by its id. Labels and ids stay."""

    card: ClassVar[Card] = Card(handles=frozenset({"covariate"}))

    def __call__(self, data: Any, *, model: nn.Module | None = None, run: Run = Run()) -> Any:
        """Shift `Strings`, a World, or data that `Strings.tokenized` made, which are tokenised again."""
        if isinstance(data, Strings):
            return self._change(data, run)
        if not isinstance(data, (Data, World)):
            raise self._no_texts(data)
        return super().__call__(data, model=model, run=run)

    def apply(self, data: Data, model: nn.Module | None, run: Run) -> Data:
        if isinstance(data, Subset) and isinstance(data.base, Tokenized):
            data = Tokenized(data.base.strings[data.positions], data.base.tokenizer, data.base.length)
        if isinstance(data, Tokenized):
            return data.change(lambda texts: self._change(texts, run))
        if isinstance(data, Joined):
            return Joined([self.apply(part, model, run) for part in data.parts])
        if isinstance(data, Subset):
            return Subset(self.apply(data.base, model, run), data.positions)
        if isinstance(data, Unlabelled):
            return Unlabelled(self.apply(data.base, model, run))
        if isinstance(data, Tagged):
            return Tagged(self.apply(data.base, model, run), data.phase)
        raise self._no_texts(data)

    def _no_texts(self, data: Any) -> DtypeError:
        return DtypeError(
            f"{type(self).__name__} changes texts: homeostat.data.Strings, or what their `tokenized` made; "
            f"got a {type(data).__name__}, which does not know its texts"
        )

    def _change(self, texts: Strings, run: Run) -> Strings:
        seeds = [run.seed_for(type(self).__name__, number) for number in texts.id.tolist()]
        changed = [self.change(text, random.Random(seed)) for text, seed in zip(texts, seeds, strict=True)]
        return texts.map(lambda _: changed)

    @abstractmethod
    def change(self, text: str, draw: random.Random) -> str: ...


@dataclass(frozen=True)
class CharacterNoise(TextShift):
    """Typing errors: each letter or digit is hit with probability `rate`.

    Attributes:
        rate: in 0..1.
        kind: `"swap"` with the next character, `"delete"`, `"insert"` a neighbouring key after it, `"replace"` by a
            neighbouring key, or `"any"` of these, drawn each time. Letters that are not on the keyboard have all of
            a to z as neighbours.
    """

    rate: Fraction = 0.1
    kind: Literal["any", "swap", "delete", "insert", "replace"] = "any"

    def change(self, text: str, draw: random.Random) -> str:
        made, at = [], 0
        while at < len(text):
            now, after = text[at], text[at + 1 : at + 2]
            at += 1
            if not now.isalnum() or draw.random() >= self.rate:
                made.append(now)
                continue
            kind = draw.choice(("swap", "delete", "insert", "replace")) if self.kind == "any" else self.kind
            if kind == "swap" and after:
                made += [after, now]
                at += 1
            elif kind == "insert":
                made += [now, draw.choice(NEIGHBORS.get(now.lower(), ascii_lowercase))]
            elif kind == "replace":
                made.append(_like(now, draw.choice(NEIGHBORS.get(now.lower(), ascii_lowercase))))
            elif kind == "swap":
                made.append(now)
        return "".join(made)


@dataclass(frozen=True)
class WordNoise(TextShift):
    """Words lost, doubled or swapped, each with probability `rate`; at least one word stays.

    Words are what white space separates; in texts that change, single spaces come in its place.

    Attributes:
        rate: in 0..1.
        kind: `"delete"`, `"double"`, `"swap"` with the next, or `"any"` of these.
    """

    rate: Fraction = 0.1
    kind: Literal["any", "delete", "double", "swap"] = "any"

    def change(self, text: str, draw: random.Random) -> str:
        words = text.split()
        made, at = list[Any](), 0
        while at < len(words):
            now, after = words[at], words[at + 1 : at + 2]
            at += 1
            if draw.random() >= self.rate:
                made.append(now)
                continue
            kind = draw.choice(("delete", "double", "swap")) if self.kind == "any" else self.kind
            if kind == "double":
                made += [now, now]
            elif kind == "swap":
                made += [*after, now]
                at += len(after)
        made = made or words[:1]
        return text if made == words else " ".join(made)


def _like(model: str, letter: str) -> str:
    return letter.upper() if model.isupper() else letter
