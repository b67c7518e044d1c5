"""The cloud's half of CEMA: it adapts a strong network on what the edge sends, and distils it into the edge's.

It has the strong network (the teacher) and the edge's network (the student). All that changes lies in `carry`: the
normalisation parameters and optimisers of both, below `teacher` and `edge`, the samples that wait for a batch, and a
ring of those that came before. See `adapt.cema` for what it does with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from homeostat.adapt.cema_messages import Message, OutOfStep, filled, fingerprint_of, flattened
from homeostat.core.data import check_finite
from homeostat.core.errors import HomeostatError, InputError, NonFiniteError
from homeostat.core.online import Bag
from homeostat.core.part import Part
from homeostat.core.place import there
from homeostat.core.random import generator
from homeostat.core.task import Classify
from homeostat.nn.banks import Ring
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.norms import norm_affine
from homeostat.nn.optimizers import SGD, Optimizer
from homeostat.nn.renormalized import Moving, RenormalizedBatchNorm, following_statistics, norm_state

TEACHER, EDGE = "teacher", "edge"
_LEARNT = (TEACHER, EDGE, f"{TEACHER}_optimizer", f"{EDGE}_optimizer", "started")


class CEMACloud(Part):
    """Adapts the teacher and the student by what an edge sends; made by `CEMA.cloud`.

    Args:
        model: the teacher, its BatchNorm layers re-normalising.
        edge: the student, likewise, with the weights that the edge has.
        alpha, beta, gamma, temperature, high, edge_optimizer, cloud_optimizer, batch, replay, replay_from, statistics:
            see `CEMA`.
        seed: of the samples that are replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        edge: nn.Module,
        alpha: float = 3.0,
        beta: float = 3.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        high: float = 0.4,
        edge_optimizer: Optimizer = SGD(lr=2.5e-3),
        cloud_optimizer: Optimizer = SGD(lr=2.5e-4),
        batch: int = 32,
        replay: int = 10_000,
        replay_from: int = 256,
        statistics: str = "first",
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.edge = model.eval().requires_grad_(False), edge.eval().requires_grad_(False)
        self.alpha, self.beta, self.gamma, self.temperature, self.high = alpha, beta, gamma, temperature, high
        self.edge_optimizer, self.cloud_optimizer = edge_optimizer, cloud_optimizer
        self.batch, self.replay, self.replay_from = batch, replay, replay_from
        self.statistics, self.seed = statistics, seed
        self.carry = Bag()
        self.reset()

    @property
    def ring(self) -> Ring:
        """The samples that came before, in `carry`."""
        return Ring(max(1, self.replay), "replay")

    def reset(self) -> None:
        """Back to the start: both networks as they were given, nothing waiting, nothing remembered."""
        for name in self.carry:
            del self.carry[name]
        for which, network, optimizer in self._networks():
            state = network.state_dict()
            self.carry.put(which, {name: state[name].detach().clone() for name in norm_state(network)})
            optimizer.begin(self._learnt(which, network), self.carry, f"{which}_optimizer")
        stores = any(isinstance(m, RenormalizedBatchNorm) for m in self.model.modules())
        self.carry["started"] = torch.tensor(int(self.statistics == "stored" or not stores))
        for name in ("received", "steps", "replayed"):
            self.carry[name] = torch.tensor(0)

    def norm(self) -> dict[str, Tensor]:
        """The student's normalisation parameters."""
        now = self.carry.under(EDGE)
        return {name: now[name] for name in norm_state(self.edge)}

    def exchange(self, message: bytes) -> bytes:
        """Take in samples, learn if there are enough, and answer with the student's parameters if they changed.

        Raises:
            InputError: it is no message, or its samples or parameters do not fit; nothing was changed.
            OutOfStep: the edge has other parameters than the student, and did not send them.
            NonFiniteError: a loss, or what was learnt, was not finite. Both networks are as before. What waited and
                what was remembered is dropped, as it cannot be known which samples were at fault.
        """
        came = Message.read(message)
        norm = self.norm()
        given = None if came.norm is None else filled(norm, came.norm, came.fingerprint)
        if given is None and came.fingerprint != fingerprint_of(norm):
            raise OutOfStep("the edge's normalisation parameters are not those that the cloud has; send them along")
        x = None if came.x is None else self._checked(came.x)
        if given is not None:
            for name, tensor in given.items():
                norm[name].copy_(tensor)
        before = {name: self.carry[name].clone() for name in self.carry if name.split(".")[0] in _LEARNT}
        try:
            with torch.inference_mode(False), torch.enable_grad():
                learnt = self._learn(x)
            if learnt:
                self._check_learnt()
        except NonFiniteError:
            for name, tensor in before.items():
                self.carry[name] = tensor
            self._forget()
            raise
        if not learnt:
            return Message(came.fingerprint).bytes()
        norm = self.norm()
        return Message(fingerprint_of(norm), norm=flattened(norm)).bytes()

    def _learn(self, x: Tensor | None) -> bool:
        waiting = self.carry.under("waiting").get("x")
        if x is not None:
            self.carry["received"] += len(x)
            waiting = x if waiting is None else torch.cat([waiting, x])
            if self.replay:
                self.ring.add(self.carry, {"x": x})
        learnt = False
        while waiting is not None and len(waiting) >= self.batch:
            new, waiting = waiting[: self.batch], waiting[self.batch :]
            self.adapt_teacher(new)
            held = self.ring.held(self.carry)
            if held and held >= self.replay_from:
                new = torch.cat([new, self.replayed(3 * self.batch)])
            self.distil(new)
            learnt = True
        if waiting is not None and len(waiting):
            self.carry["waiting.x"] = waiting.clone()
        elif "waiting.x" in self.carry:
            del self.carry["waiting.x"]
        if not learnt and self.ring.held(self.carry) > self.replay_from:
            self.distil(self.replayed(4 * self.batch))
            return True
        return learnt

    def _check_learnt(self) -> None:
        """Raise where a number of either network is no longer finite: huge samples do that behind a finite loss."""
        for name in self.carry:
            if name.split(".")[0] in _LEARNT:
                check_finite(self.carry[name], f"after these samples, {name}")

    def _forget(self) -> None:
        """Drop all samples."""
        self.ring.clear(self.carry)
        if "waiting.x" in self.carry:
            del self.carry["waiting.x"]

    def adapt_teacher(self, x: Tensor) -> None:
        """One step of the teacher down the weighted entropy of a batch; its moving statistics follow, or start."""
        moving: Moving = "follow" if int(self.carry["started"]) else "start"
        with _learning(self._learnt(TEACHER, self.model)) as learnt:
            entropy, weight = self._weighed(self._says(TEACHER, self.model, x, moving))
            self.cloud_optimizer.minimize((weight * entropy).mean(), learnt, self.carry, f"{TEACHER}_optimizer")
        self.carry["started"] = torch.tensor(1)

    def distil(self, x: Tensor) -> None:
        """One step of the student towards the teacher."""
        with torch.no_grad():
            target = self._says(TEACHER, self.model, x, "stay")
        with _learning(self._learnt(EDGE, self.edge)) as learnt:
            loss = self.distillation(self._says(EDGE, self.edge, x, "follow"), target)
            self.edge_optimizer.minimize(loss, learnt, self.carry, f"{EDGE}_optimizer")
        self.carry["steps"] += 1

    def distillation(self, logits: Tensor, target: Tensor) -> Tensor:
        """The student's loss for logits `[batch, classes]` of student and teacher."""
        (entropy, weight), (_, sure), warm = self._weighed(logits), self._weighed(target), self.temperature
        apart = F.kl_div((logits / warm).log_softmax(1), (target / warm).softmax(1), reduction="none").sum(1) * warm**2
        hard = F.cross_entropy(logits, target.argmax(1), reduction="none")
        own = (weight * entropy).mean()
        return self.alpha * own + self.beta * (sure * apart).mean() + self.gamma * (sure * hard).mean()

    def replayed(self, count: int) -> Tensor:
        """So many earlier samples (all, if there are no more), at random; counts the draw."""
        draws = generator(self.seed, "CEMA.replay", int(self.carry["replayed"]))
        self.carry["replayed"] += 1
        return self.ring.sample(self.carry, count, draws)["x"]

    def _weighed(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of each sample, and what it counts."""
        entropy = softmax_entropy(logits)
        return entropy, (self.high * math.log(logits.shape[1]) - entropy.detach()).exp()

    def _says(self, which: str, network: nn.Module, x: Tensor, moving: Moving) -> Tensor:
        with following_statistics(network, moving):
            return functional_call(network, self.carry.under(which), (x,))

    def _networks(self) -> tuple[tuple[str, nn.Module, Optimizer], ...]:
        return (TEACHER, self.model, self.cloud_optimizer), (EDGE, self.edge, self.edge_optimizer)

    def _learnt(self, which: str, network: nn.Module) -> dict[str, Tensor]:
        now = self.carry.under(which)
        return {name: now[name] for name in norm_affine(network)}

    @torch.no_grad()
    def _checked(self, x: Tensor) -> Tensor:
        """The samples where the networks lie, when both networks take them."""
        x = there(x, self.model)
        for held in (self.carry.under("waiting").get("x"), self.carry.under("replay.row").get("x")):
            if held is not None and (held.shape[1:] != x.shape[1:] or held.dtype != x.dtype):
                raise InputError(
                    f"the samples are {x.dtype} {tuple(x.shape[1:])}, and those before {held.dtype} "
                    f"{tuple(held.shape[1:])}; one cloud learns from samples of one shape"
                )
            if held is not None:
                return x
        for which, network, _ in self._networks():
            try:
                Classify().check(self._says(which, network, x[:1], "stay"), None)
            except Exception as error:  # networks are the user's, and say in many ways that an input does not fit
                said = error if isinstance(error, HomeostatError) else (str(error).splitlines() or [repr(error)])[0]
                raise InputError(
                    f"the samples ({x.dtype} {tuple(x.shape)}) do not fit the {which}'s network: {said}"
                ) from None
        return x


@contextmanager
def _learning(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors that ask for gradients inside."""
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    try:
        yield tensors
    finally:
        for tensor in tensors.values():
            tensor.requires_grad_(False)
