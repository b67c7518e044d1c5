"""TAME: experts for tasks that nobody announces, against one network that learns them in turn.

Zhu et al., TAME: Task agnostic continual learning using multiple experts, CVPR Workshops 2024 (S179): no task
identities in training or at test, above single networks that protect their weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from homeostat.adapt import TAME
from homeostat.adapt.tame import TAMEOnline
from homeostat.core.data import Batch, Data, Tensors
from homeostat.core.fork import fork
from homeostat.core.run import Run
from homeostat.data import Digits, FashionMNIST
from homeostat.evidence import claim
from homeostat.fit.training import Recipe, train
from homeostat.nn.fisher import fisher_diagonal
from homeostat.nn.mlp import MLP
from homeostat.nn.optimizers import Adam

ADAM, BATCH, EPOCHS = Adam(lr=2e-3), 32, 8
TASKS, EWC = 5, 100.0
DIGITS = (Digits(shuffle=0, stop=1400), Digits(shuffle=0, start=1400))
FASHION = (FashionMNIST("train", stop=10_000), FashionMNIST("test", stop=2500))
PERMUTED = "the 8 x 8 digits of scikit-learn in five orders of pixels in place of MNIST; eight passes a task; an MLP"
SPLIT = "10,000 training images of Fashion-MNIST, two classes a task; four passes a task; an MLP"

Parts = list[tuple[Data, Data]]


def _permuted(run: Run, known: Data, unseen: Data) -> Parts:
    """Five orders of the pixels, for training and for judging."""
    parts = []
    for number in range(TASKS):
        order = torch.randperm(64, generator=run.rng("order", number))
        parts.append(tuple(Tensors(_pixels(b).flatten(1)[:, order], b.y) for b in (known.load(), unseen.load())))
    return parts


def _split(run: Run, known: Data, unseen: Data) -> Parts:
    """Five pairs of classes, at 14 x 14 pixels."""
    classes = torch.randperm(10, generator=run.rng("classes")).view(TASKS, 2)
    parts = []
    for pair in classes:
        each = []
        for batch in (known.load(), unseen.load()):
            mine = torch.isin(batch.labels, pair)
            small = nn.functional.avg_pool2d(_pixels(batch)[mine], 2).flatten(1)
            each.append(Tensors(small, batch.labels[mine]))
        parts.append(tuple(each))
    return parts


def _pixels(batch: Batch) -> Tensor:
    assert isinstance(batch.x, Tensor)
    return batch.x


def _start(run: Run, parts: Parts) -> MLP:
    return MLP(parts[0][0].load().x.shape[1], 10, (64, 64), seed=run.seed)  # type: ignore[union-attr]


def _streamed(run: Run, parts: Parts, epochs: int) -> tuple[TAMEOnline, int]:
    """TAME after the tasks in turn, and how often another expert took over."""
    tame = TAME(optimizer=ADAM, capacity=1000)(_start(run, parts), run=run)
    switches, last = 0, tame.active
    for number, (known, _) in enumerate(parts):
        for epoch in range(epochs):
            for batch in known.shuffle(run.rng("pass", number, epoch)).batches(BATCH):
                tame.observe(batch)
                switches, last = switches + (tame.active != last), tame.active
    return tame, switches


def _in_turn(run: Run, parts: Parts, epochs: int, weight: float = 0.0) -> nn.Module:
    """One network trained on the tasks in turn; with a weight, drawn back by the Fisher information of each (EWC).

    It is told when a task ends, which TAME is not.
    """
    net = fork(_start(run, parts), own="*")
    anchors: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    recipe = Recipe(optimizer=ADAM, epochs=epochs, batch=BATCH)
    parameters = dict(net.named_parameters())
    for number, (known, _) in enumerate(parts):

        def losses(batches: Mapping[str, Batch], now: Run) -> dict[str, Tensor]:
            batch = batches["known"]
            found = {"loss": nn.functional.cross_entropy(net(batch.x), batch.labels)}
            if anchors:
                pulls = [
                    (fisher[n] * (parameters[n] - then[n]).square()).sum() for fisher, then in anchors for n in then
                ]
                found["pull"] = 0.5 * weight * torch.stack(pulls).sum()
            return found

        train(net.train(), losses, {"known": known}, parameters, recipe, run=run.replace(seed=run.seed_for(number)))
        if weight:
            fisher = _fisher(net.eval(), known)
            anchors.append((fisher, {n: p.detach().clone() for n, p in parameters.items()}))
    return net.eval()


def _fisher(net: nn.Module, known: Data) -> dict[str, Tensor]:
    return fisher_diagonal(net, [batch.x for batch in known[:300].batches(1)], [n for n, _ in net.named_parameters()])


def _right(net: nn.Module, part: Data) -> float:
    batch = part.load()
    with torch.no_grad():
        return float((net(batch.x).argmax(1) == batch.labels).double().mean())


def _mean(net: nn.Module, parts: Parts) -> float:
    return sum(_right(net, judged) for _, judged in parts) / len(parts)


def _arms(run: Run, parts: Parts, epochs: int) -> dict[str, float]:
    tame, switches = _streamed(run, parts, epochs)
    arms = {"EWC": _in_turn(run, parts, epochs, EWC), "fine-tuning": _in_turn(run, parts, epochs)}
    found = {"TAME": _mean(tame, parts)} | {name: _mean(net, parts) for name, net in arms.items()}
    return found | {"switches": float(switches), "experts": float(tame.experts)}


@claim(
    "S179",
    says="After five orders of the pixels of digits, which nobody announces, TAME is more accurate over all of them by "
    "five points or more than EWC, which is told where tasks end.",
    ours="TAME", baseline="EWC", metric="accuracy, mean over tasks", least=0.05, tier="three minutes", data=DIGITS,
    tuned="nothing", shrunk=PERMUTED,
)  # fmt: skip
def permuted(run: Run, known: Data, unseen: Data) -> dict[str, float]:
    return _arms(run, _permuted(run, known, unseen), EPOCHS)


@claim(
    "S179",
    says="After five pairs of classes of Fashion-MNIST, which nobody announces, TAME is more accurate over all of them "
    "by twenty points or more than EWC, which is told where tasks end.",
    ours="TAME", baseline="EWC", metric="accuracy, mean over tasks", least=0.20, tier="three minutes", data=FASHION,
    tuned="nothing", shrunk=SPLIT,
)  # fmt: skip
def split(run: Run, known: Data, unseen: Data) -> dict[str, float]:
    return _arms(run, _split(run, known, unseen), 4)


@claim(
    "S179",
    says="Over five orders of pixels, another expert takes over four times, as often as the task changes, or at most "
    "once more or less.",
    ours="TAME", baseline="tolerance", metric="switches too many or too few", unit="switches", better="lower",
    least=0.0, tier="three minutes", data=DIGITS, tuned="nothing", shrunk=PERMUTED,
)  # fmt: skip
def switches(run: Run, known: Data, unseen: Data) -> dict[str, float]:
    _, seen = _streamed(run, _permuted(run, known, unseen), EPOCHS)
    return {"TAME": float(abs(seen - (TASKS - 1))), "tolerance": 1.0}


@claim(
    "S179",
    says="Over five orders of pixels, the selector costs at most three points of accuracy against being told which "
    "expert is best for each task.",
    ours="selector", baseline="told", metric="accuracy, mean over tasks", least=-0.03, tier="three minutes",
    data=DIGITS, tuned="nothing", shrunk=PERMUTED,
)  # fmt: skip
def routing(run: Run, known: Data, unseen: Data) -> dict[str, float]:
    parts = _permuted(run, known, unseen)
    tame, _ = _streamed(run, parts, EPOCHS)
    best = []
    for _, judged in parts:
        batch = judged.load()
        with torch.no_grad():
            outs = [torch.func.functional_call(tame.model, tame.expert(i), (batch.x,)) for i in range(tame.experts)]
        best.append(max(float((out.argmax(1) == batch.labels).double().mean()) for out in outs))
    return {"selector": _mean(tame, parts), "told": sum(best) / len(best)}
