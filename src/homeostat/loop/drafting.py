"""A first deployment file for one's own network and data, with its comments.

`draft` looks at what is there (the network's layers, a sample of the data) and chooses remedies that fit and shifts to
calibrate on. The text is read back before it is written, so that `homeostat run` takes it.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from homeostat.core.configfile import read_spec
from homeostat.core.data import Data, Subset
from homeostat.core.errors import HomeostatError, InputError, StoreError
from homeostat.core.method import TRAITS
from homeostat.core.online import Online
from homeostat.core.save import load
from homeostat.core.spec import Spec, plain
from homeostat.core.spectext import parse_spec
from homeostat.data.reader import Reader, below
from homeostat.data.sources import YAMLS, as_reader, is_written, split_field
from homeostat.data.strings import Tokenized
from homeostat.loop.deployment import Deployment, read_deployment
from homeostat.loop.network import Network, made_of

PICTURES = (
    "{Corrupt: {name: brightness, severity: 3}}", "{Corrupt: {name: contrast, severity: 3}}",
    "{Corrupt: {name: gaussian_blur, severity: 3}}", "{Corrupt: {name: speckle_noise, severity: 3}}",
    "{Corrupt: {name: pixelate, severity: 3}}",
)  # fmt: skip
"""Shifts to calibrate on where inputs are pictures."""
TEXTS = (
    "{CharacterNoise: {rate: 0.05}}", "{CharacterNoise: {rate: 0.2}}", "{WordNoise: {rate: 0.1}}",
    "{WordNoise: {rate: 0.3}}",
)  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A deployment file that was written.

    Attributes:
        path: of the file.
        deployment: what it says.
        doubts: what was not found, or could not be looked at, and is for the user to see to before it is run.
    """

    path: Path
    deployment: Deployment
    doubts: tuple[str, ...]


def draft(
    path: str | Path,
    *,
    model: str,
    before: str | Reader,
    stream: str | Reader,
    labels: int = 0,
    store: str = "",
    force: bool = False,
) -> Draft:
    """Write a commented deployment file.

    Args:
        path: of the YAML file.
        model: a checkpoint's folder, a `Network` as text, or a YAML file with one.
        before: labelled data from before, as `homeostat.data.as_reader` takes them.
        stream: what the network is to answer.
        labels: how many random labels a window of 100 the loop is shown.
        store: folder of the journal and the checkpoints; default `runs/` and the file's name, beside the file.
        force: replace a file that is there.

    Raises:
        InputError: the file is there already, or what was given is no network or no data. SpecError, UnknownName: a
        text is wrong. StoreError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in YAMLS[:2]:
        raise InputError(f"{path} does not end in .yaml; give such a name")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; give another name, or --force, which replaces it")
    folder = path.absolute().parent
    doubts: list[str] = []
    net, node = _network(model, doubts)
    if isinstance(net, Online):
        doubts.append("the network adapts while it serves; give the plain network, and its method under remedies")
    past, now = as_reader(before, "before", "before"), as_reader(stream, "stream", "stream")
    read = [_read(name, reader, doubts) for name, reader in (("before", past), ("stream", now))]
    if read[0] is not None and not read[0].has_labels():
        doubts.append("before has no labels, and the loop needs them: give labelled data")
    _fits(net, read[0], doubts)
    if labels and read[1] is not None and not read[1].has_labels():
        doubts.append("stream has no labels to show the loop; they are the `y` of its archive, or its class folders")
    text = _text(
        model=_inline(node, folder), before=_inline(past, folder), stream=_inline(now, folder),
        remedies=_remedies(net), simulate=_simulated(read[0]), labels=labels,
        store=_flow(_from(store, folder) if store else f"runs/{path.stem}"), name=path.name,
    )  # fmt: skip
    staging = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.yaml")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging.write_text(text)
        deployment = read_deployment(staging)
        staging.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)
    return Draft(path, deployment, tuple(doubts))


def _network(text: str, doubts: list[str]) -> tuple[nn.Module | None, str | Network]:
    """A network of these layers, where it can be looked at, and what the file says of it."""
    path, _ = split_field(text)
    if is_written(text, "Network"):
        made: Any = below(parse_spec(text, Network), Path.cwd())
    elif path.suffix.lower() in YAMLS[:2]:
        made = below(read_spec(path), path.absolute().parent)
        made = made.model if isinstance(made, Deployment) else made
        if not isinstance(made, (str, Network)):
            raise InputError(f"model: {path} holds a {type(made).__name__}; a Network or a Deployment is wanted")
    else:
        made = str(path.absolute())
    if isinstance(made, Network):
        return made_of(made.layout), made
    path = Path(made)
    if path.is_file():
        raise InputError(
            f"model: {path} is a file; make a checkpoint of weights with homeostat convert, or give a folder that "
            "hs.save(net, path) wrote"
        )
    if not (path / "model.json").is_file():
        doubts.append(f"there is no checkpoint at {path} yet: write it with hs.save(net, {str(path)!r})")
        return None, made
    try:
        return load(path), made
    except HomeostatError as error:
        doubts.append(f"the network cannot be read: {error}")
        return None, made


def _read(name: str, reader: Reader, doubts: list[str]) -> Data | None:
    try:
        data = reader.read()
        data.fetch(torch.arange(min(2, len(data))))
    except HomeostatError as error:
        doubts.append(f"{name} cannot be read: {error}")
        return None
    return data


def _fits(net: nn.Module | None, data: Data | None, doubts: list[str]) -> None:
    if net is None or data is None:
        return
    try:
        with torch.no_grad():
            net(data.fetch(torch.arange(min(2, len(data)))).x)
    except Exception as error:  # a network raises whatever its layers raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        doubts.append(f"the network does not take the samples of before: {said}")


def _remedies(net: nn.Module | None) -> list[str]:
    """Remedies that need nothing but what a deployment has, for networks with these layers."""
    has = {trait for trait in ("batchnorm", "norm", "linear") if net is None or TRAITS[trait][0](net)}
    if "batchnorm" in has:
        return ["EATA", "BatchNormBlend"]
    return ["EATA"] * ("norm" in has) + ["LAME"] * ("linear" in has) + ["PriorCorrection"]


def _simulated(data: Data | None) -> tuple[str, ...]:
    if isinstance(data, Subset):
        data = data.base
    if isinstance(data, Tokenized):
        return TEXTS
    x = None if data is None else data.fetch(torch.arange(1)).x
    return PICTURES if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3) else ()


def _inline(value: str | Spec, folder: Path) -> str:
    """A value in a line of YAML, its paths from the file's folder, and nothing in it that is as usual."""
    if isinstance(value, str):
        return _flow(_from(value, folder))
    return _flow(_short(value, folder))


