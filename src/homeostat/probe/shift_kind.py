"""What kind of shift a window is under, in words: none, covariate, label, correlated, subgroup, concept, novel-class.

| kind | what changed | what may help |
|---|---|---|
| covariate | the inputs, in every class | adaptation, recalibrated normalization |
| label | how often classes come | another prior |
| correlated | the order: neighbors are of one class | normalization without a batch's statistics |
| subgroup | which samples of a class come | weights, a refit |
| concept | the rule: labels differ for the same inputs | a refit on new labels |
| novel-class | samples of no known class come | asking a person |

Preparing takes one pass over labelled data from before, and a few over samples of it with changed inputs. From these
outputs windows of every kind are simulated (see `homeostat.probe.simulated`), each with a reference of its own; some
fifty signs s of each are computed that mean the same for any network (`homeostat.probe.shift_signs`). A multinomial
model with squared penalty is fitted, P(kind | s) = softmax(W s + b), twice: without the signs that need labels, and
with them. A window with fewer than 10 known labels is judged by the first, to which a changed rule is invisible.

A shift is found when P(none | s) is no larger than in the `level` smallest of the simulated windows without shift, by
models fitted on windows from other halves of the data: the p-value is (1 + how many of these are as small) / (1 + their
number), and at most `level` of windows without shift are called shifted, as far as the data from before are like those.
Then the most probable other kind is named; the value is its probability, or that of none.

Outputs are taken in stream order. `simulate` adds shifts of one's own to the generic changes of inputs; those of labels
or order are passed over. The effect is that of the kind: features' standard deviations (covariate), total variation
of predicted classes (label), excess share of neighbors alike (correlated), standard deviations of a class (subgroup),
excess error (concept), excess share of samples far from any before (novel-class). Subjects are features (covariate)
or classes. Arrays: `probabilities` in the order of `KINDS`; by class `classes` (change of the predicted share),
`within` (squared drift within), `clumped`, `errors`; `features`, the change of each feature's mean beyond what the
class balance explains, `spread`, that of its spread, both in its standard deviations, and `top_features`, those with
the largest of either first; `signs`.

It needs a network with a linear layer, whose inputs are the features, at least 40 labelled samples from before that the
network was not trained on, and a window of 20; windows of 100 to 500 are what it is made for. With two classes no
novel class can be simulated, and none is ever named. Two shifts at once get one name. A class balance that the window
is too short to show, a slow order of which the window shows one class, and a new class that looks like a known one are
beyond it; `docs/diagnosis.md` has the rates. Defaults are ours.

>>> import torch
>>> from homeostat.core.check import small_network, small_world
>>> world, probe = small_world(), ShiftKind(simulations=12)
>>> probe(small_network(), world.replace(held=world.target)).finding.kind
'none'
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Data, Tensors
from homeostat.core.errors import InputError, MissingPart
from homeostat.core.method import Card, Kind, Shift
from homeostat.core.online import Bag
from homeostat.core.probe import Outputs, Probe, outputs as pass_over
from homeostat.core.reading import Finding, Reading
from homeostat.core.run import Run
from homeostat.core.spec import Count, Positive
from homeostat.core.task import check_labels
from homeostat.core.world import World
from homeostat.probe.checks import enough, labelled, logits, matrix, same_width
from homeostat.probe.input_changes import changes
from homeostat.probe.intervals import Level
from homeostat.probe.labelled_source import Split, parts_of
from homeostat.probe.shift_reference import Reference, Rows, reference
from homeostat.probe.shift_signs import LEAST_LABELS, UNLABELLED, Seen, signs
from homeostat.probe.simulated import simulate

KINDS: tuple[Kind, ...] = ("none", "covariate", "label", "correlated", "subgroup", "concept", "novel-class")
"""The kinds in the order of the reading's probabilities."""
_CHANGED, _LEAST, _SOURCE, _FOLDS, _NAMED = 400, 20, 40, 4, 5


