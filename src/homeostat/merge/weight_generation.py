"""D2NWG: weights for a data set nobody has trained on, drawn by a diffusion model that has seen many trained networks.

You have a zoo: networks of one architecture, each trained on a data set of its own. From pairs (weights w_i, data set
D_i) a generator learns which weights go with which data, and gives weights for a new, small data set without training.

    1. w `[d]` are the chosen parameters, less the zoo's mean and divided by each layer's spread, padded and cut into
       chunks; a variational autoencoder turns them into latents z (reconstruction + beta KL; see `nn.vae`)
    2. data sets are encoded by set transformers: per class over the features of its samples, then over the classes,
       each marked by a learned vector of its number; e = encode(D) is aligned with a linear map of z by the
       contrastive loss of pairs, and frozen
    3. a diffusion model learns z given e (see `nn.diffusion`)
    4. for a new D: draw several z, decode, and keep the network with the smallest loss on D

Steps 1 to 3 are this remedy's *kit*, made once from `world.models` (the zoo) and `world.parts` (its data sets, by the
same names); step 4 needs labelled `source` data with every class in it.

The paper gives no hyper-parameters that fit networks of some hundred weights; the defaults are this library's and meant
for heads and adapters. All networks of a zoo have to start from one point (or be aligned before): else each sits in
another corner of the symmetries of its hidden units, and their mean and what lies between them mean nothing. With less
than some hundred networks, or a new data set that is like none of the zoo's, what is drawn is near the zoo's mean or
near one of its networks; look at the loss on D. Fine-tune with `Fit`.

>>> zoo = {f"net{i}": torch.nn.Linear(2, 2) for i in range(4)}
>>> sets = {name: (torch.randn(8, 2), torch.arange(8) % 2) for name in zoo}
>>> training = dict.fromkeys(("vae", "align", "diffuse"), Recipe(optimizer=Adam(), epochs=2))
>>> quick = D2NWG(width=8, latent=2, diffusion_steps=5, shots=2, candidates=2, **training)
>>> new = World(source=(torch.randn(8, 2), torch.arange(8) % 2), models=zoo, parts=sets)
>>> type(quick(torch.nn.Linear(2, 2), new)).__name__
'Linear'

Reference: Soro et al., Diffusion-Based Neural Network Weights Generation, ICLR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Batch, Data, Tensors
from homeostat.core.errors import InputError, MissingPart, ModelError
from homeostat.core.fork import fork, matches
from homeostat.core.holding import holding
from homeostat.core.method import Card, Remedy
from homeostat.core.part import Part
from homeostat.core.place import home, there
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative
from homeostat.core.taps import tapped
from homeostat.core.task import check_labels
from homeostat.core.tree import Tree
from homeostat.core.weights import as_weights
from homeostat.core.world import World
from homeostat.fit.training import Cosine, Recipe, train
from homeostat.merge.merging import check_donors
from homeostat.nn.diffusion import DDPM, VectorDenoiser
from homeostat.nn.optimizers import Adam
from homeostat.nn.set_transformer import DatasetEncoder
from homeostat.nn.vae import ChunkVAE, clip_loss

Sets = Float[Tensor, "batch classes shots features"]


class WeightGenerator(Part):
    """What `D2NWG` fits: from the features of a data set to named weights.

    Args:
        names, shapes: of the tensors, in order.
        vae, encoder, diffusion: the parts.
    """

    mean: Tensor
    spread: Tensor
    center: Tensor
    scale: Tensor

    def __init__(
        self, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], vae: ChunkVAE, encoder: DatasetEncoder,
        diffusion: DDPM,
    ):  # fmt: skip
        super().__init__()
        self.names, self.shapes = tuple(names), tuple(tuple(shape) for shape in shapes)
        self.vae, self.encoder, self.diffusion = vae, encoder, diffusion
        self.sizes = [math.prod(shape) for shape in self.shapes]
        for name in ("mean", "spread"):
            self.register_buffer(name, torch.zeros(sum(self.sizes)))
        for name in ("center", "scale"):
            self.register_buffer(name, torch.zeros(vae.chunks * vae.latent))

    def chunks(self, weights: Float[Tensor, "batch d"]) -> Float[Tensor, "batch chunks size"]:
        """Normalised, padded with zeros and cut."""
        padding = self.vae.chunks * self.vae.size - weights.shape[1]
        made = nn.functional.pad((weights - self.mean) / self.spread, (0, padding))
        return made.unflatten(1, (self.vae.chunks, self.vae.size))

    def named(self, chunks: Float[Tensor, "batch chunks size"]) -> list[dict[str, Tensor]]:
        """The way back, a mapping of tensors for each row."""
        flat = chunks.flatten(1)[:, : sum(self.sizes)] * self.spread + self.mean
        return [
            {n: part.view(s) for n, s, part in zip(self.names, self.shapes, row.split(self.sizes), strict=True)}
            for row in flat
        ]

    @torch.no_grad()
    def sample(self, sets: Sets, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """Weights for each of the sets; `generator` is on the CPU."""
        about = nn.functional.normalize(self.encoder(there(sets, self)), dim=1) * self.encoder.outputs**0.5
        latents = self.diffusion.sample(about, generator) * self.scale + self.center
        return self.named(self.vae.decode(latents.unflatten(1, (self.vae.chunks, self.vae.latent))))


@dataclass(frozen=True)
class D2NWG(Remedy):
    """Draws weights of the given network for labelled source data; learnt from a zoo and its data sets.

    Attributes:
        own: globs of the parameters that are drawn; the rest stays the given network's.
        layer: features are what goes into this layer of the given network; default the inputs themselves.
        chunk: largest number of weights in a chunk.
        latent: numbers that stand for a chunk.
        width: of the autoencoder, the set transformers and the diffusion network.
        kl: beta of the autoencoder.
        diffusion_steps: T.
        shots: samples of each class that the encoder sees at a time.
        candidates: networks that are drawn; the one with the smallest loss on the source is kept.
        vae, align, diffuse: training of the three parts, an epoch being a pass over the zoo.
    """

    own: tuple[str, ...] = ("*",)
    layer: str | None = None
    chunk: Count = 512
    latent: Count = 32
    width: Count = 128
    kl: NonNegative = 1e-3
    diffusion_steps: Count = 100
    shots: Count = 16
    candidates: Count = 8
    vae: Recipe = Recipe(optimizer=Adam(lr=1e-3), schedule=Cosine(), epochs=200, batch=64)
    align: Recipe = Recipe(optimizer=Adam(lr=5e-4), schedule=Cosine(), epochs=100, batch=64)
    diffuse: Recipe = Recipe(optimizer=Adam(lr=1e-3), schedule=Cosine(), epochs=400, batch=64)

    card: ClassVar[Card] = Card(
        id="S012", paper="Soro et al., D2NWG, ICLR 2025", handles=frozenset({"tasks", "concept"}),
        needs=frozenset({"source.x", "source.y", "model.parameters"}),
        prepares=frozenset({"models.*", "parts.*.x", "parts.*.y"}), passes=8.0,
    )  # fmt: skip

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        assert model is not None
        chosen, shapes = self._chosen(model)
        lone = set(world.models) ^ set(world.parts)
        if lone or len(world.models) < 2:
            raise MissingPart(
                f"a zoo is at least 2 networks in world.models and their data in world.parts by the same names; there "
                f"are {len(world.models)}, and without partner: {', '.join(sorted(lone)[:5]) or 'none'}"
            )
        zoo = {name: as_weights(net) for name, net in world.models.items()}
        check_donors(chosen, zoo)
        weights = torch.stack([torch.cat([home(net[n]).float().flatten() for n in chosen]) for net in zoo.values()])
        name = next(iter(zoo))
        labels = world.parts[name].all_labels()
        classes = len(labels[labels != UNKNOWN].unique())
        if not classes:
            raise MissingPart(f"no label of {name} is known; data sets are told apart by samples of each class")
        pools = torch.stack([
            _by_class(model, self.layer, world.parts[n], classes, 4 * self.shots, run.rng("pool", n), n) for n in zoo
        ])  # fmt: skip
        made = self._generator(tuple(chosen), shapes, weights, pools, run)
        self._train_vae(made, weights, run)
        with torch.no_grad():
            latents = made.vae.encode(made.chunks(weights))[0].flatten(1)
            made.center.copy_(latents.mean(0))
            made.scale.copy_(latents.std(0).clamp(min=1e-6))
        latents = (latents - made.center) / made.scale
        matching = nn.Linear(latents.shape[1], made.encoder.outputs)
        nn.init.normal_(matching.weight, std=latents.shape[1] ** -0.5, generator=run.rng("matching"))
        nn.init.zeros_(matching.bias)
        parts = nn.ModuleDict({"encoder": made.encoder, "matching": matching})

        def align(rows: Tensor, draws: torch.Generator) -> Tensor:
            return clip_loss(made.encoder(_shots(pools[rows], self.shots, draws)), matching(latents[rows]))

        def denoise(rows: Tensor, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                about = made.encoder(_shots(pools[rows], self.shots, draws))
                about = nn.functional.normalize(about, dim=1) * made.encoder.outputs**0.5
            return made.diffusion.loss(latents[rows], about, draws).mean()

        _train(parts, align, len(weights), self.align, run, "align")
        _train(made.diffusion, denoise, len(weights), self.diffuse, run, "diffuse")
        return made

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        assert world.source is not None
        chosen, shapes = self._chosen(model)
        if (tuple(chosen), shapes) != (kit.names, kit.shapes):
            raise ModelError(f"the kit draws {', '.join(kit.names[:4])}; the network's parameters are others")
        draws, classes = run.rng("source"), kit.encoder.classes
        pool = _by_class(model, self.layer, world.source, classes, 4 * self.shots, draws, "source")
        sets = torch.stack([_shots(pool[None], self.shots, draws)[0] for _ in range(self.candidates)])
        found = [holding(model, drawn).eval() for drawn in kit.sample(sets, draws)]
        return min(found, key=lambda net: _loss(net, world.source, world))  # type: ignore[arg-type]

    def _chosen(self, model: nn.Module) -> tuple[dict[str, Tensor], tuple[tuple[int, ...], ...]]:
        wanted = matches(self.own)
        chosen = {n: p.detach() for n, p in model.named_parameters() if wanted(n) and p.is_floating_point()}
        if not chosen:
            raise ModelError(f"no parameter of {type(model).__name__} matches {', '.join(self.own)}")
        return chosen, tuple(tuple(p.shape) for p in chosen.values())

    def _generator(
        self, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], weights: Tensor, pools: Tensor, run: Run
    ) -> WeightGenerator:
        chunks = math.ceil(weights.shape[1] / self.chunk)
        vae = ChunkVAE(math.ceil(weights.shape[1] / chunks), chunks, self.latent, self.width, run.seed_for("vae"))
        encoder = DatasetEncoder(pools.shape[3], pools.shape[1], self.width, self.width, run.seed_for("encoder"))
        denoiser = VectorDenoiser(chunks * self.latent, self.width, 2 * self.width, seed=run.seed_for("denoiser"))
        made = WeightGenerator(names, shapes, vae, encoder, DDPM(denoiser, self.diffusion_steps))
        with torch.no_grad():
            made.mean.copy_(weights.mean(0))
            for target, part in zip(
                made.spread.split(made.sizes), (weights - made.mean).split(made.sizes, 1), strict=True
            ):
                target.fill_(float(part.square().mean().sqrt().clamp(min=1e-8)))
        return made

    def _train_vae(self, made: WeightGenerator, weights: Tensor, run: Run) -> None:
        pieces = made.chunks(weights)

        def loss(rows: Tensor, draws: torch.Generator) -> Tensor:
            error, divergence = made.vae.losses(pieces[rows], draws)
            return error + self.kl * divergence

        _train(made.vae, loss, len(weights), self.vae, run, "vae")


def _train(
    net: nn.Module, loss: Callable[[Tensor, torch.Generator], Tensor], count: int, recipe: Recipe, run: Run, name: str
) -> None:
    """Train on the numbers of the zoo's networks."""

    def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
        rows: Any = batches["zoo"].x
        return {name: loss(rows, now.rng(name))}

    run = run.replace(seed=run.seed_for(name))
    train(net.train(), losses, {"zoo": Tensors(torch.arange(count))}, dict(net.named_parameters()), recipe, run=run)
    net.eval()