def _short(value: Any, folder: Path) -> Any:
    if isinstance(value, Spec):
        usual, paths = type(value).__dataclass_fields__, getattr(type(value), "paths", ())
        said = {
            name: _from(item, folder) if name in paths and item else _short(item, folder)
            for name, item in value.fields().items() if item != usual[name].default
        }  # fmt: skip
        return {type(value).__name__: said} if said else type(value).__name__
    return [_short(item, folder) for item in value] if isinstance(value, tuple) else plain(value)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip().removesuffix("\n...")


def _from(path: str, folder: Path) -> str:
    """A path as the file writes it: from its folder where it lies near, else in full."""
    relative = os.path.relpath(Path(path).absolute(), folder)
    return relative if relative.count("..") <= 2 else str(Path(path).absolute())


def _text(
    *, name: str, model: str, before: str, stream: str, remedies: list[str], simulate: tuple[str, ...], labels: int,
    store: str,
) -> str:  # fmt: skip
    shifts = "".join(f"\n    - {text}" for text in simulate) if simulate else " []"
    hint = "Shifts like those that may come are best." if simulate else "None here: give at least three that may come."
    return f"""\
# homeostat run {name}
#
# Paths are read from this file's folder; ~ and $VARIABLE are filled in. For an editor that completes and checks it,
# write homeostat schema Deployment --out homeostat.schema.json and make this the first line:
# # yaml-language-server: $schema=homeostat.schema.json
Deployment:
  # The network: a folder that hs.save(net, path) or homeostat convert wrote, or a Network with layout and weights.
  model: {model}

  # Labelled data from before that the network was not trained on, at least 50: what is normal.
  before: {before}

  # What it is to answer, in order. Labels, where there are any, judge afterwards what the loop did.
  stream: {stream}

  # What may be tried when the stream shifts, in order of preference; homeostat list remedy shows all.
  remedies: [{", ".join(remedies)}]

  # On these the loop learns how far its estimates can be trusted; none, or at least three.
  # {hint} homeostat list shift shows all.
  simulate:{shifts}

  # Random labels of each window that the loop is shown, 0 for none, and how many windows late they come.
  labels: {labels}
  delay: 0

  # How the loop works; homeostat show Plan has all fields.
  plan:
    Plan: {{window: 100}}

  # Folder of the journal, the checkpoints and the report.
  store: {store}
  seed: 0

  # Whom to tell; secrets stay in environment variables.
  # alerts: [LogAlert, {{Webhook: {{url: $HOOK_URL, on: [commit, rollback, failure]}}}}]
"""
