"""CrossDomainEnsemble (XDE): predict through edges, shading and coarse shape, and trust what is sure.

A distortion that ruins an image may leave its edges or its coarse shape alone. Before deployment a copy of the network
is trained on labelled source data for each of several middle domains of the input (`nn.middle_domains`), each with an
input normalisation of its own; the given network stays as the `direct` path. Then the paths' uncertainty is made honest
where it matters, on distorted source data, and for every input the K paths are merged.

Regression (`task=Regress()`), by networks that give (mu, log b) `[batch, 2 outputs, ...]`:

    train      mean of |y - mu| / b + log 2 b                                  Laplace negative log-likelihood
    sharpen    0.1 NLL(clean) + 100 mean |mu - mu0| + mean |b - |mu0 - y||     on distorted data, mu0 of the frozen copy
    merge      w_k = v_k / sum v,  v_k = sum over outputs of 1 / sigma_k^2,  sigma = sqrt(2) b
               mean sum w_k mu_k,   variance w' C w,   C = sigma_i sigma_j rho_ij,   epistemic: variance of mu_k

with rho the correlation of the paths' errors, measured on the distorted data (the authors' demo takes 0). Samples
without a label, or with NaN in it, are left out. `forward` gives the mean; `merged(x)` all three. Classification, whose
merge the authors do not publish, follows the same rule: every path's logits get the scale that makes them honest on the
distorted data (`honest_scale`), the variance of its label is 1 - sum p^2, and log-probabilities are averaged with
inverse-variance weights; `merge="average"` weighs all alike. Training of networks is by cross-entropy.

Defaults: the domains of the authors' CIFAR-100 code; blur and edges with `sigma` 1, for images of 32 pixels (theirs 2
to 4 for 256); sharpening with Adam (amsgrad) 3e-5, weight decay 2e-6, batches of 32, as theirs. It costs a pass a path.

The third term of sharpening has the unit of y, the first none: where errors stay below about 0.1, the clean term wins
and b stays what it is on clean data. Scale targets so that errors on distorted data are near 1.

It fails on shifts that every domain shows alike, such as a rotation or another class balance: then it is a plain
ensemble. And where a distortion makes a path sure and wrong as `distortions` do not show it, that path rules the merge.

>>> import torch
>>> x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
>>> served = CrossDomainEnsemble(domains=("direct", "emboss"))(net, World(source=(x, y)))
>>> served(x[:5]).shape, served.weights(x[:5]).shape
(torch.Size([5, 3]), torch.Size([2, 5]))

Reference: Yeo, Kar, Zamir, Robustness via cross-domain ensembles, ICCV 2021 (S256).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homeostat.adapt.inverse_variance import Merged, merge_paths
from homeostat.core.data import Batch, Data, Joined, floating
from homeostat.core.errors import InputError, ModelError, SpecError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy, Shift
from homeostat.core.part import Part
from homeostat.core.place import home, there
from homeostat.core.run import Run
from homeostat.core.spec import Positive
from homeostat.core.task import Classify, Regress
from homeostat.core.tree import Tree
from homeostat.core.world import World
from homeostat.fit.training import Recipe, train
from homeostat.nn.blocks import start
from homeostat.nn.image_domains import DOMAINS, domain_channels, middle_domains
from homeostat.nn.normalized import Normalized
from homeostat.nn.optimizers import SGD, Adam
from homeostat.nn.temperature import honest_scale
from homeostat.shift.corrupt import Corrupt

Merge = Literal["inverse_variance", "average"]
LEAST = 1e-4
"""Smallest variance of a label, and smallest b."""


class DomainInput(Part):
    """The input normalisation of a path: `(x - mean) / std`, a number a channel.

    Args:
        mean, std: of the domain's images.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


