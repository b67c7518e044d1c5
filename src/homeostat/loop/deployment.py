"""A deployment in a file: the network, its data, what may be tried, and where the record goes.

`homeostat run deployment.yaml` reads a `Deployment`, begins the loop and follows the stream to its end. The store keeps
the deployment, so that whoever has the folder can go on (`homeostat resume`) and knows what was run.

    Deployment:
      model: nets/shop                                  # a folder that hs.save wrote; or a Network
      before: {ImageFolder: {path: validation, size: 64}}
      stream: {ImageFolder: {path: today, size: 64}}
      remedies: [EATA, BatchNormBlend]
      simulate: [{Corrupt: {name: fog}}, {Corrupt: {name: contrast}}, {Corrupt: {name: gaussian_blur}}]
      store: runs/shop

Paths are read from the file's folder. A field that is wrong is named with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from homeostat.core.configfile import read_spec, write_spec
from homeostat.core.data import Data
from homeostat.core.errors import InputError, MissingPart, SpecError, StoreError
from homeostat.core.method import Remedy, Shift
from homeostat.core.place import check_device
from homeostat.core.run import Event, Run, ignore
from homeostat.core.save import load
from homeostat.core.spec import Index, Spec
from homeostat.core.world import World
from homeostat.data.reader import Reader, below
from homeostat.loop.alerts import Hook
from homeostat.loop.asking import OnDemand
from homeostat.loop.environment import from_environment
from homeostat.loop.loop import Loop
from homeostat.loop.network import Network
from homeostat.loop.plan import Plan
from homeostat.loop.record import DEPLOYMENT, check_store, record
from homeostat.loop.store import Store

FEWEST = 50
"""Samples from before, at least."""


@dataclass(frozen=True)
class Deployment(Spec):
    """A network in service, and how the loop looks after it; see the module's docstring.

    Attributes:
        model: folder of a homeostat checkpoint, or a `Network`.
        before: labelled data from before, as the network was trained for but not on.
        stream: what it is to answer, in order. Labels, where there are any, judge afterwards; see `labels`.
        shift: what happens to the stream, for a rehearsal.
        remedies: candidates, in order of preference where neither rehearsals nor the record say anything.
        simulate: shifts on which candidates' estimates are calibrated; none, or at least three.
        plan: how the loop works.
        labels: random labels a window that the loop is shown; `OnDemand` goes by what it is doing.
        delay: windows until they come.
        store: folder of the journal and the checkpoints.
        journal: database URL of the journal where it is not to lie in the store; `$NAME` is an environment variable.
        seed: of all randomness.
        alerts: whom to tell of alarms, commits, rollbacks and failures.
    """

    paths: ClassVar[tuple[str, ...]] = ("model", "store")
    must: ClassVar[tuple[str, ...]] = ("model", "before", "stream", "remedies")
    """Fields without which there is no deployment."""

    model: str | Network = ""
    before: Reader | None = None
    stream: Reader | None = None
    shift: Shift | None = None
    remedies: tuple[Remedy, ...] = ()
    simulate: tuple[Shift, ...] = ()
    plan: Plan = Plan()
    labels: Index | OnDemand = 0
    delay: Index = 0
    store: str = "store"
    journal: str = ""
    seed: Index = 0
    alerts: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = {
            "model": "a checkpoint's folder, or a Network", "before": "labelled data from before, such as an NPZ",
            "stream": "what the network is to answer, such as an NPZ", "remedies": "what may be tried, such as [EATA]",
        }  # fmt: skip
        for name, what in wanted.items():
            if not getattr(self, name):
                raise SpecError(f"Deployment needs {name}: {what}")


def read_deployment(path: str | Path) -> Deployment:
    """The deployment that a YAML file holds, its paths read from the file's folder.

    Raises:
        InputError: the file is missing. SpecError, UnknownName: with the file and the line.
    """
    path = Path(path)
    return below(read_spec(path, Deployment), path.parent.absolute())


def kept_deployment(store: str | Path) -> Deployment:
    """The deployment that a store was begun with; its store is that folder, wherever it lies now.

    Raises:
        StoreError: there is no store, or it was not begun with a deployment.
    """
    folder = check_store(store)
    if not (folder / DEPLOYMENT).is_file():
        raise StoreError(f"{folder} holds no {DEPLOYMENT}: it was begun from Python; go on there, with Loop(...)")
    return read_deployment(folder / DEPLOYMENT).replace(store=str(folder.absolute()))


def open_stream(deployment: Deployment) -> Data:
    """What the network is to answer, after the deployment's shift."""
    assert deployment.stream is not None
    stream = deployment.stream.read()
    return stream if deployment.shift is None else deployment.shift(stream, run=Run(seed=deployment.seed))


