"""Data sets by name, for files: what a YAML file says in place of `fashion_mnist("test")[:5000]`.

A reader is a Spec, so that it has a name, checked fields and a line in the error when one of them is wrong. It holds no
data; `read` gives them, in this order: everything there is, shuffled if `shuffle` says so, cut to `start:stop`, then
`repeat` times. Readers with the same `shuffle` and other `start` and `stop` share no sample, which is how one data set
is divided into what came before and what comes now:

>>> before, now = Digits(shuffle=0, stop=1000), Digits(shuffle=0, start=1000)
>>> len(before.read()), len(now.read())
(1000, 797)
>>> now
Digits(start=1000, stop=None, shuffle=0, repeat=1)

In YAML: `before: {Digits: {shuffle: 0, stop: 1000}}`. Texts are tokenized as they are read, after they are cut.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch

from homeostat.core.data import Data
from homeostat.core.errors import InputError, SpecError
from homeostat.core.random import generator
from homeostat.core.spec import Count, Index, Spec
from homeostat.data.archives import npz
from homeostat.data.cifar import cifar10
from homeostat.data.fashion import fashion_mnist
from homeostat.data.folders import image_folder
from homeostat.data.handwriting import digits, mnist
from homeostat.data.hub import huggingface
from homeostat.data.strings import Strings
from homeostat.data.tokenizers import ByteTokenizer
from homeostat.data.wordnet import glosses

S = TypeVar("S", bound=Spec)
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Reader(Spec, abstract=True):
    """Base of data sets by name; a subclass gives `open`.

    Attributes:
        start, stop: which samples, counted after shuffling; `stop` is left out, and None is the end.
        shuffle: seed of a random order; None keeps the order of the files.
        repeat: how often the samples come, one pass after another.
    """

    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a path; `below` reads them from another folder."""

    start: Index = 0
    stop: Index | None = None
    shuffle: Index | None = None
    repeat: Count = 1

    def read(self) -> Data:
        """The data.

        Raises:
            MissingPart: files are not there. InputError: they are damaged, or `start` and `stop` leave no sample.
        """
        found = self.open()
        count, stop = len(found), len(found) if self.stop is None else self.stop
        if stop > count or self.start >= stop:
            name = type(self).__name__
            raise InputError(f"{name} has {count:,} samples; start = {self.start:,} and stop = {stop:,} do not fit")
        if self.shuffle is not None:
            found = found.shuffle(generator(self.shuffle, "order"))
        if self.start or stop < count:
            found = found[self.start : stop]
        made = self.tokenized(found) if isinstance(found, Strings) else found
        return made if self.repeat == 1 else made[torch.arange(len(made)).repeat(self.repeat)]

    @abstractmethod
    def open(self) -> Data | Strings:
        """Everything there is, in the order of the files."""

    def tokenized(self, texts: Strings) -> Data:
        """Texts as data; readers of texts have `tokenizer` and `length`."""
        tokenizer = ByteTokenizer() if getattr(self, "tokenizer", "bytes") == "bytes" else _minilm()
        return texts.tokenized(tokenizer, getattr(self, "length", 64))


@dataclass(frozen=True)
class FashionMNIST(Reader):
    """Fashion-MNIST: grey 28x28 images of clothing, 10 classes; see `fashion_mnist`."""

    split: Split = "test"

    def open(self) -> Data:
        return fashion_mnist(self.split)


@dataclass(frozen=True)
class MNIST(Reader):
    """MNIST: grey 28x28 images of handwritten digits; see `mnist`."""

    split: Split = "test"

    def open(self) -> Data:
        return mnist(self.split)


@dataclass(frozen=True)
class CIFAR10(Reader):
    """CIFAR-10: color 32x32 images of 10 kinds of things; see `cifar10`."""

    split: Split = "test"

    def open(self) -> Data:
        return cifar10(self.split)


@dataclass(frozen=True)
class Digits(Reader):
    """The 1,797 grey 8x8 digits that come with scikit-learn; they need no file. See `digits`."""

    def open(self) -> Data:
        return digits()


