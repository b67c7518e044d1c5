"""What CEMA's edge and cloud say to each other: safetensors, and nothing else.

Up go samples, down come the parameters of the normalisation layers, as one flat tensor in an order that both sides
know. A message holds

- `about`: int64 `[3]`: version of the format, what kind, and a fingerprint of the edge's normalisation parameters;
- `x`: the samples `[count, ...]` (up; absent where there are none);
- `norm`: normalisation parameters `[numbers]` (down when they changed; up when the cloud may not have them).

The fingerprint is taken of the parameters themselves, so that both sides find out that they are out of step whatever
happened: a reply that was lost, a reset, a checkpoint of yesterday. Bytes are counted as the length of messages; what
HTTP puts around one is not in it.

>>> message = Message(123, x=torch.zeros(2, 3))
>>> back = Message.read(message.bytes())
>>> back.fingerprint, tuple(back.x.shape), back.norm is None
(123, (2, 3), True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes, save as to_bytes
from torch import Tensor

from homeostat.core.data import check_finite
from homeostat.core.errors import HomeostatError, InputError
from homeostat.core.place import HOME
from homeostat.core.weights import hash_tensors

FORMAT = 1


class OutOfStep(HomeostatError, RuntimeError):
    """The cloud does not have the edge's normalisation parameters; send them along."""


class LinkDown(HomeostatError, ConnectionError):
    """The cloud cannot be reached, takes too long, or refuses what it is sent.

    Args:
        text: what happened.
        sent: whether the message went out, or may have; then its bytes count.
        got: bytes of an answer of no use.
    """

    def __init__(self, text: str, *, sent: bool = True, got: int = 0):
        super().__init__(text)
        self.sent, self.got = sent, got


@dataclass(frozen=True)
class Message:
    """A message, either way.

    Attributes:
        fingerprint: of the edge's normalisation parameters: as the edge has them (up), as it is to have them (down).
        x: samples.
        norm: normalisation parameters.
    """

    fingerprint: int
    x: Tensor | None = None
    norm: Tensor | None = None

    def bytes(self) -> bytes:
        """The message as it travels."""
        named = {"about": torch.tensor([FORMAT, 0, self.fingerprint])}
        for name, tensor in (("x", self.x), ("norm", self.norm)):
            if tensor is not None:
                named[name] = tensor.detach().to(HOME).contiguous()
        return to_bytes(named)

    @classmethod
    def read(cls, data: bytes) -> Message:
        """A message from its bytes.

        Raises:
            InputError: it is none, of another version, or holds what a message does not.
            NonFiniteError: it holds NaN or infinity.
        """
        try:
            named = from_bytes(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{len(data)} bytes are no CEMA message ({error}); safetensors are wanted") from None
        about = named.pop("about", None)
        strange = sorted(set(named) - {"x", "norm"})
        if about is None or about.dtype != torch.int64 or about.shape != (3,) or strange:
            what = f"it holds {', '.join(strange)}" if strange else "its `about` is missing or malformed"
            raise InputError(f"the safetensors are no CEMA message: {what}")
        if int(about[0]) != FORMAT:
            raise InputError(f"the message has format {int(about[0])}, this side reads {FORMAT}; use equal versions")
        x, norm = named.get("x"), named.get("norm")
        if x is not None and (x.ndim < 1 or len(x) == 0):
            raise InputError(f"the message's samples have shape {tuple(x.shape)}; at least one sample is wanted")
        if norm is not None and (norm.ndim != 1 or not norm.is_floating_point()):
            raise InputError(
                f"the message's parameters are {norm.dtype} {tuple(norm.shape)}; one row of floats is wanted"
            )
        for name, tensor in named.items():
            try:
                check_finite(tensor, f"the message's {name}")
            # Torch cannot even compare the smallest floats.
            except NotImplementedError:
                raise InputError(f"the message's {name} is {tensor.dtype}, which cannot be computed with") from None
        return cls(int(about[2]), x, norm)


def reply_size(norm: Mapping[str, Tensor]) -> int:
    """How many bytes come down with these parameters."""
    return len(Message(0, norm=flattened(norm)).bytes())


def fingerprint_of(norm: Mapping[str, Tensor]) -> int:
    """A 63-bit fingerprint of named parameters, the same wherever they lie."""
    return int(hash_tensors({name: t.detach().to(HOME) for name, t in norm.items()})[:16], 16) >> 1


def flattened(norm: Mapping[str, Tensor]) -> Tensor:
    """Named parameters as one row, in their order, on the CPU."""
    return torch.cat([tensor.detach().to(HOME).flatten() for tensor in norm.values()])


def filled(norm: Mapping[str, Tensor], flat: Tensor, fingerprint: int) -> dict[str, Tensor]:
    """New values for named parameters out of one row, checked against the fingerprint that came with it.

    Raises:
        InputError: they are of another network, or were damaged on the way.
    """
    wanted = sum(tensor.numel() for tensor in norm.values())
    if flat.numel() != wanted:
        raise InputError(f"{flat.numel()} normalisation parameters came, and this network has {wanted}")
    pieces = flat.split([tensor.numel() for tensor in norm.values()])
    made = {name: piece.view(t.shape).to(t.dtype) for (name, t), piece in zip(norm.items(), pieces, strict=True)}
    if fingerprint_of(made) != fingerprint:
        raise InputError(
            "the normalisation parameters do not have the fingerprint that came with them; another network?"
        )
    return made
