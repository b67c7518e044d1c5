"""S206 Model Breadcrumbs: sparse task vectors whose settings need no search as tasks are added (Davari and Belilovsky).

The paper chooses the share that is kept and the scale once, on few tasks, and adds tasks with these; task arithmetic,
whose best scale falls as tasks come, has to be tuned again.
"""

from __future__ import annotations

from torch import nn

from homeostat import Data, Run
from homeostat.data import Digits, FashionMNIST
from homeostat.evidence import claim
from homeostat.merge import Breadcrumbs, TaskArithmetic, Zoo, digits_zoo, views_zoo

DATA = (FashionMNIST("train", stop=20_000), FashionMNIST("test"))
DIGITS = (Digits(shuffle=0, stop=1300), Digits(shuffle=0, start=1300))
TUNED = "what the claim says is tuned, for each seed, on images that do not judge; the zoo as for S022; else nothing"
SHRUNK = (
    "eight views of Fashion-MNIST at 14x14 (turned and mirrored) and a perceptron of three layers of 256 whose "
    "head is frozen, in place of eight data sets and CLIP's ViT-B/32"
)
SHRUNK_DIGITS = (
    "eight views of scikit-learn's digits (turned and mirrored), donors trained to their limit, and a perceptron of "
    "three layers of 256 whose head is frozen, in place of eight data sets and CLIP's ViT-B/32"
)
HEAD = ("linear.*",)
SCALES = [0.1 * i for i in range(1, 11)]
KEPT = [(density, outliers) for density in (0.1, 0.2, 0.4) for outliers in (0.0, 0.01, 0.1)]


def crumbs(zoo: Zoo, scale: float, density: float = 0.2, outliers: float = 0.1) -> nn.Module:
    method = Breadcrumbs(density=density, outliers=outliers, scale=scale, skip=HEAD)
    return method(zoo.base, zoo.world())


def added(zoo: Zoo, scale: float) -> nn.Module:
    return TaskArithmetic(scale=scale, skip=HEAD)(zoo.base, zoo.world())


@claim(
    "S206",
    says="For eight tasks at scale 0.4 and with the settings of its example, Breadcrumbs is more accurate than task "
    "arithmetic at the same scale.",
    ours="Breadcrumbs", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.02,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def without_tuning(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    return {
        "base": zoo.accuracy(zoo.base),
        "task arithmetic": zoo.accuracy(added(zoo, 0.4)),
        "Breadcrumbs": zoo.accuracy(crumbs(zoo, 0.4)),
    }


@claim(
    "S206",
    says="With settings tuned on two tasks, Breadcrumbs merges eight into a more accurate network, by two points or "
    "more, than task arithmetic whose scale was tuned on the same two.",
    ours="Breadcrumbs", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.02,
    tier="three minutes", data=DATA, tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def settings_carry_over(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = views_zoo(train, test, run=run)
    few = zoo.some(2)

    def best(where: Zoo) -> tuple[float, float, float]:
        found = [(where.best(lambda s, k=kept: crumbs(where, s, *k), SCALES[::2]), kept) for kept in KEPT]
        (scale, _), kept = max(found, key=lambda item: where.accuracy(item[0][1], where.tune))
        return scale, *kept

    return {
        "Breadcrumbs": zoo.accuracy(crumbs(zoo, *best(few))),
        "task arithmetic": zoo.accuracy(added(zoo, few.best(lambda s: added(few, s), SCALES)[0])),
        "Breadcrumbs, tuned on eight": zoo.accuracy(crumbs(zoo, *best(zoo))),
        "task arithmetic, tuned on eight": zoo.accuracy(zoo.best(lambda s: added(zoo, s), SCALES)[1]),
    }


@claim(
    "S206",
    says="Of eight donors near their limit, at scale 0.3 and with the settings of its example, Breadcrumbs makes a "
    "more accurate network than task arithmetic at the same scale, by ten points or more.",
    ours="Breadcrumbs", baseline="task arithmetic", metric="accuracy, mean over tasks", least=0.1, tier="a minute",
    data=DIGITS, tuned="the zoo as for S022; else nothing", shrunk=SHRUNK_DIGITS,
)  # fmt: skip
def near_their_limit(run: Run, train: Data, test: Data) -> dict[str, float]:
    zoo = digits_zoo(train, test, run=run)
    return {
        "base": zoo.accuracy(zoo.base),
        "task arithmetic": zoo.accuracy(added(zoo, 0.3)),
        "Breadcrumbs": zoo.accuracy(crumbs(zoo, 0.3)),
    }
