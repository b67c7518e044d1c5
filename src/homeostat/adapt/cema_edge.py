"""The edge's half of CEMA: it predicts, sends the samples worth learning from, and takes over what comes back.

See `adapt.cema` for which samples those are. All that happens is counted in `carry`, and what goes wrong is logged.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor, nn

from homeostat.adapt.cema_link import CEMALink
from homeostat.adapt.cema_messages import LinkDown, Message, OutOfStep, filled, fingerprint_of, flattened, reply_size
from homeostat.adapt.filters import reliable_and_fresh
from homeostat.adapt.learner import logits_of
from homeostat.core.data import Batch
from homeostat.core.errors import InputError
from homeostat.core.online import Online
from homeostat.core.place import home
from homeostat.nn.losses import softmax_entropy
from homeostat.nn.renormalized import RenormalizedBatchNorm, following_statistics, norm_state

Statistics = Literal["first", "stored"]
COUNTS = (
    "seen", "reliable", "uploaded", "over_budget", "undelivered", "exchanges", "failures", "bytes_up", "bytes_down",
)  # fmt: skip
_LOG = logging.getLogger("homeostat.adapt.cema")


class CEMAEdge(Online):
    """The network on the device: it predicts, sends samples, and takes over the parameters that come back.

    Args:
        model: a classifier whose BatchNorm layers re-normalise.
        link: to the cloud.
        high, low, div_margin, warm_up, relax, byte_budget, idle, patience, statistics: see `CEMA`.
    """

    link: CEMALink

    def __init__(
        self,
        model: nn.Module,
        link: nn.Module,
        high: float = 0.4,
        low: float | None = None,
        div_margin: float = 0.05,
        warm_up: int | None = None,
        relax: float = 0.6,
        byte_budget: int | None = None,
        idle: bool = True,
        patience: int = 32,
        statistics: Statistics = "first",
    ):
        super().__init__(model, own=norm_state(model))
        self.link = link  # type: ignore[assignment]
        self.high, self.low, self.div_margin, self.warm_up, self.relax = high, low, div_margin, warm_up, relax
        self.byte_budget, self.idle, self.patience = byte_budget, idle, patience
        self.statistics: Statistics = statistics
        self.model.requires_grad_(False)
        self.begin()

    def begin(self) -> None:
        for name in (*COUNTS, "pause", "tries"):
            self.carry[name] = torch.tensor(0)
        self.carry["entropy"] = torch.tensor(0.0, dtype=torch.float64)
        stores = any(isinstance(m, RenormalizedBatchNorm) for m in self.model.modules())
        self.carry["started"] = torch.tensor(int(self.statistics == "stored" or not stores))
        self.carry["agreed"] = torch.tensor(fingerprint_of(self.norm()))

    def reset(self) -> None:
        """Back to the start, exactly. A cloud in this process goes back too; a server keeps what its network learnt."""
        self.link.reset()
        super().reset()

    def norm(self) -> dict[str, Tensor]:
        """The normalisation parameters, live."""
        owned = self.owned()
        return {name: owned[name] for name in norm_state(self.model)}

    def counts(self) -> dict[str, int]:
        """What happened so far: samples, exchanges and bytes."""
        return {name: int(self.carry[name]) for name in COUNTS}

    @torch.no_grad()
    def adapt(self, batch: Batch) -> Tensor:
        x = batch.x
        if not isinstance(x, Tensor):
            raise InputError(f"CEMA sends samples that are one tensor; these are a {type(x).__name__}")
        with following_statistics(self.model, "stay" if int(self.carry["started"]) else "start"):
            logits = logits_of(self.model(x))
        self.carry["started"] = torch.tensor(1)
        chosen = self._chosen(logits)
        if len(chosen) or self.idle:
            self._send(home(x[chosen]) if len(chosen) else None)
        return logits

    def _chosen(self, logits: Tensor) -> Tensor:
        """Positions of the samples to send."""
        entropy, most = softmax_entropy(logits), math.log(logits.shape[1])
        self.carry["seen"] += len(logits)
        self.carry["entropy"] += home(entropy).double().sum()
        mean = float(self.carry["entropy"]) / int(self.carry["seen"])
        limit = self.high * most
        if self.warm_up is not None and int(self.carry["seen"]) >= self.warm_up:
            if "warm" not in self.carry:
                self.carry["warm"] = torch.tensor(mean, dtype=torch.float64)
            limit *= mean / float(self.carry["warm"]) * self.relax
        kept = reliable_and_fresh(logits, entropy, self.carry, limit, self.div_margin, (self.low or 0.0) * most)
        self.carry["reliable"] += kept.reliable
        return kept.chosen

    def _send(self, x: Tensor | None) -> None:
        """One exchange with the cloud, or none when there is no budget or no cloud."""
        count = 0 if x is None else len(x)
        if int(self.carry["pause"]):
            self.carry["pause"] -= 1
            self.carry["undelivered"] += count
            return
        now = fingerprint_of(self.norm())
        along = now != int(self.carry["agreed"])
        try:
            sent = self._exchange(now, x, along) or (not along and self._exchange(now, x, True))
        except LinkDown as error:
            self._failed(error, count)
            return
        self.carry["uploaded" if sent else "over_budget"] += count

    def _exchange(self, now: int, x: Tensor | None, along: bool) -> bool:
        """Whether a message was answered; not when it would exceed the budget, or the cloud wants the parameters."""
        norm = self.norm()
        message = Message(now, x, flattened(norm) if along else None).bytes()
        spent = int(self.carry["bytes_up"]) + int(self.carry["bytes_down"])
        if self.byte_budget is not None and spent + len(message) + reply_size(norm) > self.byte_budget:
            return False
        try:
            answer = self.link.exchange(message)
        except LinkDown as error:
            self.carry["bytes_up"] += len(message) if error.sent else 0
            self.carry["bytes_down"] += error.got
            raise
        except OutOfStep as error:
            self.carry["bytes_up"] += len(message)
            if along:
                raise LinkDown(f"the cloud does not take the edge's parameters: {error}") from None
            return False
        self.carry["bytes_up"] += len(message)
        self.carry["bytes_down"] += len(answer)
        try:
            reply = Message.read(answer)
            new = None if reply.norm is None else filled(norm, reply.norm, reply.fingerprint)
            if new is None and reply.fingerprint != now:
                raise InputError("the answer is about parameters that were not sent along")
        except InputError as error:
            raise LinkDown(f"the cloud's answer is of no use: {error}") from None
        for name, tensor in (new or {}).items():
            norm[name].copy_(tensor)
        self.carry["agreed"] = torch.tensor(reply.fingerprint)
        self.carry["exchanges"] += 1
        if int(self.carry["tries"]):
            _LOG.warning("the cloud answers again after %d failures", int(self.carry["tries"]))
            self.carry["tries"] = torch.tensor(0)
        return True

    def _failed(self, why: LinkDown, count: int) -> None:
        self.carry["failures"] += 1
        self.carry["undelivered"] += count
        wait = min(self.patience, 2 ** min(30, int(self.carry["tries"])))
        self.carry["tries"] += 1
        self.carry["pause"] = torch.tensor(wait)
        _LOG.warning("%s; serving goes on without, next try in %d batches", why, wait + 1)
