"""How often the kind of a shift is named rightly, on real shifts that the probe was not fitted on.

    python benchmarks/diagnosis.py                    # some four minutes on one core
    python benchmarks/diagnosis.py --picture docs/images/diagnosis.png

`ShiftKind` is fitted on simulated shifts of labelled data from before. Here it judges windows of other samples of

- Fashion-MNIST (ResNet-8), scikit-learn's digits (MLP), the breast cancer table (MLP, five divisions of the data),
  CIFAR-10 (the published ResNet-20) and WordNet's glosses (averaged word vectors); what is not at hand is left out;
- shifts made without its simulations: corruptions, rotations and typing errors; class balances drawn by `LabelShift`;
  streams of `CorrelatedOrder` in slots of 12 and of 40 samples; a class that a network of its own was trained without,
  as 15 % and 40 % of the window (for CIFAR-10: MNIST's digits); a network trained on groups of classes, of which each
  group then consists of half of its classes; two classes swapped, or a class given to another group.

Twice: with the kit fitted on the same network's data from before ("own"), and with its reference, but the models fitted
on the simulations of all other data ("foreign"). Windows have 100 and 400 samples, without labels and with a quarter
known. Without labels, concept windows count as none: nothing in them differs. The table says how often each kind was
named rightly (and "none": how often no shift was claimed), the matrices what was said instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from homeostat.core.data import UNKNOWN, Tensors
from homeostat.core.errors import MissingPart
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, outputs
from homeostat.core.run import Run
from homeostat.core.tree import length
from homeostat.core.world import World
from homeostat.data import WordTokenizer, cifar10, digits, fashion_mnist, glosses, mnist
from homeostat.fit import Cosine, Fit, Recipe
from homeostat.nn import MLP, SGD, Adam, Normalized, ResNet, cifar_resnet
from homeostat.probe import KINDS, ShiftKind
from homeostat.probe.shift_kind import fit_kinds
from homeostat.probe.shift_signs import UNLABELLED
from homeostat.shift import CharacterNoise, CorrelatedOrder, Corrupt, LabelShift, Rotate, Translate, WordNoise

READS = {"out", "features"}
SIZES = (100, 400)
KNOWN = 0.25


@dataclass
class Problem:
    """A network, its data from before, and what it makes of the stream and of the stream's shifts."""

    family: str
    net: nn.Module
    before: tuple[Tensor, Tensor]
    stream: tuple[Tensor, Tensor]
    changed: dict[str, Tensor] = field(default_factory=dict)
    news: Any = None
    fine: Tensor | None = None

    def __post_init__(self) -> None:
        self.seen = self.passed(*self.stream)
        self.moved = {name: self.passed(x, self.stream[1]) for name, x in self.changed.items()}
        self.new = None if self.news is None else self.passed(self.news, torch.full((length(self.news),), UNKNOWN))
        self.changed = {}

    def passed(self, x: Any, y: Tensor) -> Outputs:
        return dataclasses.replace(outputs(self.net, Tensors(x, y), READS), meta=None)


def shifted(x: Tensor, shifts: Sequence[Any]) -> dict[str, Tensor]:
    found: dict[str, Any] = {str(shift): shift(Tensors(x), run=Run(seed=7)).load().x for shift in shifts}
    return found


