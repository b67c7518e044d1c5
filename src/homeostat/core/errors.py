"""Every error this library raises on purpose.

All derive from `HomeostatError` and from the closest built-in, so that callers may catch either. A message says what
came, what was wanted and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HomeostatError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        path: where in a configuration the fault lies, as keys and positions from the outside in; empty elsewhere.
    """

    path: tuple[str | int, ...] = ()

    def at(self, *keys: str | int) -> HomeostatError:
        """The same error, with `keys` put before its path."""
        self.path = (*keys, *self.path)
        return self


class InputError(HomeostatError, ValueError):
    """Data or an argument has the wrong shape, range or content."""


class DtypeError(HomeostatError, TypeError):
    """A tensor or an argument has the wrong type."""


class NonFiniteError(InputError):
    """NaN or infinity in data, weights or a loss."""


class MissingPart(HomeostatError, LookupError):
    """A method needs a part of the world, the model or the machine that was not given."""


class UnknownName(HomeostatError, LookupError):
    """A name that is not registered; the message suggests the nearest ones."""


class SpecError(HomeostatError, ValueError):
    """A hyper-parameter has the wrong name, type or range."""


class ModelError(HomeostatError, ValueError):
    """A model does not fit what is asked of it (width, layers, norm layers)."""


class CheckpointError(HomeostatError, ValueError):
    """A checkpoint is truncated, foreign or does not fit the model."""


class StoreError(HomeostatError, OSError):
    """The loop's store cannot be read, written or locked."""


class TrackerError(HomeostatError, OSError):
    """An experiment tracker cannot be reached, or refuses what it is given."""


class MissingExtra(HomeostatError, ImportError):
    """An optional package is absent; the message names the extra to install."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not close:
        lower = {k.lower(): k for k in known}
        close = [lower[c] for c in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