@torch.no_grad()
def _by_class(
    model: nn.Module, layer: str | None, data: Data, classes: int, most: int, draws: torch.Generator, name: str
) -> Float[Tensor, "classes samples features"]:
    """As many samples of each class, drawn with replacement where there are fewer."""
    labels = data.all_labels()
    check_labels(labels, classes, f"{name}.y")
    own, found = fork(model).eval(), []
    for number in range(classes):
        rows = torch.nonzero(labels == number)[:, 0]
        if len(rows) == 0:
            raise InputError(f"{name} has no sample of class {number} of {classes}; every class has to be shown")
        order = torch.randperm(len(rows), generator=draws)[:most]
        more = torch.randint(len(rows), (most - len(order),), generator=draws)
        x: Tree = there(data.fetch(rows[torch.cat([order, more])]).x, own)
        if layer is None and not isinstance(x, Tensor):
            raise InputError(f"{name}: features are made of one tensor of inputs; name a layer whose input they are")
        features = x.flatten(1) if layer is None else tapped(own, x, own, layer)[1]  # type: ignore[union-attr]
        found.append(home(features).float())
    return torch.stack(found)


def _shots(pools: Tensor, shots: int, draws: torch.Generator) -> Tensor:
    """So many samples of each class, the same places for all sets."""
    return pools[:, :, torch.randperm(pools.shape[2], generator=draws)[:shots]]


@torch.no_grad()
def _loss(net: nn.Module, data: Data, world: World) -> float:
    total = 0.0
    for batch in data.batches(256):
        total += float(world.task.loss(home(net(there(batch.x, net))), batch.labels).sum())
    return total
