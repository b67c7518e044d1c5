"""Multi-layer perceptron: flattens each sample, then linear layers with a non-linearity between them.

For a sample of n numbers and hidden widths h1..hk, layer i is `activation(norm(W_i a + b_i))`, and the last one is
linear with `classes` outputs. Starting weights are He-normal.

>>> import torch
>>> MLP(inputs=784, classes=10, hidden=(32,))(torch.rand(2, 1, 28, 28)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.errors import DtypeError, InputError, SpecError, nearest
from homeostat.core.part import Part
from homeostat.nn.blocks import at_least_one, start

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
_NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(Part):
    """A multi-layer perceptron for samples of any shape with `inputs` numbers each.

    Args:
        inputs: numbers a sample.
        classes: number of outputs.
        hidden: width of each hidden layer; empty for a linear model.
        activation: `"relu"`, `"gelu"` or `"tanh"`.
        norm: `"none"`, `"batch"` or `"layer"`, before the activation.
        bias: whether linear layers have one.
        seed: of the starting weights.
    """

    def __init__(
        self, inputs: int, classes: int = 10, hidden: Sequence[int] = (256, 256), activation: str = "relu",
        norm: str = "none", bias: bool = True, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.inputs, self.classes, self.hidden = inputs, classes, tuple(hidden)
        self.activation, self.norm, self.bias, self.seed = activation, norm, bias, seed
        at_least_one(inputs=inputs, classes=classes, **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        for name, value, known in (("activation", activation, _ACTIVATIONS), ("norm", norm, _NORMS)):
            if value not in known:
                raise SpecError(f"{name} = {value!r}, but it must be one of {', '.join(known)}.{nearest(value, known)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        kind = _NORMS[norm]
        for i, (before, after) in enumerate(zip((inputs, *hidden), hidden, strict=False)):
            layers[f"linear{i}"] = nn.Linear(before, after, bias)
            if kind is not None:
                layers[f"norm{i}"] = kind(after)
            layers[f"activation{i}"] = _ACTIVATIONS[activation]()
        self.layers = nn.Sequential(layers)
        self.linear = nn.Linear(self.hidden[-1] if hidden else inputs, classes, bias)
        start(self, seed)

    def forward(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits."""
        if not x.is_floating_point():
            raise DtypeError(f"x has dtype {x.dtype}; floats are wanted: x.float()")
        if x.ndim < 2 or len(x) == 0 or x[0].numel() != self.inputs:
            raise InputError(
                f"x has shape {tuple(x.shape)}; a batch of samples of {self.inputs} numbers each is wanted"
            )
        return self.linear(self.layers(x.flatten(1)))
