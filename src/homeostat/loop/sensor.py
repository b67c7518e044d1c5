"""What the frozen network says of a window: its outputs and what goes into its last layer, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import CheckpointError, InputError, ModelError, NonFiniteError
from homeostat.core.online import Bag
from homeostat.core.part import recipe
from homeostat.core.place import HOME, there
from homeostat.core.probe import Outputs
from homeostat.core.run import Run
from homeostat.core.save import load, save
from homeostat.core.spec import digest
from homeostat.core.taps import head, tapped
from homeostat.core.task import Task
from homeostat.core.tree import Tree
from homeostat.core.weights import fingerprint

WIDEST = 4096
"""Features a sample beyond which they are not looked at: those of a sequence, not of a sample."""

LARGEST = 64 << 20
"""Bytes of outputs that are kept on disk, at most."""


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

    def __call__(self, batch: Batch, x: Tree | None = None) -> Outputs:
        """Outputs of the frozen network, on the CPU.

        Args:
            batch: a window.
            x: its inputs where the network lies, if they are there already.

        Raises:
            InputError: the network cannot take these inputs. NonFiniteError: it gives NaN or infinity for them.
        """
        net, features = self.frozen, None
        x = there(batch.x, net) if x is None else x
        try:
            with torch.no_grad():
                if self.layer is None:
                    out = net(x)
                else:
                    out, features = tapped(net, x, net, self.layer)
        except ModelError:
            # The last linear layer is there and takes no part: the outputs alone are looked at.
            self.layer = None
            return self(batch, x)
        except RuntimeError as error:
            raise InputError(f"the network cannot take these inputs: {str(error).splitlines()[0]}") from None
        self.task.check(out, None)
        if features is not None and (features.shape[0] != len(batch) or features.shape[1] > WIDEST):
            features = None
        seen = Outputs(out, batch.y, batch.id, features=features, task=self.task).to(HOME)
        if not bool(torch.isfinite(seen.logits).all()):
            raise NonFiniteError("the network as deployed gives NaN or infinity for these inputs; look at their range")
        return seen

    def read_kept(self, data: Data, name: str, run: Run) -> Outputs:
        """`read` for labelled data, or what it gave before, from `run.scratch`; what is large is not kept there.

        Args:
            data: labelled data.
            name: what errors call them.
            run: where to keep the outputs.
        """
        assert run.scratch is not None
        key = digest(
            "outputs", fingerprint(self.frozen), recipe(self.frozen), data.fingerprint(), self.task.to_config()
        )
        path = run.scratch / "outputs" / key
        if path.exists():
            try:
                found: Any = load(path)
                kept = {name: found[name] for name in found}
                return Outputs(kept["out"], kept.get("y"), kept["id"], features=kept.get("features"), task=self.task)
            except CheckpointError:
                run.emit("outputs unreadable, computed again", values={"path": str(path)})
        made = self.read(data)
        self.task.check(made.logits, made.y, f"{name}.y")
        kept = {"out": made.logits, "y": made.y, "id": made.id, "features": made.features}
        tensors = {name: tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)}
        if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST:
            try:
                save(Bag(tensors), path)
            except OSError as error:
                run.emit("outputs not kept", values={"path": str(path), "why": str(error)})
        return made

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