def deploy(
    deployment: Deployment,
    *,
    watch: Callable[[Event], None] = ignore,
    fresh: bool = False,
    device: str | None = None,
) -> tuple[Loop, Data]:
    """The loop that a deployment describes, and its stream. The caller closes the loop.

    Args:
        deployment: see `read_deployment`.
        watch: is told of progress and of what happens.
        fresh: begin anew; a store that is there is set aside as `STORE.1`, `STORE.2`, ...
        device: where the networks go, such as `"cuda"`; default, the CPU. A store may go on elsewhere than it began.

    Raises:
        StoreError: the store is of another deployment, or another process serves from it.
        And what reading the data, building the network and beginning the loop raise.
    """
    assert deployment.before is not None
    check_device(device)
    folder = Path(deployment.store)
    if not fresh:
        check_same(deployment, folder)
    # Before a store is touched: what a file names may not be there. A store that was begun has the network.
    if fresh or not begun(folder):
        _check_model(deployment.model)
        _check_place(folder)
    stream, before = open_stream(deployment), deployment.before.read()
    if len(before) < FEWEST or not before.has_labels():
        what = "no labels" if len(before) >= FEWEST else f"{len(before)} samples"
        raise InputError(
            f"before has {what}; at least {FEWEST} labelled samples that the network was not trained on are wanted"
        )
    url = from_environment(deployment.journal, "the journal") or None
    if fresh:
        set_aside(folder)
    store = Store(folder, url)
    try:
        write_spec(deployment, folder / DEPLOYMENT)
        run = Run(seed=deployment.seed, device=device, scratch=folder / "cache", watch=watch)
        start = store.last("start")
        net = _built(deployment.model, run) if start is None else store.load(str(start.checkpoint))
        loop = Loop(
            net, World(source=before, calibration=before), deployment.remedies, store,
            simulate=deployment.simulate, plan=deployment.plan, run=run,
        )  # fmt: skip
    except BaseException:
        store.close()
        raise
    return loop, stream


def check_same(deployment: Deployment, folder: Path) -> None:
    """Raise `StoreError` where the folder's store was begun with another deployment; alerts and place may differ."""
    if not begun(folder):
        return
    kept = kept_deployment(folder)
    apart = [
        name for name, value in deployment.fields().items()
        if name not in ("alerts", "store") and getattr(kept, name) != value
    ]  # fmt: skip
    if apart:
        raise StoreError(
            f"{folder} was begun with another deployment: {', '.join(apart)} differ{'s' * (len(apart) == 1)}. Give "
            f"another store; or --fresh, which sets this one aside; or go on as it was with: homeostat resume {folder}"
        )


def begun(folder: Path) -> bool:
    """Whether there is a store with a journal in which a loop was begun."""
    if not folder.is_dir():
        return False
    try:
        with record(folder) as journal:
            return journal.last("start") is not None
    except StoreError:
        if (folder / "journal.sqlite").exists():
            raise
        return False


def set_aside(folder: Path) -> Path | None:
    """Rename a store so that another can begin in its place; its new path, or None where there was none.

    Raises:
        StoreError: another process serves from it, it is no store, or its journal lies in another database.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    check_store(folder)
    if not (folder / "journal.sqlite").is_file():
        raise StoreError(f"the journal of {folder} is in a database, where it cannot be set aside; give another store")
    with Store(folder):  # nobody serves from it
        pass
    number = next(n for n in range(1, 1_000_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.{number}"))


def _check_place(folder: Path) -> None:
    """Raise our error where a store would be put among other files, which `fresh` might set aside with it."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "checkpoints").is_dir():
        what = "is a network's checkpoint" if (folder / "model.json").is_file() else "has other files in it"
        raise StoreError(f"{folder} {what}; name a folder for the store that is new or empty")


def _check_model(model: str | Network) -> None:
    if isinstance(model, str) and not (Path(model) / "model.json").is_file():
        raise MissingPart(
            f"there is no homeostat checkpoint at {model}: a folder that hs.save(net, path) wrote is wanted, or a "
            "Network: {layout: ..., weights: ...}"
        )


def _built(model: str | Network, run: Run) -> nn.Module:
    return load(model) if isinstance(model, str) else model.build(run)
