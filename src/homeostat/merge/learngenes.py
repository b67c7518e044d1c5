"""SWS: one small learngene from which transformers of any depth are started.

You need a family of networks that differ in depth, and training each from scratch is dear. Stage-wise weight sharing
trains one auxiliary network instead, keeps a few of its blocks (the learngene), and starts every network of the family
from copies of them.

    auxiliary   S blocks theta_1..theta_S; block s is run n_s times in a row, so that depth is n_1 + .. + n_S and
                stored are S blocks. It is trained by soft distillation from a teacher,
                    L = alpha T^2 CE(softmax(z_teacher / T) -> softmax(z / T)) + (1 - alpha) CE(y, z)
    learngene   theta_1..theta_S, the embeddings, the last norm and the head
    expansion   block i of a network of depth L starts as a copy of theta_{map(i)}, map not decreasing; from then on
                the blocks are their own, and the network is fine-tuned with `Fit`

By default the map gives every stage L / S blocks, the first ones one more where that does not divide: 12 blocks from
five stages are 0,0,0,1,1,1,2,2,3,3,4,4, the authors' own. With fewer blocks than stages, stages are left out evenly.

Training the learngene is this remedy's *kit*, done once; expansion costs a copy. A kit serves networks of all depths:

    kit = SWS().kit(net, World(source=data, models={"teacher": teacher}))
    started = [SWS()(resized(net, depth=depth), World(), kit=kit) for depth in (6, 9, 12)]

Defaults are the authors': stages 3, 3, 4, 3, 3 (16 blocks), alpha = 1, T = 1, AdamW with learning rate 5e-4 and weight
decay 0.05, 100 epochs; fine-tune descendants for a tenth of that with a learning rate of 1e-5 to 5e-5. Width, heads
and patches are the learngene's. It relies on blocks of a stage doing similar work, which residual transformers do
approximately: right after expansion a network other than the auxiliary one is worse than it, most where its depth
is far from the auxiliary one's, and needs its fine-tuning. For a single network it does not pay.

>>> from homeostat.nn import SmallViT, resized
>>> net = SmallViT(3, size=8, width=8, depth=2, heads=2).eval()
>>> auxiliary = share_stages(net, (2, 3))
>>> sum(p.numel() for p in auxiliary.parameters()) == sum(p.numel() for p in net.parameters())
True
>>> deep = expand(auxiliary, resized(net, depth=5), (0, 0, 1, 1, 1))
>>> x = torch.rand(2, 3, 8, 8)
>>> bool(torch.allclose(deep(x), auxiliary(x), atol=1e-6)), stage_map(12, 5)
(True, (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4))

Reference: Xia et al., Transformer as Linear Expansion of Learngene, AAAI 2024, and Xia et al., Exploring Learngene via
Stage-wise Weight Sharing for Initializing Variable-sized Models, IJCAI 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch
from homeostat.core.errors import CheckpointError, InputError, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.part import Part
from homeostat.core.place import device_of, placed
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, Positive
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.block_stack import resized, stack_of
from homeostat.nn.losses import soft_cross_entropy
from homeostat.nn.optimizers import Adam

TEACHER = "teacher"


class SharedBlock(Part):
    """A block that is run several times in a row, on its own outputs.

    Args:
        block: takes and gives a tensor of one shape.
        times: how often.
    """

    def __init__(self, block: nn.Module, times: int = 1):
        super().__init__()
        self.block, self.times = block, times
        if times < 1:
            raise SpecError(f"a block is run at least once; got times = {times}")

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.block(x)
            if not isinstance(x, Tensor):
                raise ModelError(f"a {type(self.block).__name__} gives a {type(x).__name__}; blocks give a tensor")
        return x


def share_stages(model: nn.Module, stages: Sequence[int]) -> nn.Module:
    """The auxiliary network: block s of the model is run `stages[s]` times.

    Args:
        model: a transformer with as many blocks as there are stages; untouched.
        stages: n_s.

    Raises:
        InputError: numbers do not fit. ModelError: the model is no such transformer (see `nn.block_stack`).
    """
    made = fork(model, own="*")
    blocks: Any = made.get_submodule(stack_of(made))
    if len(stages) != len(blocks):
        raise InputError(f"{len(stages)} stages for a network of {len(blocks)} blocks; one block a stage is wanted")
    for number, times in enumerate(stages):
        blocks[number] = SharedBlock(blocks[number], times)
    return made


def expand(auxiliary: nn.Module, model: nn.Module, stages: Sequence[int] = ()) -> nn.Module:
    """The model started from a learngene; no two of its blocks share weights.

    Args:
        auxiliary: from `share_stages`.
        model: of the same class and width and of any depth; untouched.
        stages: for each block its stage, not decreasing; default `stage_map`.

    Raises:
        InputError: the map does not fit. CheckpointError: tensors do not fit; all misfits are named.
    """
    there = stack_of(model)
    genes, made = learngene(auxiliary), fork(model, own="*")
    blocks: Any = made.get_submodule(there)
    count = 1 + max(int(name.removeprefix(f"{there}.").split(".")[0]) for name in genes if name.startswith(f"{there}."))
    chosen = tuple(stages) or stage_map(len(blocks), count)
    if len(chosen) != len(blocks) or list(chosen) != sorted(chosen) or not set(chosen) <= set(range(count)):
        raise InputError(
            f"the map {chosen} does not fit {len(blocks)} blocks and {count} stages: one stage a block, from 0 to "
            f"{count - 1}, in order"
        )
    wrong, before = [], made.state_dict()
    for name, tensor in before.items():
        parts = name.removeprefix(f"{there}.").split(".", 1)
        source = f"{there}.{chosen[int(parts[0])]}.{parts[1]}" if name.startswith(f"{there}.") else name
        if source not in genes or genes[source].shape != tensor.shape:
            found = "missing" if source not in genes else str(tuple(genes[source].shape))
            wrong.append(f"{name} is {tuple(tensor.shape)}, the learngene's {source} is {found}")
            continue
        with torch.no_grad():
            tensor.copy_(genes[source])
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors do not fit the learngene: {'; '.join(wrong[:4])}")
    return made


def learngene(auxiliary: nn.Module) -> dict[str, Tensor]:
    """What is kept of an auxiliary network, by the names of a plain network of as many blocks as stages.

    Raises:
        ModelError: the network shares no blocks.
    """
    shared = [name for name, module in auxiliary.named_modules() if isinstance(module, SharedBlock)]
    if not shared:
        raise ModelError(f"this {type(auxiliary).__name__} has no shared blocks; it comes from share_stages(...)")
    genes = {}
    for name, tensor in auxiliary.state_dict().items():
        owner = next((path for path in shared if name.startswith(f"{path}.block.")), None)
        genes[name if owner is None else owner + name.removeprefix(f"{owner}.block")] = tensor.detach()
    return genes


def stage_map(depth: int, stages: int) -> tuple[int, ...]:
    """For each of `depth` blocks its stage, as evenly as it goes.

    >>> stage_map(5, 2), stage_map(2, 4)
    ((0, 0, 0, 1, 1), (1, 3))
    """
    if depth < 1 or stages < 1:
        raise InputError(f"at least one block and one stage are wanted; got {depth} and {stages}")
    if depth < stages:
        return tuple((2 * i + 1) * stages // (2 * depth) for i in range(depth))
    each, more = divmod(depth, stages)
    return tuple(stage for stage in range(stages) for _ in range(each + (stage < more)))


@dataclass(frozen=True)
class SWS(Remedy):
    """Starts the given transformer from a learngene, which is trained once from `world.models["teacher"]`.

    Attributes:
        stages: how often each block of the auxiliary network is run.
        expansion: stage of each block of the given network; default as evenly as it goes.
        alpha: share of the teacher in the loss; below 1 labels are needed.
        temperature: T.
        recipe: how the auxiliary network is trained.
    """

    stages: tuple[Count, ...] = (3, 3, 4, 3, 3)
    expansion: tuple[Index, ...] = ()
    alpha: Fraction = 1.0
    temperature: Positive = 1.0
    recipe: Recipe = Recipe(optimizer=Adam(lr=5e-4, weight_decay=0.05, decoupled=True), epochs=100)

    card: ClassVar[Card] = Card(
        id="S167", paper="Xia et al., Exploring learngene via stage-wise weight sharing, IJCAI 2024",
        handles=frozenset({"none"}), needs=frozenset({"model.norm", "model.linear"}),
        prepares=frozenset({"source.x", f"models.{TEACHER}"}), passes=0.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise SpecError("SWS.stages is empty; at least one stage is wanted")

    def prepares(self) -> frozenset[str]:
        return self.card.prepares | (frozenset({"source.y"}) if self.alpha < 1 else frozenset())

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        given = world.models[TEACHER]
        if model is None or not isinstance(given, nn.Module):
            raise ModelError("SWS wants a network to start, and a teacher that is a network and not weights alone")
        device = device_of(model)
        teacher = placed(fork(given), device).eval()
        start = resized(model, depth=len(self.stages), seed=run.seed_for("learngene"))
        auxiliary = share_stages(start, self.stages).train()

        def losses(batches: Mapping[str, Batch], now: Run) -> Mapping[str, Tensor]:
            batch = batches["source"].to(device)
            with torch.no_grad():
                wanted = teacher(batch.x)
            out = auxiliary(batch.x)
            if wanted.shape != out.shape:
                raise ModelError(f"the teacher gives {tuple(wanted.shape)}, the network {tuple(out.shape)}")
            wanted, out = wanted.flatten(0, -2) / self.temperature, out.flatten(0, -2)
            soft = soft_cross_entropy(wanted, out / self.temperature).mean() * self.temperature**2
            found = {"teacher": self.alpha * soft}
            if self.alpha < 1:
                labels = batch.labels.flatten()
                hard = F.cross_entropy(out, labels, ignore_index=UNKNOWN, reduction="sum")
                found["labels"] = (1 - self.alpha) * hard / (labels != UNKNOWN).sum().clamp(min=1)
            return found

        assert world.source is not None
        return train(
            auxiliary, losses, {"source": world.source}, dict(auxiliary.named_parameters()), self.recipe, run=run
        )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return expand(kit, model, self.expansion)
