"""Merge zoos: a weak base, networks fine-tuned from it for several tasks, and the data that tune and judge merges.

Differences between merging methods show where the base is weak at the tasks (accuracy about 0.5), fine-tuning helps
each much, and tasks conflict. Where the base is strong all methods tie; on tiny networks far from it all fall below it.
These zoos lie in between and are made in a minute or less:

- `views_zoo`: eight views (four turns, half of them mirrored) of small grey images, and a perceptron whose one head is
  frozen and shared. A view is a task.
- `digits_zoo`: the same of scikit-learn's digits, with donors trained to their limit: the base is at 0.6, each donor at
  0.97, and they conflict in all weights, so that most merges are no better than the base.
- `gloss_zoo`: definitions of WordNet in partitions of their own (`TASKS`): kinds of things, of notions, of deeds, of
  dealings, and parts of speech; and the last layers of MiniLM (see `EncoderTail`). Each task has a head of its own that
  is frozen: the directions of its classes' mean embeddings over a few texts, times `sharpness`, as CLIP's heads are
  made of the names of classes.

With `run.scratch` trained networks and states of texts are cached there by content.

    zoo = views_zoo(FashionMNIST("train", stop=20_000).read(), FashionMNIST("test").read(), run=run)
    scale, merged = zoo.best(lambda s: TaskArithmetic(scale=s)(zoo.base, zoo.world()), [0.1, 0.2, 0.3])
    zoo.accuracy(merged), zoo.normalised(merged), zoo.accuracies(merged)

Reference: Ilharco et al., Editing models with task arithmetic, ICLR 2023 (the setting, and normalised accuracy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from homeostat.core.data import UNKNOWN, Data, Joined, Tensors
from homeostat.core.errors import InputError, UnknownName, nearest
from homeostat.core.probe import outputs, read
from homeostat.core.run import Run
from homeostat.core.spec import digest
from homeostat.core.world import World
from homeostat.data.wordnet import CLASSES
from homeostat.fit.fit import Fit
from homeostat.fit.training import Recipe
from homeostat.merge.encoder_tail import EncoderTail
from homeostat.merge.heads import with_head
from homeostat.nn.mlp import MLP
from homeostat.nn.optimizers import Adam
from homeostat.probe.accuracy import Accuracy

TASKS: Mapping[str, tuple[str, ...]] = {
    "things": tuple(f"noun.{n}" for n in (
        "animal", "artifact", "body", "food", "location", "object", "person", "plant", "substance")),
    "notions": tuple(f"noun.{n}" for n in (
        "act", "attribute", "cognition", "communication", "event", "feeling", "group", "phenomenon", "possession",
        "process", "quantity", "relation", "state", "time")),
    "deeds": tuple(f"verb.{n}" for n in (
        "body", "change", "consumption", "contact", "creation", "motion", "perception", "weather")),
    "dealings": tuple(f"verb.{n}" for n in (
        "cognition", "communication", "competition", "emotion", "possession", "social", "stative")),
    "speech": ("noun.*", "verb.*", "adj.*", "adv.*"),
}  # fmt: skip
"""For each task of the gloss zoo its classes, as globs of WordNet's lexicographer files."""


