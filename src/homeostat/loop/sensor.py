"""What the frozen network says of a window: its outputs and what goes into its last layer, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import InputError, ModelError, NonFiniteError
from homeostat.core.probe import Outputs
from homeostat.core.taps import head, tapped
from homeostat.core.task import Task

WIDEST = 4096
"""Features a sample beyond which they are not looked at: those of a sequence, not of a sample."""


class Sensor:
    """Reads a network with the frozen one's layers.

    Args:
        frozen: the network as deployed.
        task: what outputs and labels mean.
    """

    def __init__(self, frozen: nn.Module, task: Task):
        self.frozen, self.task = frozen, task
        try:
            self.layer: str | None = head(frozen)
        except ModelError:
            self.layer = None

    def __call__(self, batch: Batch, model: nn.Module | None = None) -> Outputs:
        """Outputs of the frozen network, or of a `model` that is one with it.

        Raises:
            InputError: the network cannot take these inputs. NonFiniteError: it gives NaN or infinity for them.
        """
        net, features = self.frozen if model is None else model, None
        try:
            with torch.no_grad():
                if self.layer is None:
                    out = net(batch.x)
                else:
                    out, features = tapped(net, batch.x, net, self.layer)
        except ModelError:
            # The last linear layer is there and takes no part: the outputs alone are looked at.
            self.layer = None
            return self(batch, model)
        except RuntimeError as error:
            raise InputError(f"the network cannot take these inputs: {str(error).splitlines()[0]}") from None
        self.task.check(out, None)
        assert isinstance(out, Tensor)
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError("the network as deployed gives NaN or infinity for these inputs; look at their range")
        if features is not None and (features.shape[0] != len(batch) or features.shape[1] > WIDEST):
            features = None
        return Outputs(out, batch.y, batch.id, features=features, task=self.task)

    def read(self, data: Data, size: int = 256) -> Outputs:
        """Outputs for all of some data."""
        parts = [self(batch) for batch in data.batches(size)]
        features = [part.features for part in parts]
        whole = [f for f in features if f is not None]
        return Outputs(
            torch.cat([part.logits for part in parts]),
            None if parts[0].y is None else torch.cat([part.labels for part in parts]),
            torch.cat([part.id for part in parts]),
            features=torch.cat(whole) if len(whole) == len(parts) else None, task=self.task,
        )  # fmt: skip
