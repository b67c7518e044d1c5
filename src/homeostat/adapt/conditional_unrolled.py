"""Conditional unrolled reconstruction: how much to trust the measurement is decided when it arrives.

A network that reconstructs images from undersampled frequencies (magnetic resonance) is trained on clean data and
trusts them; noise that it never saw goes straight into its images. This trains an unrolled network
(`homeostat.nn.Unrolled`) whose trust is a dial h in 0..1: a small network makes lambda_t of h, so that with small h
sampled frequencies are kept as measured and with large h the prior f decides. No noise is added in training. Per batch,

    h ~ U(0, top),     loss = mean (x^ - x)^2 + strength h TV(x^)

with x^ `[batch, 2, height, width]` the reconstruction under h, x the clean image and TV the mean absolute difference of
neighbouring pixels: a larger h asks for an image that rests more on the prior (piecewise smooth) and less on the
measurement. `top` grows from 0.2 to 1 over the first half of training, so that the easy end is learnt first.

Which h a measurement gets is then looked up by its noise, which is estimated from the outer frequencies: after training
a small search on clean source samples with made-up noise finds the best h of nine for each of `levels` deviations up to
`most`; the table is made to rise and lies in the network. No weight ever sees noise. A `condition` `[batch]` in the
inputs overrules it. `conditional=False` is the same network with constant lambda and no dial.

The model that the remedy takes is the prior f, `[batch, 2, height, width]` to the same shape (`homeostat.nn.Denoiser`);
source data are those of `homeostat.shift.Undersample`, the task `Regress`. The published text leaves the loss and the
sampling open; both are ours, and so are the defaults.

It fails where the noise estimate does: image detail in the outer frequencies is taken for noise, and a smooth image is
then smoothed further than it should be. It cannot remove what is not in the sampled frequencies (aliasing of a mask
that it was not trained on), and beyond `most` it does not get more careful.

>>> from homeostat.shift import Undersample
>>> images = torch.rand(8, 1, 8, 8)
>>> world = World(source=Undersample(acceleration=2.0)((images, images)), task=Regress())
>>> net = ConditionalUnrolled(iterations=2, recipe=Recipe(batch=4))(Denoiser(width=4, depth=2), world)
>>> net(world.source.load().x).shape
torch.Size([8, 2, 8, 8])

Reference: Inference-stage denoising for undersampled MRI reconstruction, ISBI 2024 (S301).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from homeostat.core.data import Batch, Data
from homeostat.core.errors import ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.place import device_of
from homeostat.core.run import Run
from homeostat.core.spec import Count, NonNegative, Positive
from homeostat.core.task import Regress
from homeostat.core.world import World
from homeostat.fit.training import Cosine, Recipe, train
from homeostat.nn.fourier import estimate_noise
from homeostat.nn.optimizers import Adam
from homeostat.nn.unrolled import Denoiser as Denoiser, Unrolled

_FIRST = 0.2  # the widest condition at the start of training


def total_variation(image: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """Mean absolute difference of neighbouring pixels, down plus across."""
    return image.diff(dim=2).abs().mean((1, 2, 3)) + image.diff(dim=3).abs().mean((1, 2, 3))


@dataclass(frozen=True)
class ConditionalUnrolled(Remedy):
    """An unrolled reconstruction network whose trust in the measurement follows its noise.

    Attributes:
        iterations: turns of prior and measurement.
        conditional: whether there is a dial at all.
        strength: weight of the total variation at h = 1.
        hidden: width of the network that makes lambda.
        levels: entries of the table from noise to h.
        most: largest deviation in the table.
        search: source samples that the table is fitted on.
        recipe: how it is trained.
    """

    iterations: Count = 5
    conditional: bool = True
    strength: NonNegative = 0.2
    hidden: Count = 16
    levels: Count = 8
    most: Positive = 0.15
    search: Count = 64
    recipe: Recipe = Recipe(optimizer=Adam(lr=1e-3), schedule=Cosine(), epochs=10, batch=32, clip=1.0)

    card: ClassVar[Card] = Card(
        id="S301",
        paper="Inference-Stage Denoising for Undersampled MRI Reconstruction, ISBI 2024",
        handles=frozenset({"covariate"}),
        needs=frozenset({"source.x", "source.y", "model.parameters"}),
        passes=5.0,
    )

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        data = world.source
        if data is None or not isinstance(world.task, Regress):
            raise ModelError(f"ConditionalUnrolled reconstructs images: World(task=Regress()); got {world.task}")
        like = next(model.parameters())
        net = Unrolled(
            fork(model, own="*"), self.iterations, self.conditional, self.hidden, self.levels,
            run.seed_for("ConditionalUnrolled.hyper") % 2**31,
        ).to(like)  # fmt: skip
        _check(net, data, world.task)
        self._train(net.train(), data, run)
        net.eval()
        if self.conditional:
            self._calibrate(net, data, run)
        return net

    def _train(self, net: Unrolled, data: Data, run: Run) -> None:
        steps = self.recipe.epochs * max(1, len(data) // self.recipe.batch)
        device, done = device_of(net), 0

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            nonlocal done
            batch = batches["source"].to(device)
            top = min(1.0, _FIRST + (1 - _FIRST) * done / max(1, steps / 2)) if self.conditional else 0.0
            done += 1
            condition = top * torch.rand(len(batch), generator=now.rng("ConditionalUnrolled.h"))
            truth = batch.labels
            made = net({**_measured(batch), "condition": condition.to(truth)})
            rough = condition.to(truth) * self.strength * total_variation(made)
            return {"reconstruction": (made - truth).square().mean(), "roughness": rough.mean()}

        parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
        train(net, losses, {"source": data}, parameters, self.recipe, run=run)

    @torch.no_grad()
    def _calibrate(self, net: Unrolled, data: Data, run: Run) -> None:
        """Fill the table: for each deviation, what the estimate says of it and the condition that does best."""
        draws = run.rng("ConditionalUnrolled.search")
        rows = torch.randperm(len(data), generator=draws)[: self.search]
        batch = data.fetch(rows).to(device_of(net))
        measured, truth = _measured(batch), batch.labels
        shape, mask = measured["kspace"], measured["mask"]
        unit = torch.randn(shape.shape, generator=draws).to(shape) * mask[:, None, None]
        dials = torch.linspace(0, 1, 9)
        seen, best = [], []
        for sigma in torch.linspace(0, self.most, self.levels).tolist():
            noisy = {"kspace": shape + sigma * unit, "mask": mask}
            seen.append(float(estimate_noise(noisy["kspace"], mask).float().mean()))
            errors = [
                float(
                    (net({**noisy, "condition": torch.full_like(truth[:, 0, 0, 0], h)}) - truth).float().square().mean()
                )
                for h in dials.tolist()
            ]
            best.append(float(dials[errors.index(min(errors))]))
        # Noise only ever calls for more doubt: what breaks the order is chance among few samples.
        net.noise.copy_(torch.tensor(seen).cummax(0).values)
        net.conditions.copy_(torch.tensor(best).cummax(0).values)


def _measured(batch: Batch) -> dict[str, Any]:
    assert isinstance(batch.x, Mapping)
    return {"kspace": batch.x["kspace"], "mask": batch.x["mask"]}


def _check(net: Unrolled, data: Data, task: Regress) -> None:
    """Misfits at the door: inputs that are no frequencies, targets of another shape, a prior of another width."""
    batch = data.fetch(torch.arange(min(2, len(data)))).to(device_of(net))
    with torch.no_grad():
        out = net(batch.x)
    task.check(out, batch.y, "source.y")