class CrossDomains(Part):
    """Paths from the middle domains of an image to one prediction; see the module's docstring.

    Args:
        paths: one a domain.
        domains: their names.
        sigma: of blur and edges.
        merge: how predictions are weighed.
        classify: whether they are logits, and not (mu, log b).
    """

    def __init__(
        self, paths: nn.Module, domains: tuple[str, ...], sigma: float = 1.0, merge: Merge = "inverse_variance",
        classify: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.paths, self.domains, self.sigma, self.classify = paths, tuple(domains), sigma, classify
        self.merge: Merge = merge
        self.register_buffer("scales", torch.ones(len(self.domains)))
        self.register_buffer("correlation", torch.eye(len(self.domains)))

    def each(self, x: Tensor) -> Tensor:
        """What every path says: calibrated log-probabilities, or (mu, log b); `[paths, batch, ...]`."""
        images = middle_domains(floating(x, "CrossDomainEnsemble"), self.domains, self.sigma)
        raw = torch.stack([path(image) for path, image in zip(self.paths, images.values(), strict=True)])  # type: ignore[arg-type]
        scales: Any = self.scales
        return (raw * scales[:, None, None]).log_softmax(2) if self.classify else raw

    def weights(self, x: Tensor) -> Tensor:
        """What every path counts: `[paths, batch]`, for regression `[paths, batch, 1, ...]`."""
        return self.merged(x).weights

    def merged(self, x: Tensor) -> Merged:
        """The merged prediction with its variances; those of a classifier are of the label."""
        said = self.each(x)
        alike = self.merge == "average"
        if self.classify:
            variance = (1 - said.exp().square().sum(2)).clamp(min=LEAST)
            inverse = torch.ones_like(variance) if alike else 1 / variance
            weights = inverse / inverse.sum(0)
            mean = (weights[:, :, None] * said).sum(0)
            between = said.exp().var(0, correction=min(1, len(said) - 1))
            return Merged(mean, 1 - mean.softmax(1).square().sum(1), between, weights)
        mu, log_b = said.chunk(2, dim=2)
        correlation: Any = self.correlation
        return merge_paths(mu, 2**0.5 * (log_b.exp() + LEAST), correlation, alike)

    def forward(self, x: Tree) -> Tensor:
        """Log-probabilities, or means."""
        return self.merged(x).mean  # type: ignore[arg-type]


@dataclass(frozen=True)
class CrossDomainEnsemble(Remedy):
    """Cross-domain ensembles.

    Attributes:
        domains: names of middle domains; `direct` is the given network.
        sigma: of blur and edges, in pixels.
        merge: weights by the paths' own uncertainty, or all alike.
        distortions: shifts of the source on which uncertainty is made honest.
        recipe: how the networks of the paths are trained.
        sharpening: how the uncertainty of regression is trained.
    """

    domains: tuple[str, ...] = ("direct", "emboss", "grey", "sharpen", "blur")
    sigma: Positive = 1.0
    merge: Merge = "inverse_variance"
    distortions: tuple[Shift, ...] = (Corrupt("gaussian_noise", 3), Corrupt("contrast", 3))
    recipe: Recipe = Recipe(optimizer=SGD(lr=0.01), epochs=5, batch=64)
    sharpening: Recipe = Recipe(optimizer=Adam(lr=3e-5, weight_decay=2e-6, amsgrad=True), epochs=2, batch=32)

    card: ClassVar[Card] = Card(
        id="S256",
        paper="Yeo, Kar, Zamir, Robustness via Cross-Domain Ensembles, ICCV 2021",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.parameters"}),
        prepares=frozenset({"source.x", "source.y"}),
        passes=5.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        strange = [name for name in self.domains if name not in DOMAINS]
        if strange or not self.domains or len(set(self.domains)) < len(self.domains):
            raise SpecError(f"domains = {self.domains}; give names out of {', '.join(DOMAINS)}, each once")

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> nn.Module | None:
        if model is None or world.source is None:
            return None
        if not isinstance(world.task, (Classify, Regress)):
            raise ModelError(f"XDE knows Classify and Regress; the world's task is {type(world.task).__name__}")
        labels, classify = world.source.all_labels(), isinstance(world.task, Classify)
        source = world.source[world.task.known(labels) if classify else ~labels.isnan().flatten(1).any(1)]
        if len(source) == 0:
            raise InputError("no sample of the source has all of its label; CrossDomainEnsemble needs some")
        first = floating(there(source.fetch(torch.arange(min(256, len(source)))).x, model), "CrossDomainEnsemble")
        if first.ndim != 4:
            raise ModelError(f"XDE is for images [batch, channels, height, width]; these are {tuple(first.shape)}")
        _check(fork(model).eval(), source.fetch(torch.arange(1)), world)
        images = middle_domains(first, self.domains, self.sigma)
        paths = [self._path(model, name, image, first.shape[1], run) for name, image in images.items()]
        made = CrossDomains(nn.Sequential(*paths), self.domains, self.sigma, self.merge, classify).to(first)
        distorted = Joined([shift(source, run=run) for shift in self.distortions] or [source])
        for name, path in zip(self.domains, paths, strict=True):
            now = run.replace(seed=run.seed_for("XDE", name))
            if name != "direct":
                self._train(path, name, source, classify, now)
            if not classify:
                self._sharpen(path, name, source, distorted, now)
        made.requires_grad_(False).eval()
        _measure(made, distorted)
        return made

    def _path(self, model: nn.Module, name: str, image: Tensor, channels: int, run: Run) -> nn.Sequential:
        if name == "direct":
            return nn.Sequential(nn.Identity(), nn.Identity(), fork(model, own="*"))
        wide = image.float()
        mean, std = wide.mean((0, 2, 3)), wide.std((0, 2, 3)).clamp(min=1e-3)
        net = fork(model.model if isinstance(model, Normalized) else model, own="*")
        count, stem = domain_channels(name, channels), nn.Identity()
        if count != channels:
            stem = nn.Conv2d(count, channels, 1)
            start(stem, run.seed_for("XDE.stem", name), gain=1.0)
        return nn.Sequential(DomainInput(tuple(mean.tolist()), tuple(std.tolist())), stem, net).to(image)

    def _said(self, path: nn.Module, name: str, batch: Batch) -> tuple[Tensor, Any]:
        """What a path says of a batch, and the truth, where the path lies."""
        image = middle_domains(there(batch.x, path), (name,), self.sigma)[name]  # type: ignore[arg-type]
        return path(image), there(batch.y, path)  # type: ignore[arg-type]

    def _train(self, path: nn.Module, name: str, source: Data, classify: bool, run: Run) -> None:
        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            out, y = self._said(path, name, batches["source"])
            return {"loss": F.cross_entropy(out, y) if classify else laplace_nll(out, y)}

        learnt = {n: p.requires_grad_(True) for n, p in path.named_parameters()}
        train(path.train(), losses, {"source": source}, learnt, self.recipe, run=run)
        path.eval()

    def _sharpen(self, path: nn.Module, name: str, clean: Data, distorted: Data, run: Run) -> None:
        before = fork(path, own="*").requires_grad_(False).eval()

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            out, y = self._said(path, name, batches["distorted"])
            mu, log_b = out.chunk(2, dim=1)
            frozen = self._said(before, name, batches["distorted"])[0].chunk(2, dim=1)[0]
            return {
                "clean": 0.1 * laplace_nll(*self._said(path, name, batches["clean"])),
                "same": 100 * (mu - frozen).abs().mean(),
                "honest": (log_b.exp() - (frozen - y).abs()).abs().mean(),
            }

        learnt = {n: p.requires_grad_(True) for n, p in path.named_parameters()}
        train(path.eval(), losses, {"distorted": distorted, "clean": clean}, learnt, self.sharpening, run=run)

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        return fork(kit).eval()


def laplace_nll(out: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood of targets `[batch, outputs, ...]` for (mu, log b) with twice as many outputs."""
    mu, log_b = out.chunk(2, dim=1)
    b = log_b.exp() + 1e-10
    return ((y - mu).abs() / b + (2 * b).log()).mean()


@torch.no_grad()
def _measure(made: CrossDomains, distorted: Data) -> None:
    """Honest scales of a classifier, or the correlation of the paths' errors, in place."""
    said, truth = list[Tensor](), list[Tensor]()
    for batch in distorted.batches(256):
        said.append(home(made.each(there(batch.x, made))).double())  # type: ignore[arg-type]
        truth.append(batch.labels)
    every, y = torch.cat(said, 1), torch.cat(truth)
    if made.classify:
        scales: Any = made.scales
        scales.copy_(torch.tensor([honest_scale(path, y) for path in every]))
        return
    mu, log_b = every.chunk(2, dim=2)
    errors = ((mu - y.double()) / log_b.exp()).flatten(1)
    correlation: Any = made.correlation
    correlation.copy_(torch.corrcoef(errors) if len(errors) > 1 else torch.ones(1, 1))


def _check(model: nn.Module, batch: Batch, world: World) -> None:
    """Raise our error where a network does not fit the labels."""
    with torch.no_grad():
        out: Any = home(model(there(batch.x, model)))
    if isinstance(world.task, Classify):
        world.task.check(out, batch.y, "source.y")
    elif not isinstance(out, Tensor) or out.shape[1] != 2 * batch.labels.shape[1] or out.ndim != batch.labels.ndim:
        raise ModelError(
            f"for targets {tuple(batch.labels.shape)} the network must give (mu, log b), twice as many outputs; "
            f"it gave {tuple(out.shape)}"
        )
