"""An audit of a deployment: nothing is said of a healthy one, and each of six defects is found by its own check.

A survey of trustworthy machine learning in production (S236) lists practices and measures nothing. What must hold of
checks that are made of them is that they raise no false alarm, and that each defect is found where it belongs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import Tensor, nn

from homeostat.core.data import Data, Tensors
from homeostat.core.part import Part
from homeostat.core.run import Run
from homeostat.core.world import World
from homeostat.data import FashionMNIST, Shifted
from homeostat.evidence import claim
from homeostat.fit import Cosine, Recipe
from homeostat.loop import Loop, Network, audit
from homeostat.loop.record import record
from homeostat.nn.optimizers import SGD
from homeostat.shift import Corrupt, LabelShift, Mixed

TUNED = "the network, after a debug seed: one trained on clean images alone fails the check of corruption"
SHRUNK = (
    "Fashion-MNIST and a ResNet-8 trained on 10,000 of its images, mildly corrupted; 1,000 images from before and 600 "
    "from now"
)
MILD = Mixed((Corrupt("brightness", 0), Corrupt("brightness", 3), Corrupt("contrast", 2), Corrupt("gaussian_noise", 2)))
"""What a healthy network has seen: without it the check of corruption fails, and rightly so."""
NETWORK = Network(
    layout={"ResNet": {"depth": 8, "in_channels": 1, "width": 8}},
    mean=(0.286,), std=(0.353,), data=Shifted(FashionMNIST("train", stop=10_000), MILD),
    recipe=Recipe(epochs=3, batch=64, optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True), schedule=Cosine(50)),
)  # fmt: skip
WANTED = {
    "schema change": "schema", "covariate drift": "drift", "label shift": "balance", "miscalibration": "calibration",
    "missing rollback": "rollback", "silent NaN": "finite",
}  # fmt: skip


class S236Scaled(Part, register=False):
    """The same answers, far less certain."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor


def _with_nan(data: Tensors) -> Tensors:
    batch = data.load()
    assert isinstance(batch.x, Tensor)
    x = batch.x.clone()
    x[::100] = float("nan")
    return Tensors(x, batch.labels)


def _failed(run: Run, pool: Data) -> dict[str, tuple[str, ...]]:
    """By deployment, the checks that fail."""
    net, mixed = NETWORK.build(run), pool.shuffle(run.rng("pool"))
    before, held = mixed[:1000].load(), mixed[1000:4000]
    world = World(source=Tensors(before.x, before.labels))
    found = {}
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "store"
        with Loop(net, world, [], store, run=run) as loop:
            loop.run(held[2000:2500])
        for name in ("healthy", *WANTED):
            model, kept, now = net, store, held[:600].load()
            target: Data = Tensors(now.x, now.labels)
            if name == "schema change":
                assert isinstance(now.x, Tensor)
                target = Tensors(255 * now.x, now.labels)
            elif name == "covariate drift":
                target = Corrupt("gaussian_blur", 4)(target, run=run)
            elif name == "label shift":
                target = LabelShift(concentration=0.3, size=600)(held[:2000], run=run)
            elif name == "miscalibration":
                model = S236Scaled(net, 0.2)
            elif name == "missing rollback":
                kept = Path(place) / "broken"
                shutil.copytree(store, kept)
                with record(kept) as journal:
                    start = journal.last("start")
                assert start is not None
                shutil.rmtree(kept / "checkpoints" / str(start.checkpoint))
            elif name == "silent NaN":
                target = _with_nan(Tensors(now.x, now.labels))
            found[name] = audit(model, world.replace(target=target), store=kept, run=run).failed
    return found


@claim(
    "S236",
    says="Each of six seeded defects is found by its own check.",
    ours="found", baseline="all", metric="share of six defects", least=0.0,
    tier="long", data=(FashionMNIST("test"),), tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def found(run: Run, pool: Data) -> dict[str, float]:
    failed = _failed(run, pool)
    return {"found": sum(check in failed[name] for name, check in WANTED.items()) / len(WANTED), "all": 1.0}


@claim(
    "S236",
    says="No check fails that does not belong to the defect, and none on a healthy deployment.",
    ours="false alarms", baseline="none", metric="checks that fail in seven deployments", better="lower", least=0.0,
    tier="long", data=(FashionMNIST("test"),), tuned=TUNED, shrunk=SHRUNK,
)  # fmt: skip
def no_false_alarms(run: Run, pool: Data) -> dict[str, float]:
    failed = _failed(run, pool)
    return {"false alarms": float(sum(len(set(f) - {WANTED.get(n, "")}) for n, f in failed.items())), "none": 0.0}
