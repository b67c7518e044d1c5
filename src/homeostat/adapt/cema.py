"""CEMA: a small network on a device, kept fit by a strong one in the cloud that is sent few samples.

The device (the edge) only ever runs its network forwards. It predicts for a batch, picks the samples worth learning
from, and sends those. The cloud adapts a stronger network (the teacher) to them, teaches the edge's network (the
student), and sends back scales, shifts and moving statistics of the normalisation layers, which is all that changes.

On the edge, for logits z `[batch, classes]` with entropy H, samples go up that are

    reliable:  H_n < E(t), and H_n > low log K where `low` is given
               E(t) = high log K, and once `warm_up` samples were seen high log K relax H(t) / H(warm_up)
    fresh:     |cos(m, p_n)| < div_margin, m the running mean of p

with H(t) the mean entropy so far. In the cloud they wait until there are `batch` of them, u. With E = high log K,
w(z) = exp(E - H(z)) without gradient, t and s the logits of teacher and student:

    1. teacher, on u:                loss = mean w(t) H(t)                                one step of `cloud_optimizer`
    2. student, on u and 3 batches of earlier samples (once there are `replay_from`):
       loss = alpha mean w(s) H(s) + beta mean w(t) T^2 KL(p_t || p_s) + gamma mean w(t) CE(argmax t, s)
                                                                                          one step of `edge_optimizer`

Where a message starts no batch and more than `replay_from` samples are remembered, step 2 is made on 4 batches of them
alone. Both weights of step 2's distillation are of the teacher's entropy. Networks normalise as
`nn.renormalize_batchnorm` says: predictions use moving statistics, so that a batch of one is as good as any. They start
from the first batch that each network sees (`statistics="first"`, as in the code of the paper) or from those stored.

With `url` the cloud is a server: `homeostat cloud EDGE CLOUD` in one process, `CEMA(url="http://...")(edge)` in
another. Without, it is in this process, of `world.models["cloud"]`. The same bytes go back and forth. `carry` counts
samples `seen`, `reliable`, `uploaded`, `over_budget` and `undelivered`, `exchanges` and `failures`, and the bytes of
messages, `bytes_up` and `bytes_down`, also of those sent in vain. What would exceed `byte_budget` is not sent.
When the cloud does not answer, the edge goes on serving as it is; it tries again after 1, 2, 4, ... up to `patience`
batches, and both sides find their common state again whatever was lost. Failures are logged (`homeostat.adapt.cema`).

Defaults are the paper's for ImageNet: high 0.4, div_margin 0.05, alpha 3, beta 3, gamma 1, T 1, batches of 32, 10,000
samples remembered, SGD of 2.5e-3 and 2.5e-4. With 10 classes div_margin must be near 0.4 (at 0.05 hardly anything goes
up), and E falls with log K by itself. `relax` acts only with `warm_up`, which the authors' settings leave off.

After an abrupt change the moving statistics lag behind, by as many steps as samples are sent for; batch statistics, as
Tent's, do not: on a stream of several corruptions without a reset CEMA can be far behind it. And it fails where the
teacher is no better than the student under the shift: what is distilled are then the teacher's errors, with full
weight, as it is sure of them. Uploaded samples leave the device as they are.

>>> import torch
>>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
>>> strong = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)).eval()
>>> edge = CEMA(high=1.0, div_margin=1.0, batch=16)(net, World(models={"cloud": strong}))
>>> x = torch.randn(32, 2)
>>> edge.observe(x).shape, edge.counts()["uploaded"], edge.counts()["bytes_up"] > 32 * 2 * 4
(torch.Size([32, 3]), 32, True)

Reference: Chen, Niu, Tan et al., Towards robust and efficient cloud-edge elastic model adaptation via selective entropy
distillation, ICLR 2024 (S061).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from homeostat.adapt.cema_cloud import CEMACloud
from homeostat.adapt.cema_edge import CEMAEdge, Statistics
from homeostat.adapt.cema_link import CEMAInProcess, CEMALink, CEMAOverHTTP
from homeostat.core.errors import MissingPart, ModelError
from homeostat.core.fork import fork
from homeostat.core.method import Card, Remedy
from homeostat.core.place import device_of, placed
from homeostat.core.run import Run
from homeostat.core.spec import Count, Fraction, Index, NonNegative, Positive
from homeostat.core.world import World
from homeostat.nn.optimizers import SGD, Optimizer
from homeostat.nn.renormalized import renormalize_batchnorm


@dataclass(frozen=True)
class CEMA(Remedy):
    """Cloud-edge elastic model adaptation.

    Attributes:
        high: samples with an entropy above `high log K` are not sent.
        low: nor are those below `low log K`; `None` for no such bound.
        div_margin: nor those whose prediction has a cosine of at least this with the running mean.
        warm_up: samples after which the bound `high` follows the mean entropy; `None` leaves it.
        relax: factor of the bound from then on.
        alpha, beta, gamma: weights of the student's entropy, of the teacher's probabilities and of its labels.
        temperature: T, of the probabilities.
        edge_optimizer, cloud_optimizer: of the student and of the teacher.
        batch: samples of a step.
        replay: samples that the cloud remembers; 0 for none.
        replay_from: how many it must remember before it replays them.
        statistics: moving statistics start from the first batch, or from those stored in the networks.
        byte_budget: most bytes that go up and come down together; `None` is no limit.
        idle: send a message for every batch, also without samples, so that the cloud may replay.
        patience: batches between tries to reach a cloud that does not answer, at most.
        url: address of a cloud in another process; empty for one in this process.
        timeout: seconds without a byte of an answer, or for all of it, after which there is none.
    """

    high: Positive = 0.4
    low: Fraction | None = None
    div_margin: NonNegative = 0.05
    warm_up: Count | None = None
    relax: Positive = 0.6
    alpha: NonNegative = 3.0
    beta: NonNegative = 3.0
    gamma: NonNegative = 1.0
    temperature: Positive = 1.0
    edge_optimizer: Optimizer = SGD(lr=2.5e-3)
    cloud_optimizer: Optimizer = SGD(lr=2.5e-4)
    batch: Count = 32
    replay: Index = 10_000
    replay_from: Count = 256
    statistics: Statistics = "first"
    byte_budget: Count | None = None
    idle: bool = True
    patience: Count = 32
    url: str = ""
    timeout: Positive = 5.0

    card: ClassVar[Card] = Card(
        id="S061",
        paper="Chen et al., Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation, ICLR 2024",
        handles=frozenset({"covariate"}),
        needs=frozenset({"model.norm", "models.*"}),
        passes=8.0,
    )

    def needs(self) -> frozenset[str]:
        return self.card.needs - {"models.*"} if self.url else self.card.needs

    def cloud(self, edge: nn.Module, cloud: nn.Module | Any, run: Run = Run()) -> CEMACloud:
        """The cloud's half, for a server.

        Args:
            edge: the network on the device, as it is given there.
            cloud: the stronger one, of the same classes.
            run: its seed draws what is replayed.

        Raises:
            ModelError: there is no normalisation layer in one of them.
        """
        if not isinstance(cloud, nn.Module):
            raise ModelError(f"the cloud's network is a {type(cloud).__name__}; a module is wanted, not weights alone")
        return CEMACloud(
            renormalize_batchnorm(placed(cloud, device_of(edge))), renormalize_batchnorm(edge), self.alpha, self.beta,
            self.gamma, self.temperature, self.high, self.edge_optimizer, self.cloud_optimizer, self.batch, self.replay,
            self.replay_from, self.statistics, run.seed,
        )  # fmt: skip

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        if self.url:
            link: CEMALink = CEMAOverHTTP(self.url, self.timeout)
        else:
            named = world.models
            if "cloud" not in named and len(named) != 1:
                raise MissingPart(f"CEMA needs models.cloud; this world has {', '.join(named)}. Name one of them cloud")
            link = CEMAInProcess(self.cloud(fork(model), named.get("cloud", next(iter(named.values()))), run))
        return CEMAEdge(
            renormalize_batchnorm(model), link, self.high, self.low, self.div_margin, self.warm_up, self.relax,
            self.byte_budget, self.idle, self.patience, self.statistics,
        )  # fmt: skip
