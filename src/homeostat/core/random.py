"""Named and per-sample randomness.

Two rules make runs repeatable. A generator is found by name (`seed_for(seed, "restore")`), so a draw added elsewhere
shifts nothing; and what happens to a sample is seeded by the sample's id (`Draw`), so it is the same in any order, in
any batch and after a resume.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name, the same on every machine."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator for these names; the same names give the same draws."""
    return torch.Generator().manual_seed(seed_for(seed, *names))


def _mix(value: int) -> int:
    """One step of splitmix64: neighbouring inputs give unrelated outputs."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Draw:
    """Random tensors for a batch in which every row depends on its sample's id alone.

    Each call is a new, independent stream; the order of calls matters, the batch they are made in does not.

    Args:
        seed: the run's seed for this purpose (see `seed_for`).
        ids: integer tensor `[batch]`, the samples' ids.

    >>> import torch
    >>> a = Draw(0, torch.tensor([3, 7])).normal(2)
    >>> b = Draw(0, torch.tensor([7])).normal(2)
    >>> bool((a[1] == b[0]).all())
    True
    """

    def __init__(self, seed: int, ids: Tensor):
        self.seed, self.ids = seed, ids
        self._calls = 0
        self._generator = torch.Generator()

    def __len__(self) -> int:
        return len(self.ids)

    def _fill(self, shape: tuple[int, ...], fill, dtype: torch.dtype = torch.float32) -> Tensor:
        out = torch.empty((len(self.ids), *shape), dtype=dtype)
        stream = _mix(self.seed ^ _mix(self._calls))
        self._calls += 1
        for row, index in zip(out, self.ids.tolist(), strict=True):
            self._generator.manual_seed(_mix(stream ^ _mix(index & _MASK)) >> 1)
            fill(row)
        return out

    def normal(self, *shape: int) -> Tensor:
        """Standard normal `[batch, *shape]`, float32."""
        return self._fill(shape, lambda row: row.normal_(generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on `[0, 1)`, `[batch, *shape]`, float32."""
        return self._fill(shape, lambda row: row.uniform_(generator=self._generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in `[low, high)`, int64 `[batch, *shape]`."""
        return self._fill(shape, lambda row: row.random_(low, high, generator=self._generator), torch.int64)

    def poisson(self, rate: Tensor) -> Tensor:
        """Poisson counts with the given rates `[batch, ...]`."""
        if len(rate) != len(self.ids):
            raise ValueError(f"rate has {len(rate)} rows for {len(self.ids)} samples")
        rows = iter(rate)
        return self._fill(
            tuple(rate.shape[1:]), lambda row: row.copy_(torch.poisson(next(rows).float(), generator=self._generator))
        )
