"""Two tokenizers that need no library: bytes, and the words of given texts. Both pad on the right with 0.

>>> tokens = WordTokenizer.of(["the cat", "the dog"], size=4)
>>> tokens(["the cow"], max_length=4)["input_ids"].tolist()
[[2, 1, 0, 0]]
>>> tokens.decode([2, 3])
'the cat'
>>> ByteTokenizer().decode(ByteTokenizer()(["né"], max_length=5)["input_ids"][0].tolist())
'né'
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from homeostat.core.errors import InputError

PAD = 0
_WORD = re.compile(r"\w+|[^\w\s]")


class _Padded(ABC):
    """Called like the tokenizers of transformers."""

    size: int
    """Number of different tokens, padding included: a network's `vocabulary`."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""

    def __call__(
        self, texts: Sequence[str], *, max_length: int, padding: str = "max_length", truncation: bool = True,
        return_tensors: str = "pt",
    ) -> dict[str, Tensor]:  # fmt: skip
        """`input_ids` and `attention_mask`, int64 `[texts, max_length]`; longer texts are cut."""
        if (padding, truncation, return_tensors) != ("max_length", True, "pt"):
            raise InputError("this tokenizer always cuts and pads to max_length and returns PyTorch tensors")
        ids = torch.full((len(texts), max_length), PAD)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = self.encode(text)[:max_length]
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


class ByteTokenizer(_Padded):
    """Tokens 1..256 are the bytes of the text's UTF-8 form, 0 is padding."""

    size = 257

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [byte + 1 for byte in text.encode()]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; padding is left out, broken characters become question marks."""
        return bytes(token - 1 for token in tokens if token != PAD).decode(errors="replace")


class WordTokenizer(_Padded):
    """Tokens are lower-case words and signs: 0 is padding, 1 any other word, 2 and more the given words in order.

    Args:
        words: the known words, in lower case, each once.
    """

    def __init__(self, words: Sequence[str]):
        if len(set(words)) != len(words):
            raise InputError("the known words must differ from each other")
        self.words = tuple(words)
        self.size = len(self.words) + 2
        self._ids = {word: i + 2 for i, word in enumerate(self.words)}

    @classmethod
    def of(cls, texts: Iterable[str], size: int = 4096) -> WordTokenizer:
        """The most frequent words of some texts, as many as make `size` tokens; ties go by alphabet."""
        if size < 3:
            raise InputError(f"a vocabulary has at least 3 tokens; got size {size}")
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
        return cls([word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: size - 2]])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [self._ids.get(word, 1) for word in _WORD.findall(text.lower())]

    def decode(self, tokens: Iterable[int]) -> str:
        """The words of some tokens with spaces between; padding is left out."""
        return " ".join("?" if token == 1 else self.words[token - 2] for token in tokens if token != PAD)
