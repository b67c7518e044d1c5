"""How a stream is presented, and when a network that adapts starts anew.

Published comparisons of adaptation differ in these, and often do not say so: the same method may gain under one and
collapse under another. Under each of them a sample is answered once, and its answer is what counts, given before
anything is learnt from it; `Episodic` with `select="oracle"` is the exception, and no method that anybody could use.

- `PhaseReset`: phases one after another; what was learnt is dropped where a new phase begins, which takes somebody who
  knows when that is. Most papers report this as "online".
- `Continual`: phases one after another, nothing is ever reset.
- `Episodic`: everything is dropped before each batch, which is then seen `steps` times. `select` says which of its
  answers counts: the last; the one with the least mean entropy, a rule that needs no labels; or the best by its labels,
  ties broken by their cross-entropy, which is an upper bound. `EpisodicGrid` selects among several settings' answers.
- `MixedStream`: samples of all phases shuffled together.
- `CorrelatedStream`: within a phase, samples of a class come together.
- `BatchOfOne`: as `Continual`, one sample at a time.

References: Zhao et al., On Pitfalls of Test-Time Adaptation, ICML 2023 (S260), for oracle selection and non-i.i.d.
order; Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022, for continual against reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from homeostat.core.data import Batch, Data, Joined, revealed
from homeostat.core.errors import MissingPart, SpecError
from homeostat.core.fork import fork, unwrap
from homeostat.core.online import Online
from homeostat.core.place import device_of
from homeostat.core.probe import Outputs, prequential, stacked
from homeostat.core.run import Run
from homeostat.core.spec import Count, Index, Positive, Spec
from homeostat.core.spectext import short_text
from homeostat.core.task import Classify, Task
from homeostat.shift.label import CorrelatedOrder


@dataclass(frozen=True)
class Protocol(Spec, abstract=True):
    """Base of protocols.

    Attributes:
        batch: samples answered together.
        labels: so many labels of a batch, drawn at random, are shown after it was answered.
        samples: of each phase, at most; 0 takes all.
    """

    whole: ClassVar[bool] = True
    """Whether a stream is answered from its first sample to its last without a reset."""

    batch: Count = 100
    labels: Index = 0
    samples: Index = 0

    def called(self) -> str:
        """Its name in tables."""
        return short_text(self)

    def pieces(self, parts: Sequence[Data], run: Run) -> list[Data]:
        """The stream as it comes, in pieces between which there may be a reset."""
        return self.arrange([part[: self.samples] if self.samples else part for part in parts], run)

    def arrange(self, parts: Sequence[Data], run: Run) -> list[Data]:
        """The same, of the samples that count."""
        return [Joined(list(parts))]

    def answer(self, model: nn.Module, pieces: Sequence[Data], reads: Iterable[str], task: Task, run: Run) -> Outputs:
        """Answers to every sample in the order in which they came.

        Args:
            model: an `Online` adapts on a copy; any other only answers.
            pieces: from the method of that name.
            reads: what probes read, see `Outputs`.
        """
        reads = frozenset(reads) | {"out"}
        seeded = [run.replace(seed=run.seed_for("piece", number)) for number, _ in enumerate(pieces)]
        answers = [self._piece(model, piece, reads, task, own) for piece, own in zip(pieces, seeded, strict=True)]
        return stacked(answers, task)

    def _piece(self, model: nn.Module, piece: Data, reads: frozenset[str], task: Task, run: Run) -> Outputs:
        return prequential(model, piece, reads, task=task, batch=self.batch, labels=self.labels, run=run)


@dataclass(frozen=True)
class Continual(Protocol):
    """Phases one after another; nothing is reset."""


@dataclass(frozen=True)
class PhaseReset(Protocol):
    """Phases one after another, with a reset between them."""

    whole: ClassVar[bool] = False

    def arrange(self, parts: Sequence[Data], run: Run) -> list[Data]:
        return list(parts)


@dataclass(frozen=True)
class MixedStream(Protocol):
    """Samples of all phases shuffled together."""

    def arrange(self, parts: Sequence[Data], run: Run) -> list[Data]:
        return [Joined(list(parts)).shuffle(run.rng("mixed"))]


@dataclass(frozen=True)
class CorrelatedStream(Protocol):
    """Within a phase, samples of a class come together.

    Attributes:
        concentration: of the Dirichlet distribution; smaller is more correlated. See `CorrelatedOrder`.
    """

    concentration: Positive = 0.1

    def arrange(self, parts: Sequence[Data], run: Run) -> list[Data]:
        order = CorrelatedOrder(self.concentration)
        made = [order(part, run=run.replace(seed=run.seed_for("order", i))) for i, part in enumerate(parts)]
        return [Joined(made)]


@dataclass(frozen=True)
class BatchOfOne(Protocol):
    """One sample at a time; nothing is reset."""

    batch: Count = 1


class Tries(nn.Module):
    """Networks among whose answers `Episodic` selects; its `forward` is that of the first."""

    def __init__(self, nets: Iterable[Online]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Any) -> Any:
        return self.nets[0](x)


@dataclass(frozen=True)
class Episodic(Protocol):
    """A reset before every batch, which is then seen `steps` times.

    Attributes:
        steps: how often; the answer of a method that learns after it answers is then after `steps - 1` updates.
        select: which answer counts.
        skip: so many of the first answers cannot be selected. TTAB's oracle over n steps chooses among the answers
            after 1 to n updates: `steps` n + 1, `skip` 1.
    """

    whole: ClassVar[bool] = False

    steps: Count = 5
    select: Literal["last", "unlabelled", "oracle"] = "last"
    skip: Index = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip >= self.steps:
            raise SpecError(f"Episodic skips {self.skip} of {self.steps} answers; at least one has to stay").at("skip")

    def _piece(self, model: nn.Module, piece: Data, reads: frozenset[str], task: Task, run: Run) -> Outputs:
        net = unwrap(model)
        if not isinstance(net, Online | Tries):
            return super()._piece(model, piece, reads, task, run)
        if "features" in reads:
            raise MissingPart("Episodic keeps no features; leave out probes that read them")
        net, rows = fork(net, own="*"), list[Outputs]()
        nets: list[Any] = list(net.nets) if isinstance(net, Tries) else [net]
        for step, batch in enumerate(piece.batches(self.batch)):
            shown = batch.replace(y=shown_labels(batch, self.labels, run, step))
            shown, batch = shown.to(device_of(net)), batch.to(device_of(net))
            tries = list[Any]()
            for one in nets:
                one.reset()
                tries += [one.observe(shown) for _ in range(self.steps)][self.skip :]
            out = tries[-1] if self.select == "last" else self._best(tries, batch, task)
            task.check(out, batch.y)
            x = batch.x if "x" in reads else None
            rows.append(Outputs(out, batch.y, batch.id, x, None, batch.meta, task))
        return stacked(rows, task)

    def _best(self, tries: Sequence[Any], batch: Batch, task: Task) -> Tensor:
        if not isinstance(task, Classify):
            raise MissingPart(f"Episodic selects among answers of classifiers; the task is {type(task).__name__}")
        if self.select == "unlabelled":
            return min(tries, key=lambda out: float(torch.special.entr(out.softmax(1)).sum(1).mean()))

        def merit(out: Tensor) -> tuple[float, float]:
            right = float((out.argmax(1) == batch.labels).float().mean())
            return right, -float(torch.nn.functional.cross_entropy(out, batch.labels))

        return max(tries, key=merit)


def shown_labels(batch: Batch, count: int, run: Run, step: int) -> Any:
    """The labels of a batch that are shown: so many, drawn at random; None where there are none to show."""
    return revealed(batch.labels, count, run.rng("labels", step)) if count and batch.y is not None else None
