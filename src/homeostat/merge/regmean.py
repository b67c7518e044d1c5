"""RegMean: the linear layer that comes nearest to what every donor's layer gives on its own inputs.

For a linear layer with weights W_m `[out, in]` and inputs X_m `[samples, in]` of donor m, the merged layer minimises
sum_m |X_m W^T - X_m W_m^T|^2, which has the solution

    W^T = (sum_m G_m)^-1 sum_m G_m W_m^T,      G_m = X_m^T X_m

with the off-diagonal entries of each G_m multiplied by `shrink`. All other parameters are averaged, and so are weights
that several layers share, such as an embedding's and the head's. Needs inputs, and no labels; one forward pass over
them a donor. Where no input ever went, and in layers that are never called (the output of `nn.MultiheadAttention`,
which reads its weights itself), the average stands.

Layers are merged one by one, each for the inputs that it had in its own donor; in a deep network these drift away, and
nothing repairs it.

Reference: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.core.fork import matches
from homeostat.core.holding import holding
from homeostat.core.method import Card, Remedy
from homeostat.core.place import home, there
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction
from homeostat.core.world import World
from homeostat.merge.arithmetic import Average
from homeostat.merge.engine import merge_weights
from homeostat.merge.fisher_merging import data_of
from homeostat.merge.merging import as_network


@dataclass(frozen=True)
class RegMean(Remedy):
    """Merges `world.models` by regression of each linear layer on the donors' outputs, the rest by averaging.

    Attributes:
        shrink: factor of the off-diagonal entries of the inputs' products; the paper's alpha, 0.9. 1 trusts them fully.
        samples: whose inputs are seen, of each donor, taken evenly.
        streams: inputs for all donors as `world.source`, or for each as the part of its name, `"parts"`.
        skip: globs of parameters that stay the base's, such as heads; donors that are networks are run with their own.
    """

    shrink: Fraction = 0.9
    samples: Count = 1024
    streams: Literal["source", "parts"] = "source"
    skip: tuple[str, ...] = ()

    card: ClassVar[Card] = Card(
        paper="Jin et al., Dataless Knowledge Fusion, ICLR 2023", handles=frozenset({"tasks", "covariate"}),
        needs=frozenset({"models.*", "model.linear"}), passes=0.0,
    )  # fmt: skip

    def needs(self) -> frozenset[str]:
        return self.card.needs | {"source.x" if self.streams == "source" else "parts.*.x"}

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        skipped = matches(self.skip)
        linear = [name for name in _linear(model) if not skipped(_weight(name))]
        tensors, products = [], []
        for name, donor in world.models.items():
            network = as_network(donor, model, name, self.skip)
            products.append(self._products(network, linear, data_of(world, name, self.streams, self.samples)))
            tensors.append({n: home(p.detach()) for n, p in network.named_parameters() if p.is_floating_point()})
        kept = {n: home(p.detach()) for n, p in model.named_parameters() if n in tensors[0] and not skipped(n)}
        merged = merge_weights(Average(), kept, tensors, run=run)
        for name in linear:
            weight = _weight(name)
            never = torch.zeros(2 * merged[weight].shape[1:], dtype=torch.float64)
            seen = [made.get(name, never) for made in products]
            merged[weight] = _solved(seen, [t[weight].double() for t in tensors]).to(merged[weight].dtype)
        return holding(model, merged)

    def _products(self, network: nn.Module, linear: list[str], data: Any) -> dict[str, Tensor]:
        """X^T X of every linear layer's inputs, shrunk, float64."""
        found: dict[str, Tensor] = {}

        def look(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                x = args[0].detach().flatten(0, -2).double() if args[0].dim() > 1 else args[0].detach()[None].double()
                found[name] = found.get(name, 0.0) + home(x.T @ x)

            return hook

        handles = [network.get_submodule(name).register_forward_pre_hook(look(name)) for name in linear]
        try:
            with torch.no_grad():
                for batch in data.batches(64):
                    network(there(batch.x, network))
        finally:
            for handle in handles:
                handle.remove()
        return {name: g * self.shrink + torch.diag(g.diagonal()) * (1 - self.shrink) for name, g in found.items()}


def _linear(model: nn.Module) -> list[str]:
    """Linear layers with a weight of their own."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and owners[id(m.weight)] == 1]


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _solved(products: list[Tensor], donors: list[Tensor]) -> Tensor:
    """The regression; in directions that no input has, the average."""
    mean = torch.stack(donors).mean(0)
    left = torch.stack(products).sum(0)
    right = sum(g @ (w - mean).T for g, w in zip(products, donors, strict=True))
    return mean + (torch.linalg.pinv(left, hermitian=True, rtol=1e-10) @ right).T
