"""A window of the stream, once it was served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from homeostat.core.data import Batch
from homeostat.core.probe import Outputs


@dataclass(frozen=True)
class Window:
    """A window that was served.

    Attributes:
        batch: what came, on the CPU; `y` are labels, `UNKNOWN` where they have not come.
        there: its inputs where the networks lie, without labels.
        out: logits of the answer.
        own: what is served gave, which the answer is but where the window is hedged.
        seen: the frozen network's outputs.
        failed: why what is served could not answer, or empty.
        hedged: why the deployed network answered in its place, or empty.
        ms: how long serving took.
        late: labels of earlier windows that have come: labels, ids, and the window or None.
    """

    batch: Batch
    there: Batch
    out: Tensor
    own: Tensor
    seen: Outputs
    failed: str = ""
    hedged: str = ""
    ms: float = 0.0
    late: Sequence[tuple[Tensor, Tensor, int | None]] = ()
