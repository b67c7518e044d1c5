"""EFT: emulate a fine-tuned large network by arithmetic on outputs, without tuning it.

Somebody fine-tuned a small network; you want the same change in a large one whose weights you cannot or will not
train. Seen as reinforcement learning with a penalty on leaving the start, fine-tuning adds log p_tuned - log p_start
to what the start says, and this sum can be taken from a small pair and put onto a large network:

    log p(y) = log p_base(y) + sum_i w_i (log p_i(y) - log p_reference(y)) - log Z

for a token y, with the large `base`, the small `reference`, networks i that were tuned from the reference, and Z
over the vocabulary of each token by itself. One tuned network and w = 1 is *up-scaling*. Several with sum_i w_i = 1
are a dial between behaviours that is turned while serving; w > 1 exaggerates, w < 0 turns away. The base itself may be
the reference: then its own fine-tuned descendants are mixed.

With `top_p` below 1, only tokens of the base's nucleus (the fewest whose probabilities add up to `top_p`) are
reweighted; the others keep the base's odds, so that ratios of two tiny probabilities do not lift nonsense.

`Emulated.draw` samples texts. The small tuned network proposes and the emulated one disposes (see `nn.decoding`), so
that the large network runs once for several tokens, and what comes out is distributed exactly as without.

Defaults: w_i = 1 / n, the paper's up-scaling for one; no filtering. All networks must have the same outputs: the same
vocabulary in the same order, which is not checked beyond its size. Z is taken token by token where fine-tuning would
normalise whole texts, so even a perfect reward is emulated approximately; and where the reference is unsure of
what the base knows well, the ratio is noise. Each answer costs a forward pass of every network.

>>> base, tuned, reference = (torch.nn.Linear(1, 2, bias=False) for _ in range(3))
>>> for net, logits in ((base, [2.0, 0.0]), (tuned, [0.0, 1.0]), (reference, [0.0, 0.0])):
...     net.weight.data = torch.tensor(logits)[:, None]
>>> emulated = EFT()(base, World(models={"tuned": tuned, "reference": reference}))
>>> emulated(torch.ones(1, 1)).exp().detach()
tensor([[0.7311, 0.2689]])

Reference: Mitchell et al., An Emulator for Fine-Tuning Large Language Models using Small Language Models, ICLR 2024;
Liu et al., Tuning Language Models by Proxy, COLM 2024, has the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import annotated_types as at
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.core.errors import InputError, ModelError, NonFiniteError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.part import Part
from homeostat.core.place import device_of, placed
from homeostat.core.run import Run
from homeostat.core.save import fill
from homeostat.core.tree import Tree
from homeostat.core.weights import check_weights
from homeostat.core.world import World
from homeostat.nn.blocks import holds
from homeostat.nn.decoding import Drafted, sample_tokens, speculative_sample

REFERENCE = "reference"


def emulate(
    base: Float[Tensor, "*batch classes"],
    tuned: Sequence[Float[Tensor, "*batch classes"]],
    reference: Float[Tensor, "*batch classes"],
    weights: Sequence[float],
    top_p: float = 1.0,
) -> Float[Tensor, "*batch classes"]:
    """Log-probabilities of the emulated network.

    Args:
        base: logits or log-probabilities of the large network.
        tuned: of the small tuned ones.
        reference: of the small one that they were tuned from.
        weights: w_i.
        top_p: share of the base's probability that is reweighted.

    >>> emulate(torch.zeros(2), [torch.tensor([1.0, 0.0])], torch.zeros(2), [1.0])
    tensor([-0.3133, -1.3133])
    """
    start, low = base.log_softmax(-1), reference.log_softmax(-1)
    change = torch.zeros_like(start)
    for logits, weight in zip(tuned, weights, strict=True):
        if weight:
            change = change + weight * (logits.log_softmax(-1) - low)
    # What the base rules out stays out, also where the small ones rule it out, too: there the change is no number.
    change = change.masked_fill(start.isneginf(), 0.0)
    if top_p < 1:
        change = change.masked_fill(~_nucleus(start, top_p), 0.0)
    if not holds(((change < torch.inf) | start.isneginf()).all()):
        raise NonFiniteError(
            "a tuned network allows what the reference rules out (log 0); the change is infinite there"
        )
    return (start + change).log_softmax(-1)


class Emulated(Part):
    """A network whose outputs are the arithmetic of others; see the module's docstring.

    Args:
        base: the large network.
        tuned: the tuned ones, as `nn.Sequential(one, another)`, which is a list here, or as a list of them.
        reference: what they were tuned from; None is the base.
        weights: one for each of the tuned ones.
        top_p: share of the base's probability that is reweighted.

    Outputs are log-probabilities, `[batch, classes]` or `[batch, time, vocabulary]`.
    """

    def __init__(
        self, base: nn.Module, tuned: nn.Module | Sequence[nn.Module], reference: nn.Module | None = None,
        weights: Sequence[float] = (1.0,), top_p: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        listed = isinstance(tuned, (nn.Sequential, Sequence))
        self.base, self.reference = base, reference
        self.tuned = tuned if isinstance(tuned, nn.Sequential) else nn.Sequential(*(tuned if listed else [tuned]))
        self.weights, self.top_p = tuple(float(weight) for weight in weights), float(top_p)
        if len(self.weights) != len(self.tuned):
            raise SpecError(
                f"{len(self.weights)} weights for {len(self.tuned)} tuned networks; one each is wanted. A network that "
                "is itself an nn.Sequential is given in a list"
            )

    def forward(self, x: Tree) -> Float[Tensor, "*batch classes"]:
        """Log-probabilities."""
        base, tuned = self.base(x), [net(x) for net in self.tuned]
        reference = base if self.reference is None else self.reference(x)
        for name, out in (("reference", reference), *((f"tuned[{i}]", out) for i, out in enumerate(tuned))):
            if not isinstance(out, Tensor) or out.shape != base.shape:
                found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ModelError(f"{name} gives {found}, the base {tuple(base.shape)}; one vocabulary is wanted")
        return emulate(base, tuned, reference, self.weights, self.top_p)

    def draw(
        self, prompt: Int[Tensor, "batch time"] | Any, count: int, generator: torch.Generator, ahead: int = 4,
        speculative: bool = True,
    ) -> Drafted:  # fmt: skip
        """Continue each prompt by `count` tokens.

        Args:
            prompt: int64 `[batch, time]`.
            count: new tokens.
            generator: on the CPU.
            ahead: tokens that the first tuned network proposes before the large one looks.
            speculative: False draws token by token, from the same distribution.
        """
        if speculative:
            return speculative_sample(self, self.tuned[0], prompt, count, generator, ahead)
        return Drafted(sample_tokens(self, prompt, count, generator), count, 0.0)


@dataclass(frozen=True)
class EFT(Remedy):
    """Puts the change of small tuned networks onto the given large one, by their outputs.

    `world.models` holds the tuned networks and, under the name `reference`, what they were tuned from; without that
    the given network is the reference. Weights without a module are read into the given network's structure.

    Attributes:
        weights: one for each tuned network, in the world's order; default 1 / n each.
        top_p: share of the base's probability that is reweighted.
    """

    weights: tuple[float, ...] = ()
    top_p: Annotated[float, at.Gt(0), at.Le(1)] = 1.0

    card: ClassVar[Card] = Card(
        id="S131", paper="Mitchell et al., An emulator for fine-tuning, ICLR 2024",
        handles=frozenset({"tasks", "concept"}), needs=frozenset({"models.*"}), passes=3.0,
    )  # fmt: skip

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        nets = {name: self._net(name, given, model) for name, given in world.models.items()}
        reference = nets.pop(REFERENCE, None)
        if not nets:
            raise InputError(
                "there is a reference and no tuned network: World(models={'reference': ..., 'tuned': ...})"
            )
        weights = self.weights or (1 / len(nets),) * len(nets)
        return Emulated(fork(model), list(nets.values()), reference, weights, self.top_p)

    def _net(self, name: str, given: Any, model: nn.Module) -> nn.Module:
        if isinstance(given, nn.Module):
            check_weights(given)
            return placed(fork(given), device_of(model)).eval()
        made = fork(model, own="*").eval()
        fill(made, given, f"world.models[{name!r}]")
        check_weights(made)
        return made


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The fewest tokens whose probabilities add up to `top_p`."""
    chances, order = scores.exp().sort(dim=-1, descending=True, stable=True)
    inside = chances.cumsum(-1) - chances < top_p
    return torch.zeros_like(inside).scatter(-1, order, inside)