@dataclass(frozen=True)
class Zoo:
    """A base, its donors by task, and each task's data.

    Attributes:
        base: what all were fine-tuned from; a trunk without a head where heads are the tasks' own.
        donors: fine-tuned networks.
        train, tune, test: labelled data by task: what its donor saw, what may choose, what judges. A task's are
            disjoint; what one task tunes or judges on, another's donor may have seen as its own task has it.
        own_heads: whether each task has a frozen head of its own, which its donor holds; else one is shared.
    """

    base: nn.Module
    donors: Mapping[str, nn.Module]
    train: Mapping[str, Data]
    tune: Mapping[str, Data]
    test: Mapping[str, Data]
    own_heads: bool = False

    def some(self, count: int) -> Zoo:
        """The zoo with its first tasks only."""
        kept = list(self.donors)[:count]
        parts = ("donors", "train", "tune", "test")
        return dataclasses.replace(self, **{part: {task: getattr(self, part)[task] for task in kept} for part in parts})

    def network(self, task: str, model: nn.Module | None = None) -> nn.Module:
        """A merged network (default the base) with the head of a task."""
        if task not in self.donors:
            raise UnknownName(f"the zoo has no task {task!r}.{nearest(task, self.donors)}")
        model = self.base if model is None else model
        return with_head(model, self.donors[task]) if self.own_heads else model

    def accuracies(self, model: nn.Module, data: Mapping[str, Data] | None = None) -> dict[str, float]:
        """Accuracy of a merged network on each task's test data, or on other data by task."""
        return {
            task: read([Accuracy()], self.network(task, model), part)[0].value
            for task, part in (self.test if data is None else data).items()
        }

    def accuracy(self, model: nn.Module, data: Mapping[str, Data] | None = None) -> float:
        """Their mean over tasks."""
        found = self.accuracies(model, data)
        return sum(found.values()) / len(found)

    def alone(self) -> dict[str, float]:
        """Accuracy of each donor on the test data of its task."""
        return {task: read([Accuracy()], self.donors[task], part)[0].value for task, part in self.test.items()}

    def normalised(self, model: nn.Module) -> float:
        """Mean over tasks of the merged network's accuracy divided by the donor's."""
        alone, found = self.alone(), self.accuracies(model)
        return sum(found[task] / alone[task] for task in found) / len(found)

    def improvement(self, model: nn.Module) -> float:
        """How much of the way from the base to the donors is made, over all tasks: 0 is the base, 1 the donors."""
        start, end = self.accuracy(self.base), sum(self.alone().values()) / len(self.test)
        return (self.accuracy(model) - start) / (end - start)

    def best(self, make: Callable[[float], nn.Module], scales: Iterable[float]) -> tuple[float, nn.Module]:
        """The scale, and what is made with it, of the highest mean accuracy on the tuning data; of equals the first."""
        best: tuple[float, float, nn.Module] | None = None
        for scale in scales:
            found = self.accuracy(model := make(scale), self.tune)
            if best is None or found > best[0]:
                best = found, scale, model
        if best is None:
            raise InputError("there are no scales to choose from")
        return best[1], best[2]

    def world(self, data: Mapping[str, Data] | None = None) -> World:
        """The donors, and unlabelled inputs (default the test data's): a part each task, and all as the target."""
        parts = {task: part.unlabelled() for task, part in (self.test if data is None else data).items()}
        return World(models=self.donors, parts=parts, target=None if self.own_heads else Joined(list(parts.values())))


def view(x: Tensor, number: int) -> Tensor:
    """One of eight views of images: four turns, half of them mirrored."""
    x = x.rot90(number % 4, (2, 3))
    return x.flip(3) if number >= 4 else x


def views_zoo(
    train: Data, test: Data, *, run: Run = Run(), few: int = 200, each: int = 1920, tune: int = 200, judge: int = 500,
    rate: float = 5e-5, epochs: int = 3, pool: int = 2,
) -> Zoo:  # fmt: skip
    """The zoo of eight views of grey images; see the module's docstring.

    Args:
        train, test: images `[1, height, width]` of ten classes; `train` gives training and tuning data.
        run: the seed draws the images, and starts and orders training.
        few: images of each view that the base learns from, twice.
        each: images of its view that a donor learns from.
        tune, judge: images of each view.
        rate, epochs: of the donors; ten times the rate brings them closer to their limit, and apart.
        pool: pixels along each side that become one.
    """

    def drawn(data: Data, name: str, *counts: int) -> list[dict[str, Tensors]]:
        """For each count so many images of every view; no image of a view is in two of them."""
        if len(data) < sum(counts):
            raise InputError(f"{len(data)} images to {name} are there; each view wants {' + '.join(map(str, counts))}")
        made: list[dict[str, Tensors]] = [{} for _ in counts]
        for number in range(8):
            rows = torch.randperm(len(data), generator=run.rng(name, number))[: sum(counts)].split(counts)
            for part, own in zip(made, rows, strict=True):
                batch = data[own].load()
                assert isinstance(batch.x, Tensor)
                part[str(number)] = Tensors(view(F.avg_pool2d(batch.x, pool), number), batch.y)
        return made

    first, seen, validate = drawn(train, "train", few, each, tune)
    parts = first.values()
    whole = Tensors(torch.cat([part.batch.x for part in parts]), torch.cat([part.batch.labels for part in parts]))  # type: ignore[misc]
    recipe = Recipe(optimizer=Adam(lr=1e-3), epochs=2, batch=80)
    net = MLP(inputs=whole.batch.x[0].numel(), hidden=(256, 256, 256), seed=run.seed_for("network"))  # type: ignore[index,union-attr]
    base = Fit(recipe=recipe)(net, World(source=whole), run=run)
    fit = Fit(own="layers.*", recipe=Recipe(optimizer=Adam(lr=rate), epochs=epochs, batch=64))
    donors = {}
    for number, (task, part) in enumerate(seen.items()):
        donors[task] = fit(base, World(source=part), run=run.replace(seed=run.seed_for("task", number)))
    return Zoo(base, donors, seen, validate, drawn(test, "judge", judge)[0])