@dataclass(frozen=True)
class ImageFolder(Reader):
    """Images on disk, one sub-folder a class; see `image_folder`.

    Attributes:
        path: the folder of class folders.
        size: scale the shorter side to this and keep the middle square; needed when sizes differ.
        grey: one channel instead of three.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = ""
    size: Count | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _given(self, "path", "a folder with one sub-folder a class")

    def open(self) -> Data:
        return image_folder(self.path, self.size, self.grey)


@dataclass(frozen=True)
class NPZ(Reader):
    """Two arrays of a NumPy archive; see `npz`.

    Attributes:
        path: the archive.
        x, y: names of the arrays of inputs and labels; None for no labels.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = ""
    x: str = "x"
    y: str | None = "y"

    def __post_init__(self) -> None:
        super().__post_init__()
        _given(self, "path", "an .npz file")

    def open(self) -> Data:
        return npz(self.path, self.x, self.y)


@dataclass(frozen=True)
class Glosses(Reader):
    """WordNet's definitions with their class of meaning, tokenized; see `glosses`.

    Attributes:
        part: part of speech; None for all.
        examples: keep the quoted examples that follow a definition.
        tokenizer: `"minilm"` (the text extra) or `"bytes"`.
        length: tokens a text.
    """

    part: Literal["noun", "verb", "adj", "adv"] | None = None
    examples: bool = False
    tokenizer: Literal["minilm", "bytes"] = "minilm"
    length: Count = 64

    def open(self) -> Strings:
        return glosses(self.part, self.examples)


@dataclass(frozen=True)
class HuggingFace(Reader):
    """A data set that Hugging Face's `datasets` saved to a folder; see `huggingface`.

    Attributes:
        path: the folder that `save_to_disk` wrote, of one split.
        x, y: columns of inputs and labels; None takes the usual names.
        size, grey: for images, as in `ImageFolder`.
        tokenizer, length: for texts, as in `Glosses`.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = ""
    x: str | None = None
    y: str | None = None
    size: Count | None = None
    grey: bool = False
    tokenizer: Literal["minilm", "bytes"] = "minilm"
    length: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        _given(self, "path", "a folder that save_to_disk wrote")

    def open(self) -> Data | Strings:
        return huggingface(self.path, self.x, self.y, self.size, self.grey)


def below(spec: S, folder: str | Path) -> S:
    """The Spec with its relative paths, and those of the Specs inside it, read from a folder.

    `~` and variables such as `$HOMEOSTAT_DATA` are filled in. Which fields are paths is in `paths` of their class.

    >>> below(NPZ("a.npz"), "/data").path, below(NPZ("/b.npz"), "/data").path
    ('/data/a.npz', '/b.npz')

    Raises:
        InputError: a path names a variable that is not set.
    """
    paths, changes = getattr(type(spec), "paths", ()), dict[str, Any]()
    for name, value in spec.fields().items():
        if name in paths and isinstance(value, str) and value:
            changes[name] = os.path.normpath(Path(folder) / _filled(value))
        elif isinstance(value, Spec):
            changes[name] = below(value, folder)
        elif isinstance(value, tuple):
            changes[name] = tuple(below(item, folder) if isinstance(item, Spec) else item for item in value)
    return spec.replace(**{name: value for name, value in changes.items() if value != getattr(spec, name)})


def _filled(path: str) -> Path:
    text = os.path.expandvars(path)
    if left := re.search(r"\$(\w+|\{\w+\})", text):
        raise InputError(f"the path {path} names the variable {left[0]}, which is not set")
    return Path(text).expanduser()


def _given(spec: Spec, name: str, what: str) -> None:
    if not getattr(spec, name):
        raise SpecError(f"{type(spec).__name__} needs {name}: {what}").at(name)


def _minilm() -> Any:
    from homeostat.nn.minilm import MiniLM

    return MiniLM.tokenizer()
