"""Networks and data by what people type on a command line or in a notebook: paths, YAML files, Specs as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from homeostat.core.configfile import read_spec
from homeostat.core.data import Data
from homeostat.core.errors import InputError, MissingPart, UnknownName, nearest
from homeostat.core.outline import outline
from homeostat.core.run import Run
from homeostat.core.save import load
from homeostat.core.spec import Spec
from homeostat.core.spectext import parse_config, parse_spec
from homeostat.data.reader import Reader, below
from homeostat.data.sources import YAMLS, as_reader, is_written, split_field
from homeostat.loop.deployment import Deployment, begun, open_stream
from homeostat.loop.journal import SWITCHES
from homeostat.loop.network import Network, made_of
from homeostat.loop.record import record

_MODELS = (
    "a folder that hs.save(net, path) or homeostat convert wrote, a store's folder, a YAML file with a Network or a "
    "Deployment, or such as Network(layout=ResNet(20), weights='net.safetensors')"
)


def open_data(text: str | Path | Reader | Any, field: str = "stream", what: str = "data") -> Data:
    """The data that a text stands for; a deployment's stream comes with the shift that it says.

    Args:
        text: see `homeostat.data.as_reader`.
        field: which data of a deployment, `"stream"` or `"before"`, where the text does not say.
        what: what it is, for errors.

    Raises:
        What `as_reader` and reading the data raise.
    """
    if isinstance(text, (str, Path)) and not is_written(str(text), "Reader"):
        path, named = split_field(str(text))
        if path.suffix.lower() in YAMLS and (named or field) == "stream":
            made = read_spec(path)
            if isinstance(made, Deployment):
                return open_stream(below(made, path.absolute().parent))
    return as_reader(text, field, what).read()


def open_model(text: str | Path | Network | Any, *, run: Run = Run()) -> nn.Module:
    """The network that a text stands for, in evaluation mode.

    Args:
        text: a checkpoint's folder; a store's folder, for what it serves now; a YAML file with a `Network` or a
            `Deployment`; or a `Network` as text.
        run: seed and watcher, where the network is trained first.

    Raises:
        MissingPart: there is no such file. InputError: it is no network. CheckpointError: it is damaged, or made over
        a class that only Python knows. And what building a `Network` raises.
    """
    if isinstance(text, nn.Module):
        return text
    if isinstance(text, Spec):
        return _built(text, run, None)
    text = str(text)
    if not text.strip():
        raise InputError(f"the network's text is empty; give {_MODELS}")
    if is_written(text, "Network"):
        return _built(below(parse_spec(text), Path.cwd()), run, None)
    path, _ = split_field(text)
    if path.suffix.lower() in YAMLS and path.suffix.lower() != ".json":
        return _built(below(read_spec(path), path.absolute().parent), run, path)
    if path.is_dir():
        if (path / "model.json").is_file():
            return load(path)
        if (path / "checkpoints").is_dir():
            return _served(path)
        raise InputError(f"{path} is a folder without a network; give {_MODELS}")
    if not path.exists():
        known = [entry.name for entry in outline("Part")]
        if text in known:
            raise UnknownName(f"{text} is a layout without weights; give Network(layout={text}, weights='...')")
        hint = nearest(text, ["Network"])
        raise MissingPart(f"there is no network at {path}.{hint} Give {_MODELS}")
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"):
        raise InputError(
            f"{path} holds weights and no layout; make a checkpoint of it: homeostat convert {path} --layout "
            "'ResNet(20)' --out FOLDER"
        )
    raise InputError(f"{path} is no network; give {_MODELS}")


def open_layout(text: str | Any) -> nn.Module:
    """A network of `homeostat.nn` with starting weights, by its name and arguments: `ResNet(20, classes=5)`.

    Raises:
        UnknownName, SpecError: there is no such network, or its arguments do not fit.
    """
    if isinstance(text, nn.Module):
        return text
    return made_of(parse_config(str(text)))


def _built(made: Any, run: Run, path: Path | None) -> nn.Module:
    if isinstance(made, Network):
        return made.build(run)
    if not isinstance(made, Deployment):
        where = f"{path} holds" if path is not None else "this is"
        raise InputError(f"{where} a {type(made).__name__}; a Network or a Deployment has a network")
    if isinstance(made.model, str):
        return open_model(made.model, run=run)
    store = Path(made.store)
    # What a deployment trains is kept in its store; before it has one, it is trained each time.
    return _served(store, "start") if begun(store) else made.model.build(run.replace(seed=made.seed))


def _served(store: Path, *kinds: str) -> nn.Module:
    with record(store) as journal:
        row = journal.last(*(kinds or SWITCHES))
    if row is None:
        raise InputError(f"the store {store} has no network yet: nothing was served from it")
    return load(store / "checkpoints" / str(row.checkpoint))
