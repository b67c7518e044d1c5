"""Labelled texts, and the step from texts to tokens.

Networks take tensors, so texts become `Data` when they are tokenised. What is tokenised still knows its texts, so that
shifts of texts (typing errors, lost words) act before or after that:

>>> from homeostat.data.tokenizers import ByteTokenizer
>>> texts = Strings(["a red apple", "to run"], [0, 1], classes=("noun", "verb"))
>>> shifted = texts.map(lambda lines: [line.upper() for line in lines])
>>> shifted.texts, texts.texts
(('A RED APPLE', 'TO RUN'), ('a red apple', 'to run'))
>>> batch = shifted.tokenized(ByteTokenizer(), length=8).load()
>>> batch.x["input_ids"].shape, batch.y.tolist()
(torch.Size([2, 8]), [0, 1])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import DtypeError, InputError
from homeostat.data.pixels import class_labels

Tokenizer = Callable[..., Mapping[str, Any]]
"""Called as `tokenizer(texts, padding="max_length", truncation=True, max_length=n, return_tensors="pt")`; gives int64
`input_ids` and `attention_mask`, `[texts, n]`. Tokenizers of transformers and of `data.tokenizers` are such."""


class Strings:
    """Texts with labels and ids; immutable.

    Args:
        texts: one string a sample.
        labels: integers, one a sample, or None.
        classes: names of the classes; labels are checked against their number when it is given.
        id: int64, one a sample; default, the position.
    """

    def __init__(self, texts: Sequence[str], labels: Any = None, classes: Sequence[str] = (), id: Any = None):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DtypeError("texts must be a list of strings")
        self.texts, self.classes = tuple(texts), tuple(classes)
        self.labels: Tensor | None = None
        if labels is not None:
            self.labels = class_labels(labels, len(self.texts), len(self.classes), "the texts")
        self.id: Tensor = torch.arange(len(self.texts)) if id is None else torch.as_tensor(id, dtype=torch.int64)
        if self.id.shape != (len(self.texts),):
            raise InputError(f"there are {len(self.texts)} texts, but ids of shape {tuple(self.id.shape)}")

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __repr__(self) -> str:
        return f"Strings({len(self)} texts, {len(self.classes)} classes)"

    def __getitem__(self, index: slice | Tensor | Sequence[int] | int) -> Strings:
        """A subset by slice, boolean mask or positions; one text alone is `texts[i]`."""
        if isinstance(index, int):
            raise DtypeError(
                "texts are indexed by a slice, a mask or positions; one text is .texts[i]. Where data are wanted, "
                "tokenise first: .tokenized(tokenizer, length)"
            )
        positions = torch.arange(len(self))[index if isinstance(index, slice) else torch.as_tensor(index)]
        labels = None if self.labels is None else self.labels[positions]
        return Strings([self.texts[i] for i in positions.tolist()], labels, self.classes, self.id[positions])

    def shuffle(self, generator: torch.Generator) -> Strings:
        """The same texts in random order."""
        return self[torch.randperm(len(self), generator=generator)]

    def map(self, function: Callable[[list[str]], Sequence[str]]) -> Strings:
        """The texts changed by a function of all of them (such as a shift of texts); labels and ids stay."""
        changed = function(list(self.texts))
        if len(changed) != len(self):
            raise InputError(f"the function made {len(changed)} texts of {len(self)}; one a text is wanted")
        return Strings(changed, self.labels, self.classes, self.id)

    def tokenized(self, tokenizer: Tokenizer, length: int = 64) -> Tokenized:
        """The texts as data: x is `input_ids` and `attention_mask`, int64 `[texts, length]`, y the labels.

        Args:
            tokenizer: see `Tokenizer`.
            length: tokens a text; longer texts are cut, shorter ones padded on the side the tokenizer pads.
        """
        return Tokenized(self, tokenizer, length)

    def next_tokens(self, tokenizer: Tokenizer, length: int = 64) -> Tensors:
        """The texts as data for a language model: x are tokens 0..length-2, y the tokens that follow them.

        Where the next token is padding, y is `UNKNOWN`. The task is `core.task.Tokens`.
        """
        x = self._tokens(tokenizer, length)
        y = x["input_ids"][:, 1:].masked_fill(x["attention_mask"][:, 1:] == 0, UNKNOWN)
        return Tensors({name: value[:, :-1] for name, value in x.items()}, y, self.id)

    def _tokens(self, tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
        if len(self) == 0:
            raise InputError("there are no texts to tokenise")
        if length < 2:
            raise InputError(f"a text has at least 2 tokens; got length {length}")
        made = tokenizer(
            list(self.texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return {name: torch.as_tensor(made[name]) for name in ("input_ids", "attention_mask")}


class Tokenized(Data):
    """Texts as data that know their texts, so that a shift of texts can act on them.

    Args:
        strings, tokenizer, length: see `Strings.tokenized`.
    """

    def __init__(self, strings: Strings, tokenizer: Tokenizer, length: int):
        self.strings, self.tokenizer, self.length = strings, tokenizer, length
        self._data = Tensors(strings._tokens(tokenizer, length), strings.labels, strings.id)

    def __len__(self) -> int:
        return len(self._data)

    def fetch(self, positions: Tensor) -> Batch:
        return self._data.fetch(positions)

    def all_labels(self) -> Tensor:
        return self._data.all_labels()

    def fingerprint(self) -> str:
        return self._data.fingerprint()

    def change(self, function: Callable[[Strings], Strings]) -> Tokenized:
        """The same data after a function of their texts."""
        return Tokenized(function(self.strings), self.tokenizer, self.length)