def renumbered(y: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The number of the group that each label is in; `UNKNOWN` for labels in none."""
    table = torch.full((int(y.max()) + 1,), UNKNOWN)
    for number, group in enumerate(groups):
        table[torch.tensor([k for k in group if k < len(table)], dtype=torch.long)] = number
    return table[y]


def trained(net: nn.Module, x: Any, y: Tensor, epochs: int, optimizer: Any, batch: int = 64) -> nn.Module:
    recipe = Recipe(epochs=epochs, batch=batch, optimizer=optimizer, schedule=Cosine(warmup=30))
    return Fit(recipe=recipe)(net, World(source=Tensors(x, y)))


def variants(
    family: str, make: Any, fit: Any, x: Tensor, y: Tensor, cuts: tuple[int, int], shifts: Sequence[Any],
    left: Sequence[int], groups: Sequence[Sequence[int]],
) -> Iterator[Problem]:  # fmt: skip
    """The plain network, one without each of the classes in `left`, and one of groups of classes."""
    train, before, stream = slice(0, cuts[0]), slice(cuts[0], cuts[1]), slice(cuts[1], len(y))
    count = int(y.max()) + 1
    net = fit(make(count), x[train], y[train])
    changed = shifted(x[stream], shifts)
    yield Problem(family, net, (x[before], y[before]), (x[stream], y[stream]), changed)
    for gone in left:
        fewer = renumbered(y, [[k] for k in range(count) if k != gone])
        kept = fewer != UNKNOWN
        net = fit(make(count - 1), x[train][kept[train]], fewer[train][kept[train]])
        was, now = ((x[part][kept[part]], fewer[part][kept[part]]) for part in (before, stream))
        yield Problem(family, net, was, now, news=x[stream][~kept[stream]])
    grouped = renumbered(y, groups)
    net = fit(make(len(groups)), x[train], grouped[train])
    yield Problem(family, net, (x[before], grouped[before]), (x[stream], grouped[stream]), fine=y[stream])


def fashion() -> Iterator[Problem]:
    train: Any = fashion_mnist("train")[:8000].load()
    test: Any = fashion_mnist("test")[:5000].load()
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])

    def make(classes: int) -> nn.Module:
        return Normalized(ResNet(depth=8, in_channels=1, width=8, classes=classes), (0.286,), (0.353,))

    def fit(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        return trained(net, x, y, 3, SGD(lr=0.1, weight_decay=5e-4, nesterov=True))

    shifts = [
        Corrupt("gaussian_noise", 3), Corrupt("fog", 3), Corrupt("motion_blur", 3), Corrupt("pixelate", 4),
        Corrupt("elastic_transform", 4), Rotate(20.0),
    ]  # fmt: skip
    groups = [[0, 2, 4, 6], [5, 7, 9], [1, 3], [8]]
    yield from variants("Fashion-MNIST", make, fit, x, y, (8000, 10000), shifts, (2, 8), groups)


def handwriting() -> Iterator[Problem]:
    every: Any = digits().shuffle(torch.Generator().manual_seed(0)).load()

    def make(classes: int) -> nn.Module:
        return MLP(64, classes, (64, 32))

    def fit(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        return trained(net, x, y, 40, SGD(lr=0.05, weight_decay=5e-4, nesterov=True), 32)

    shifts = [Rotate(15.0), Rotate(30.0), Translate(1 / 8), Corrupt("gaussian_noise", 4), Corrupt("contrast", 4)]
    groups = [[0, 6], [1, 7, 4], [2, 3], [5, 8, 9]]
    yield from variants("digits", make, fit, every.x, every.y, (700, 1200), shifts, (3, 8), groups)


def cancer() -> Iterator[Problem]:
    from sklearn.datasets import load_breast_cancer

    found: Any = load_breast_cancer()
    columns = torch.arange(30)
    for seed in range(5):
        order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
        x, y = torch.tensor(found.data).float()[order], torch.tensor(found.target).long()[order]
        x = (x - x[:150].mean(0)) / x[:150].std(0)
        net = trained(MLP(30, 2, (32, 16)), x[:150], y[:150], 40, SGD(lr=0.02, weight_decay=5e-4, nesterov=True), 16)
        now = x[385:]
        changed = {
            "units": now * torch.where(columns % 3 == 0, 1.6, 1.0), "drift": now + 0.8 * (columns % 5 == 0),
            "missing": now * (columns > 7), "calibration": now + 0.3 * now.square().clamp(max=4),
        }  # fmt: skip
        yield Problem("breast cancer", net, (x[150:385], y[150:385]), (now, y[385:]), changed)


class Grouped(nn.Module):
    """Log-probabilities of groups of classes."""

    def __init__(self, net: nn.Module, groups: Sequence[Sequence[int]]):
        super().__init__()
        self.net, self.groups = net, groups

    def forward(self, x: Any) -> Tensor:
        log_p = self.net(x).log_softmax(1)
        return torch.stack([log_p[:, list(group)].logsumexp(1) for group in self.groups], 1)


def cifar() -> Iterator[Problem]:
    every: Any = cifar10("test")[:3500].load()
    x, y, net = every.x, every.y, cifar_resnet(20)
    shifts = [Corrupt("gaussian_noise", 1), Corrupt("fog", 3), Corrupt("defocus_blur", 3), Corrupt("contrast", 2),
              Corrupt("pixelate", 3), Rotate(15.0)]  # fmt: skip
    strange: Any = mnist("test")[:300].load().x
    strange = F.interpolate(strange, (32, 32)).expand(-1, 3, -1, -1)
    yield Problem("CIFAR-10", net, (x[:2000], y[:2000]), (x[2000:], y[2000:]), shifted(x[2000:], shifts), strange)
    groups = [[0, 8, 1, 9], [2, 6], [3, 5], [4, 7]]
    coarse = renumbered(y, groups)
    before, stream = (x[:2000], coarse[:2000]), (x[2000:], coarse[2000:])
    yield Problem("CIFAR-10", Grouped(net, groups), before, stream, fine=y[2000:])


class Words(nn.Module):
    """The mean of word vectors, a hidden layer and a linear head."""

    def __init__(self, words: int, classes: int):
        super().__init__()
        self.vectors = nn.Embedding(words, 64)
        self.hidden, self.linear = nn.Linear(64, 64), nn.Linear(64, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.normal_(0.0, 0.1, generator=generator)

    def forward(self, x: Any) -> Tensor:
        mask = x["attention_mask"][:, :, None].float()
        mean = (self.vectors(x["input_ids"]) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.linear(torch.relu(self.hidden(mean)))


def words() -> Iterator[Problem]:
    every = glosses("noun").shuffle(torch.Generator().manual_seed(0))[:25000]
    tokenizer = WordTokenizer.of(every[:20000], size=6000)

    def read(texts: Any) -> tuple[Any, Any]:
        batch = texts.tokenized(tokenizer, length=16).load()
        return batch.x, batch.y

    x, y = read(every[:20000])
    net = trained(Words(tokenizer.size, 26), x, y, 3, Adam(lr=3e-3), 128)
    stream = every[22000:]
    now, labels = read(stream)
    noises = (CharacterNoise(0.1), CharacterNoise(0.3), WordNoise(0.3, kind="delete"))
    changed = {str(noise): read(noise(stream, run=Run(seed=7)))[0] for noise in noises}
    yield Problem("glosses", net, read(every[20000:22000]), (now, labels), changed)
    most = [int(k) for k in y.bincount().argsort(descending=True)[:3]]
    fewer = [[k] for k in range(26) if k != most[2]]
    was_x, was_y = read(every[20000:22000])

    def kept(x: Any, y: Tensor, keep: bool = True) -> tuple[Any, Tensor]:
        rows = (renumbered(y, fewer) != UNKNOWN) == keep
        return {name: value[rows] for name, value in x.items()}, renumbered(y, fewer)[rows]

    net = trained(Words(tokenizer.size, 25), *kept(x, y), 3, Adam(lr=3e-3), 128)
    yield Problem("glosses", net, kept(was_x, was_y), kept(now, labels), news=kept(now, labels, False)[0])


def windows(problem: Problem, size: int, rounds: int, generator: torch.Generator) -> Iterator[tuple[str, Outputs]]:
    """Windows in stream order, with the kind of shift each is under."""
    seen = problem.seen
    if size > 0.8 * len(seen):
        return
    classes, positions = int(seen.labels.max()) + 1, Tensors(torch.arange(len(seen)), seen.labels)

    def some(of: Outputs, count: int) -> Outputs:
        return of[torch.randperm(len(of), generator=generator)[:count]]

    def at(data: Any, low: int = 0) -> Outputs:
        return seen[data.load().x[low : low + size]]

    for turn in range(rounds):
        run = Run(seed=1000 + turn)
        yield "none", some(seen, size)
        yield "none", some(seen, size)
        for concentration in (0.5, 2.0):
            yield "label", at(LabelShift(concentration=concentration, size=size)(positions, run=run))
        for slot in (12, 40):
            order = CorrelatedOrder(0.1, slots=len(seen) // slot)(positions, run=run)
            yield "correlated", at(order, int(torch.randint(len(seen) - size, (), generator=generator)))
        for number, moved in enumerate(problem.moved.values()):
            if number % 2 == turn % 2:
                yield "covariate", some(moved, size)
        if problem.new is not None:
            for share in (0.15, 0.4):
                few = min(int(share * size), len(problem.new))
                yield "novel-class", some(both(some(seen, size - few), some(problem.new, few)), size)
        plain, (a, b) = some(seen, size), torch.randperm(classes, generator=generator)[:2].tolist()
        if problem.fine is None:
            y = torch.where(plain.labels == a, b, torch.where(plain.labels == b, a, plain.labels))
            yield "concept", dataclasses.replace(plain, y=y)
        else:
            rows = torch.randperm(len(seen), generator=generator)[:size]
            moved = problem.fine[seen.labels == a].unique()
            moved = moved[int(torch.randint(len(moved), (), generator=generator))]
            y = torch.where(problem.fine[rows] == moved, b, seen.labels[rows])
            yield "concept", dataclasses.replace(seen[rows], y=y)
            yield "subgroup", seen[halved(problem.fine, seen.labels, size, generator)]


def halved(fine: Tensor, coarse: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Positions of samples of half of the classes of each group, the groups as often as before."""
    kept = torch.zeros(len(fine), dtype=torch.bool)
    for group in coarse.unique():
        inside = fine[coarse == group].unique()
        inside = inside[torch.randperm(len(inside), generator=generator)][: max(1, len(inside) // 2)]
        kept |= torch.isin(fine, inside)
    rows = torch.nonzero(kept).flatten()
    weight = torch.bincount(coarse)[coarse[rows]] / torch.bincount(coarse[rows])[coarse[rows]]
    return rows[torch.multinomial(weight, min(size, len(rows) // 2), generator=generator)]


def both(a: Outputs, b: Outputs) -> Outputs:
    parts: dict[str, Any] = {
        name: torch.cat([getattr(a, name), getattr(b, name)]) for name in ("out", "y", "id", "features")
    }
    return Outputs(**parts)


def pooled(kits: Sequence[Any], penalty: float) -> dict[str, Tensor]:
    """Models fitted on the simulated windows of several kits, by their names in a kit."""
    x, kind = (torch.cat([kit[f"windows.{name}"] for kit in kits]) for name in ("signs", "kinds"))
    turn = torch.cat([1000 * i + kit["windows.turns"] for i, kit in enumerate(kits)])
    visible = kind != KINDS.index("concept")
    plain = fit_kinds(x[visible, :UNLABELLED], kind[visible], turn[visible], penalty)
    every = {"plain": plain, "labelled": fit_kinds(x, kind, turn, penalty)}
    return {f"{part}.{name}": tensor for part, model in every.items() for name, tensor in model.items()}


def judged(probe: ShiftKind, problem: Problem, kit: Any, rounds: int) -> Iterator[tuple[int, bool, int, int]]:
    """Window size, whether labels are known, the kind, and what was named."""
    for size in SIZES:
        generator = torch.Generator().manual_seed(size)
        for kind, window in windows(problem, size, rounds, generator):
            for labels in (False, True):
                shown = (torch.rand(len(window), generator=generator) < KNOWN) & labels
                y = torch.where(shown, window.labels, UNKNOWN)
                reading = probe.measure(dataclasses.replace(window, y=y), World(), kit, Run())
                true = "none" if kind == "concept" and not labels else kind
                assert reading.finding is not None
                yield size, labels, KINDS.index(true), KINDS.index(reading.finding.kind)


def shares(table: Tensor) -> Tensor:
    return table / table.sum(1, keepdim=True)


def cell(table: Tensor, kind: int) -> str:
    return f"{float(shares(table)[kind, kind]):.2f}" if float(table[kind].sum()) else "–"


def mean_recall(table: Tensor) -> float:
    present = table.sum(1) > 0
    return float(shares(table).diagonal()[present].mean())


def picture(tables: dict[tuple[str, int, bool], Tensor], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(19, 10), constrained_layout=True)
    for row, fitted in enumerate(("own", "foreign")):
        for column, (size, labels) in enumerate([(100, False), (100, True), (400, False), (400, True)]):
            table, axis = shares(tables[fitted, size, labels]), axes[row, column]
            axis.imshow(table.nan_to_num(), cmap="Blues", vmin=0, vmax=1)
            for i in range(len(KINDS)):
                for j in range(len(KINDS)):
                    if not bool(table[i, j].isnan()) and float(table[i, j]) >= 0.005:
                        color = "white" if float(table[i, j]) > 0.6 else "black"
                        axis.text(j, i, f"{float(table[i, j]):.2f}", ha="center", va="center", color=color, fontsize=9)
            axis.set_xticks(range(len(KINDS)), KINDS, rotation=40, ha="right")
            axis.set_yticks(range(len(KINDS)), KINDS)
            known = "1/4 of the labels" if labels else "no labels"
            axis.set_title(f"{fitted}: {size} samples, {known}", fontsize=11)
    axes[0, 0].set_ylabel("kind of shift")
    axes[1, 0].set_ylabel("kind of shift")
    figure.supxlabel("named as")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="windows of each shift, size and network")
    parser.add_argument("--picture", type=Path, help="where to draw the confusion matrices")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began, probe, problems, kits = time.perf_counter(), ShiftKind(), list[Problem](), list[Any]()
    for make in (fashion, handwriting, cancer, cifar, words):
        try:
            problems += make()
        except MissingPart as error:
            print(f"left out: {error}")
    print(f"networks and shifts: {time.perf_counter() - began:.0f} s")
    for problem in problems:
        start = time.perf_counter()
        kits.append(probe.kit(problem.net, World(source=Tensors(*problem.before))))
        right = float((problem.seen.logits.argmax(1) == problem.seen.labels).float().mean())
        size = len(problem.before[1])
        print(f"  {problem.family}: accuracy {right:.3f}, prepared on {size} in {time.perf_counter() - start:.1f} s")

    families = list(dict.fromkeys(problem.family for problem in problems))
    total: dict[tuple[str, int, bool], Tensor] = {}
    each: dict[tuple[str, str, int, bool], Tensor] = {}
    for family in families:
        others = [kit for kit, problem in zip(kits, problems, strict=True) if problem.family != family]
        foreign = pooled(others, probe.penalty) if others else {}
        for kit, problem in zip(kits, problems, strict=True):
            if problem.family != family:
                continue
            for fitted in ("own", "foreign") if others else ("own",):
                used = kit if fitted == "own" else Bag({**{name: kit[name] for name in kit}, **foreign})
                for size, labels, true, named in judged(probe, problem, used, given.rounds):
                    empty = torch.zeros(len(KINDS), len(KINDS))
                    total.setdefault((fitted, size, labels), empty.clone())[true, named] += 1
                    each.setdefault((family, fitted, size, labels), empty)[true, named] += 1

    print(f"\n| data | fitted on | window | labels | {' | '.join(KINDS)} | mean |\n|{'---|' * (len(KINDS) + 5)}")
    for (family, fitted, size, labels), table in each.items():
        cells = " | ".join(cell(table, k) for k in range(len(KINDS)))
        print(f"| {family} | {fitted} | {size} | {'1/4' if labels else 'no'} | {cells} | {mean_recall(table):.2f} |")
    for (fitted, size, labels), table in sorted(total.items()):
        print(f"\n{fitted}, {size} samples, {'1/4 of the labels' if labels else 'no labels'}: {mean_recall(table):.3f}")
        print(f"{'':>12}" + "".join(f"{kind:>12}" for kind in KINDS))
        for kind, row, count in zip(KINDS, shares(table).tolist(), table.sum(1).tolist(), strict=True):
            if count:
                print(f"{kind:>12}" + "".join(f"{value:12.2f}" for value in row) + f"   of {int(count)}")
    if given.picture:
        picture(total, given.picture)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