@dataclass(frozen=True)
class ShiftKind(Probe):
    """Probability of the most probable kind of shift; the finding names it, with the classes or features affected."""

    card: ClassVar[Card] = Card(
        handles=frozenset({"covariate", "label", "correlated", "subgroup", "concept", "novel-class"}),
        prepares=parts_of("source"),
    )
    reads: ClassVar[frozenset[str]] = frozenset({"out", "features"})
    permutable: ClassVar[bool] = False

    split: Split = "source"
    """Which labelled data stand for the time before."""
    simulate: tuple[Shift, ...] = ()
    """Shifts of inputs that may come, simulated besides the generic ones."""
    simulations: Count = 60
    """Simulated windows of each kind."""
    reference: Count = 2000
    """Labelled samples from before that are used at most."""
    level: Level = 0.05
    """Windows without shift that are called shifted."""
    penalty: Positive = 10.0
    """Weight of the squared coefficients."""

    def prepares(self) -> frozenset[str]:
        return parts_of(self.split)

    def prepare(self, model: nn.Module | None, world: World, run: Run) -> Bag:
        data: Data | None = getattr(world, self.split)
        if model is None or data is None:
            raise MissingPart(
                f"ShiftKind needs a model and labelled {self.split} data: give World({self.split}=(x, y))"
            )
        data = _known(data, self.reference, run)
        seen = pass_over(model, data, self.reads, task=world.task)
        out, y = labelled(seen, "ShiftKind", _SOURCE, f"labelled samples of the {self.split}")
        if int((torch.bincount(y) >= 2).sum()) < 2:
            raise InputError(
                f"ShiftKind tells shifts apart by classes, and the {self.split} has labels of one class "
                f"({int(y[0])}) only. Give data of at least two"
            )
        rows = Rows.of(out, matrix(seen, "features", "ShiftKind"), y)
        simulated = simulate(
            rows, self._changed(model, data, rows, world, run), self.simulations, run.rng("ShiftKind", "windows")
        )
        x, kinds, turns = [], [], []
        for window in simulated:
            x.append(signs(window.window, window.reference).signs)
            kinds.append(KINDS.index(window.kind))
            turns.append(window.turn)
        found, kind, turn = torch.stack(x), torch.tensor(kinds), torch.tensor(turns)
        visible = kind != KINDS.index("concept")
        bag = Bag()
        bag.put("reference", reference(rows).tensors())
        bag.put("plain", fit_kinds(found[visible, :UNLABELLED], kind[visible], turn[visible], self.penalty))
        bag.put("labelled", fit_kinds(found, kind, turn, self.penalty))
        bag.put("windows", {"signs": found, "kinds": kind, "turns": turn})
        member = nn.functional.one_hot(y.cpu(), out.shape[1]).float()
        bag["class_features"] = member.T @ rows.features / member.sum(0).clamp(min=1)[:, None]
        return bag

    def _changed(self, model: nn.Module, data: Data, rows: Rows, world: World, run: Run) -> list[tuple[Tensor, Rows]]:
        """For each change of inputs, positions and what the network sees there."""
        positions = torch.randperm(len(data), generator=run.rng("ShiftKind", "changed"))[:_CHANGED]
        before = data[positions].load()
        made: list[Data] = [
            Tensors(change(before.x), before.y, before.id) for change in changes(run.rng("ShiftKind", "inputs"))
        ]
        place = {int(name): int(position) for name, position in zip(before.id, positions, strict=True)}
        for shift in self.simulate:
            if not shift.card.handles or shift.card.handles & {"covariate", "adversarial"}:
                made.append(shift(data[positions], model=model, run=run))
        found = []
        for part in made:
            seen = pass_over(model, part, self.reads, task=world.task)
            where = torch.tensor([place[int(name)] for name in seen.id])
            features = matrix(seen, "features", "ShiftKind")
            found.append((where, Rows.of(logits(seen, "ShiftKind"), features, rows.labels[where])))
        return found

    def measure(self, outputs: Outputs, world: World, kit: Any, run: Run) -> Reading:
        out = logits(outputs, "ShiftKind")
        if outputs.features is None:
            raise MissingPart("ShiftKind reads features, and these outputs have none; keep them: outputs(reads=...)")
        ref = Reference.read(kit.under("reference"))
        same_width(out.shape[1], len(ref.prior), "ShiftKind", "classes")
        features = matrix(outputs, "features", "ShiftKind")
        same_width(features.shape[1], len(ref.mean), "ShiftKind", "features")
        enough(len(out), _LEAST, "ShiftKind")
        y = None if outputs.y is None else outputs.labels
        if y is not None:
            check_labels(y, out.shape[1], shape=(len(out),))
        rows = Rows.of(out, features, y)
        seen = signs(rows, ref)
        count = int((rows.labels != UNKNOWN).sum())
        model = {k: v.cpu() for k, v in kit.under("labelled" if count >= LEAST_LABELS else "plain").items()}
        p = kind_probabilities(model, seen.signs[: len(model["mean"])])
        p_value = (1 + int((model["calm"] <= p[0]).sum())) / (1 + len(model["calm"]))
        detected = p_value <= self.level
        index = 1 + int(p[1:].argmax()) if detected else 0
        moved = (rows.features.mean(0) - seen.estimated @ kit["class_features"].cpu()) / ref.scale
        spread = rows.features.std(0) / ref.scale - ref.spread
        sampling = math.sqrt(1 / len(rows) + 1 / len(ref.labels))
        size = torch.maximum(moved.abs(), spread.abs())
        effect, subjects, text = _said(index, p, seen, size, sampling, count, p_value)
        finding = Finding(KINDS[index], detected, subjects, None, p_value, effect, text)
        arrays = {
            "probabilities": p, "classes": seen.predicted, "within": seen.within, "clumped": seen.clumped,
            "errors": seen.errors, "features": moved, "spread": spread,
            "top_features": size.argsort(descending=True, stable=True), "signs": seen.signs,
        }  # fmt: skip
        return Reading("shift kind", float(p[index]), unit="probability", finding=finding, arrays=arrays)


