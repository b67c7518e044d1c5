"""A data set by name with a shift on it: augmented training data, colored images, for files.

    data: {Shifted: {of: {FashionMNIST: {split: train}}, by: {Rotate: {degrees: 15, jitter: true}}, copies: 3}}

What is random is drawn when it is read, from `seed`. With `copies` each sample comes that many times, changed anew
each time; an epoch over three copies sees what three epochs of fresh augmentation would.

>>> from homeostat.shift import Rotate
>>> from homeostat.data import Digits
>>> len(Shifted(of=Digits(stop=10), by=Rotate(90.0), copies=2).read())
20
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.core.data import Data, Joined, Tensors, join
from homeostat.core.errors import SpecError
from homeostat.core.method import Shift
from homeostat.core.random import seed_for
from homeostat.core.run import Run
from homeostat.core.spec import Count, Index
from homeostat.data.reader import Reader


@dataclass(frozen=True)
class Shifted(Reader):
    """Another data set under a shift, kept in memory as it came out.

    Attributes:
        of: the data set.
        by: the shift.
        copies: how often each sample is changed, with other draws each time.
        seed: of the draws.
    """

    of: Reader | None = None
    by: Shift | None = None
    copies: Count = 1
    seed: Index = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of is None or self.by is None:
            name, what = ("by", "a shift") if self.of else ("of", "a data set, such as {FashionMNIST: {split: train}}")
            raise SpecError(f"Shifted needs {name}: {what}").at(name)

    def open(self) -> Data:
        assert self.of is not None and self.by is not None
        base = self.of.read()
        runs = [Run(seed=seed_for(self.seed, "copy", copy)) for copy in range(self.copies)]
        batch = join(list(Joined([self.by(base, run=run) for run in runs]).batches(1000)))
        return Tensors(batch.x, batch.y, batch.id)
