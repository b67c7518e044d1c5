"""The command `cloud`: a server that looks after a network on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.printing import AsJson, Device, Seed, lines, near, print_json
from homeostat.cli.trying import AModel

_STRONG = "The stronger network, named as MODEL is."


def cloud(
    model: AModel,
    strong: Annotated[str, typer.Argument(metavar="CLOUD", help=_STRONG, show_default=False)],
    store: Annotated[Path, typer.Option(help="Folder of the cloud's state; goes on with one that is there.")] = Path(
        "runs/cloud"
    ),
    settings: Annotated[str, typer.Option(metavar="SPEC", help="As on the device, such as 'CEMA(batch=16)'.")] = "CEMA",
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is reachable from elsewhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9178,
    most: Annotated[int, typer.Option(min=1, help="Largest message, in MiB.")] = 64,
    every: Annotated[int, typer.Option(min=1, help="Exchanges between two writes of the state.")] = 10,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Serve as the cloud of CEMA: adapt a strong network, and through it the one on a device.

    The device runs CEMA(url="http://HOST:PORT") over the same MODEL.
    """
    from homeostat.adapt.cema import CEMA
    from homeostat.adapt.cema_cloud import CEMACloud
    from homeostat.core.errors import InputError
    from homeostat.core.place import placed
    from homeostat.core.run import Run
    from homeostat.core.save import load
    from homeostat.core.spectext import parse_spec
    from homeostat.loop.sources import open_model
    from homeostat.serve.cloud import serving_cloud

    made = parse_spec(settings, CEMA)
    run = Run(seed=seed, device=device)
    half = made.cloud(placed(open_model(model, run=run), device), open_model(strong, run=run), run)
    began = (store / "model.json").is_file()
    if began:
        there = load(store, base=half, device=device)
        if not isinstance(there, CEMACloud) or _of(there) != _of(half):
            raise InputError(
                f"{store} is of other networks or settings; give another --store, or what it was begun with"
            )
        half = there
    with serving_cloud(half, host=host, port=port, most=most * 2**20, store=store, every=every) as address:
        steps = int(half.carry["steps"])
        if as_json:
            print_json({"address": address, "store": str(store), "steps": steps, "resumed": began})
        else:
            went = f"{steps} steps were made before" if began else "begins anew"
            lines([("serves", address), ("store", f"{near(store)}; {went}")])
            typer.echo("Ctrl-C ends it", err=True)
        _wait()


def _wait() -> None:
    import signal
    import threading

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _of(half: object) -> tuple[object, str]:
    """What a cloud is made of, without what it learnt."""
    from homeostat.core.part import recipe
    from homeostat.core.weights import fingerprint

    return recipe(half), fingerprint(half)  # type: ignore[arg-type]