def digits_zoo(train: Data, test: Data, *, run: Run = Run()) -> Zoo:
    """The zoo of eight views of the 8x8 digits; see the module's docstring.

    Args:
        train: 1,200 of them or more; test: 450 or more.
        run: as of `views_zoo`.
    """
    return views_zoo(train, test, run=run, few=130, each=850, judge=450, rate=2e-4, epochs=24, pool=1)


def gloss_zoo(
    texts: Data, *, run: Run = Run(), tasks: Mapping[str, tuple[str, ...]] = TASKS, depth: int = 1, each: int = 640,
    tune: int = 150, judge: int = 300, few: int = 8, sharpness: float = 20.0, rate: float = 3e-4, epochs: int = 2,
) -> Zoo:  # fmt: skip
    """The zoo of definitions; see the module's docstring. It needs the text extra.

    Args:
        texts: tokenized definitions of all 45 classes, `Glosses(length=12, shuffle=0, stop=60_000).read()`. A pool, the
            same for every seed and with classes as even as they can be, is taken of them, a part of it for each task.
        run: the seed divides the pool, and orders training.
        tasks: names of classes by task, as globs.
        depth: layers of the trunk that is fine-tuned and merged.
        each, tune, judge: texts of each task to train, to tune and to judge.
        few: texts of each class that the heads are made of, out of the training texts.
        sharpness: length of the heads' directions.
        rate, epochs: of the donors.
    """
    labels, count = texts.all_labels(), each + tune + judge
    rows, classes = {}, {}
    for task, globs in tasks.items():
        number = [next((k for k, glob in enumerate(globs) if fnmatchcase(name, glob)), UNKNOWN) for name in CLASSES]
        own = torch.tensor(number)[labels]
        kept = [torch.nonzero(own == k).flatten()[: 1 + count // len(globs)] for k in range(len(globs))]
        if (there := sum(map(len, kept))) < (least := tune + judge + few * len(globs)):
            raise InputError(f"{task}: {there} texts of its classes are there; at least {least} are wanted")
        rows[task] = torch.cat(kept)
        classes[task] = own[rows[task]]
    pool = _states(texts, torch.cat(list(rows.values())), depth, run)
    trunk, donors, at = EncoderTail(depth).eval(), {}, 0
    parts: dict[str, list[Data]] = {}
    fit = Fit(own="layer.*", recipe=Recipe(optimizer=Adam(lr=rate), epochs=epochs, batch=32))
    for task, globs in tasks.items():
        own = slice(at, at + len(rows[task]))
        at = own.stop
        whole = Tensors({name: tensor[own] for name, tensor in pool.items()}, classes[task])
        mixed = whole.shuffle(run.rng("pool", task))
        parts[task] = [mixed[tune + judge :][:each], mixed[:tune], mixed[tune : tune + judge]]
        start = _headed(trunk, parts[task][0], len(globs), few, sharpness)
        donors[task] = fit(start, World(source=parts[task][0]), run=run.replace(seed=run.seed_for("task", task)))
    train, tuning, test = ({task: three[i] for task, three in parts.items()} for i in range(3))
    return Zoo(trunk, donors, train, tuning, test, own_heads=True)


def _states(texts: Data, rows: Tensor, depth: int, run: Run) -> dict[str, Tensor]:
    """States of the pool's texts, each text once, from the cache where there is one."""
    unique, back = rows.unique(return_inverse=True)
    found = texts[unique]
    name = digest("states", found.fingerprint(), depth)
    path = None if run.scratch is None else run.scratch / f"states-{name[:24]}.safetensors"
    if path is None or not path.exists():
        made: dict[str, Tensor] = EncoderTail.states(found, depth).batch.x  # type: ignore[assignment]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(made, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    else:
        made = load_file(path)
    return {key: tensor[back] for key, tensor in made.items()}


def _headed(trunk: EncoderTail, data: Data, classes: int, few: int, sharpness: float) -> EncoderTail:
    """The trunk with a head of its classes' mean embeddings, over `few` texts of each."""
    y = data.all_labels()
    chosen = torch.cat([torch.nonzero(y == k).flatten()[:few] for k in range(classes)])
    seen = outputs(trunk, data[chosen])
    made = EncoderTail(trunk.depth, classes).eval()
    made.load_state_dict(trunk.state_dict(), strict=False)
    assert made.head is not None and isinstance(seen.out, Tensor)
    with torch.no_grad():
        for k in range(classes):
            mean = seen.out[seen.labels == k].sum(0)
            made.head.weight[k] = sharpness * F.normalize(mean, dim=0)
        made.head.bias.zero_()
    return made