def fit_kinds(
    x: Float[Tensor, "windows signs"], kinds: Int[Tensor, " windows"], turns: Int[Tensor, " windows"], penalty: float
) -> dict[str, Tensor]:
    """A multinomial model of the kinds given signs, all kinds having equal weight.

    Args:
        x: signs of windows.
        kinds: positions in `KINDS`; a kind that does not occur gets probability 0.
        turns: windows of one turn share samples, and are held out together.
        penalty: weight of the squared coefficients, for signs in units of their standard deviation.

    Returns:
        `mean`, `scale`, `slope [kinds, signs]`, `offset [kinds]`, and `calm`: probabilities of none for windows without
        shift by models fitted without their turn, in rising order.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale, present = x.mean(0), x.std(0).clamp(min=1e-3), kinds.unique()
    z = _standardized(x, mean, scale).double().numpy()

    def fitted(rows: Tensor) -> tuple[Tensor, Tensor]:
        model = LogisticRegression(C=1 / penalty, max_iter=500, tol=1e-3, class_weight="balanced")
        model.fit(z[rows.numpy()], kinds[rows].numpy())
        slope, offset = torch.zeros(len(KINDS), x.shape[1]), torch.full((len(KINDS),), -1e4)
        slope[present] = torch.from_numpy(np.asarray(model.coef_)).float()
        offset[present] = torch.from_numpy(np.asarray(model.intercept_)).float()
        return slope, offset

    slope, offset = fitted(torch.arange(len(x)))
    model = {"mean": mean, "scale": scale, "slope": slope, "offset": offset}
    calm = kind_probabilities(model, x)[:, 0]
    fold = turns % _FOLDS
    for held in fold.unique().tolist() if len(turns.unique()) > 1 else ():
        part = fold == held
        if len(kinds[~part].unique()) == len(present):
            slope, offset = fitted(torch.nonzero(~part).flatten())
            calm[part] = kind_probabilities({**model, "slope": slope, "offset": offset}, x[part])[:, 0]
    return {**model, "calm": calm[kinds == 0].sort().values}


def kind_probabilities(model: Mapping[str, Tensor], x: Float[Tensor, "*windows signs"]) -> Float[Tensor, "*windows 7"]:
    """Probabilities of the kinds by a model that `fit_kinds` made."""
    return (_standardized(x, model["mean"], model["scale"]) @ model["slope"].T + model["offset"]).softmax(-1)


def _standardized(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((x - mean) / scale).clamp(-4, 4)


def _known(data: Data, most: int, run: Run) -> Data:
    """At most so many samples whose label is known, in random order."""
    known = torch.nonzero(data.all_labels().cpu() != UNKNOWN).flatten()
    return data[known[torch.randperm(len(known), generator=run.rng("ShiftKind", "reference"))[:most]]]


def _largest(values: Tensor, least: float, count: int = _NAMED) -> tuple[int, ...]:
    """Positions of the largest values above `least`, largest first."""
    order = values.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(i for i in order if float(values[i]) > least)


def _listed(word: str, subjects: tuple[int, ...]) -> str:
    plural = {"class": "classes"}.get(word, f"{word}s")
    return f"{word if len(subjects) == 1 else plural} {', '.join(map(str, subjects[:3]))}"


def _said(
    index: int, p: Tensor, seen: Seen, size: Tensor, sampling: float, count: int, p_value: float
) -> tuple[float | None, tuple[int, ...], str]:
    """Effect, subjects and sentence for the kind that was found."""
    kind, sure = KINDS[index], f"(probability {float(p[index]):.2f})"
    if kind == "none":
        blind = "" if count >= LEAST_LABELS else "; without labels a changed rule would not show"
        return None, (), f"no shift stands out (p = {p_value:.2f}, probability {float(p[0]):.2f} of none){blind}"
    if kind == "covariate":
        subjects, largest = _largest(size, 3 * sampling), float(size.max())
        most = f", most {_listed('feature', subjects)}" if subjects else ""
        text = f"the inputs changed: features moved or spread by up to {largest:.2f} standard deviations{most}, "
        return largest, subjects, f"{text}which the class balance does not explain {sure}"
    if kind == "label":
        change = float(seen.predicted.abs().sum()) / 2
        subjects = _largest(seen.predicted.abs(), sampling)
        each = ", ".join(f"class {k} by {100 * float(seen.predicted[k]):+.0f} points" for k in subjects[:3])
        return change, subjects, f"the class balance changed: predictions of {each or 'each class by little'} {sure}"
    if kind == "correlated":
        subjects = _largest(seen.clumped, sampling / 4)
        where = f", most in {_listed('class', subjects)}" if subjects else ""
        text = f"samples come in runs of a class: {seen.alike:.0%} of neighbors are predicted alike, {seen.chance:.0%} "
        return seen.alike - seen.chance, subjects, f"{text}by chance{where} {sure}"
    if kind == "subgroup":
        subjects, largest = _largest(seen.within, 0.0), math.sqrt(max(0.0, float(seen.within.max())))
        where = f" most in {_listed('class', subjects)}," if subjects else ""
        text = f"other samples of the same classes come:{where} features moved by up to {largest:.2f} standard "
        return largest, subjects, f"{text}deviations within a class, and stay where samples were before {sure}"
    if kind == "concept":
        subjects = _largest(seen.errors, 0.05)
        where = f", most in {_listed('class', subjects)}" if subjects else ""
        text = (
            f"labels follow another rule: {seen.error:.0%} of {count} known labels disagree, {seen.expected:.0%} was "
        )
        return seen.error - seen.expected, subjects, f"{text}expected of these inputs{where} {sure}"
    subjects = _largest(seen.taken, 0.1)
    taken = f", mostly taken for {_listed('class', subjects)}" if subjects else ""
    text = f"samples of no known class come: {seen.far:.0%} are far from all before, where {seen.far_before:.0%} were"
    return seen.far - seen.far_before, subjects, f"{text}{taken} {sure}"
