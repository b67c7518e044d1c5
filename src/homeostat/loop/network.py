"""Networks by name, for files: a layout of the library with weights from a file, or trained on the spot.

`layout` is a network of `homeostat.nn` with its arguments. Its weights come from a safetensors file, from training on
`data`, or from both, training last. The published ResNet-20 for CIFAR-10, and a small one that a file trains itself:

    Network:
      layout: {ResNet: {depth: 20}}
      weights: $HOMEOSTAT_DATA/weights/resnet20-cifar10.safetensors
      mean: [0.485, 0.456, 0.406]
      std: [0.229, 0.224, 0.225]

    Network:
      layout: {ResNet: {depth: 8, in_channels: 1, width: 8}}
      data: {Digits: {shuffle: 0, stop: 900}}
      recipe: {Recipe: {epochs: 15, batch: 64, optimizer: {SGD: {lr: 0.05}}}}

>>> Network({"ResNet": {"depht": 8}}, data=Digits())
Traceback (most recent call last):
...
homeostat.core.errors.SpecError: ResNet has no argument 'depht'. Did you mean 'depth'?
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from homeostat.core import spec
from homeostat.core.errors import HomeostatError, MissingPart, SpecError, UnknownName, nearest
from homeostat.core.part import Part
from homeostat.core.place import placed
from homeostat.core.run import Run
from homeostat.core.save import fill
from homeostat.core.spec import Spec
from homeostat.core.weights import Weights
from homeostat.core.world import World
from homeostat.data.reader import Digits as Digits, Reader
from homeostat.fit.fit import Fit
from homeostat.fit.training import Recipe
from homeostat.nn.normalized import Normalized


@dataclass(frozen=True)
class Network(Spec):
    """A network to serve; see the module's docstring.

    Attributes:
        layout: the name of a network of `homeostat.nn`, or a mapping of its name to its arguments.
        weights: a safetensors file with the layout's tensors, without the normalization below.
        mean, std: of the training images, one number a channel; given, the network takes images in 0..1.
        data: labelled data to train on.
        recipe: how to train on them.
    """

    paths: ClassVar[tuple[str, ...]] = ("weights",)

    layout: Any = None
    weights: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    data: Reader | None = None
    recipe: Recipe = Recipe(epochs=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.layout)
        if not self.weights and self.data is None:
            raise SpecError(f"Network {_named(self.layout)[0]} has neither weights nor data; it would serve guesses")
        if len(self.mean) != len(self.std):
            raise SpecError(f"Network.mean has {len(self.mean)} numbers and std {len(self.std)}").at("mean")

    def build(self, run: Run = Run()) -> nn.Module:
        """The network, in evaluation mode.

        Args:
            run: seed and device of the training, and a scratch folder where what was trained is found again.

        Raises:
            MissingPart: weights or data are not there. CheckpointError: the weights do not fit.
            SpecError: the layout refuses its arguments.
        """
        net = made_of(self.layout)
        if self.weights:
            path = Path(self.weights)
            if not path.exists():
                raise MissingPart(f"there are no weights at {path}")
            # Clones: tensors of a mapped file would change with it.
            fill(net, {name: tensor.clone() for name, tensor in Weights(path).items()}, str(path))
        if self.mean:
            net = Normalized(net, self.mean, self.std)
        net = placed(net, run.device)
        if self.data is not None:
            net = Fit(recipe=self.recipe)(net, World(source=self.data.read()), run=run)
        return net.eval()


def made_of(layout: Any) -> nn.Module:
    """A layout's network with its starting weights.

    Raises:
        UnknownName, SpecError: there is no such network, or it refuses its arguments.
    """
    _check(layout)
    name, arguments = _named(layout)
    try:
        return spec.find(name)(**arguments)
    except HomeostatError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"{name} refuses {arguments}: {error}") from None


def _named(layout: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(layout, str):
        return layout, {}
    if not (isinstance(layout, Mapping) and len(layout) == 1):
        what = f"got {layout!r}" if layout is not None else "there is none"
        raise SpecError(f"a network's layout is a mapping with one name, as in {{ResNet: {{depth: 20}}}}; {what}")
    ((name, arguments),) = layout.items()
    if not isinstance(arguments, Mapping | None):
        raise SpecError(f"{name}: its arguments are a mapping; got {arguments!r}")
    return str(name), dict(arguments or {})


def _check(layout: Any) -> None:
    """Raise our error, with its place in the file, where no network can be made of a layout."""
    try:
        name, given = _named(layout)
    except SpecError as error:
        raise error.at("layout") from None
    try:
        cls = spec.find(name)
    except UnknownName as error:
        raise error.at("layout", name) from None
    if not (isinstance(cls, type) and issubclass(cls, Part)):
        raise SpecError(f"{name} is no network of homeostat.nn").at("layout", name)
    known = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for key in given:
        if key not in known:
            hint = nearest(str(key), known) or f" It has: {', '.join(known) or 'none'}."
            raise SpecError(f"{name} has no argument {key!r}.{hint}").at("layout", name, str(key))
    wanted = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in given]
    if wanted:
        raise SpecError(f"{name} needs {', '.join(wanted)}").at("layout", name)
