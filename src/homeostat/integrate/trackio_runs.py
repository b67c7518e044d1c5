"""A run in trackio: metrics by step, settings as its configuration, what happened as alerts, the report as a file.

Without `space` everything stays on this machine, in `TRACKIO_DIR`. trackio writes a line or two to the standard output
when a run begins and ends, and an alert's line when something happens.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from homeostat.core.errors import InputError, MissingExtra
from homeostat.integrate.tracker import Tracker

_LEVELS = {"alarm": "warn", "failure": "error"}


class Trackio(Tracker):
    """A run in trackio.

    Args:
        project: its project.
        name: of the run; default, one that trackio makes up.
        space: a Hugging Face Space to write to, `"user/name"`; default, this machine.
        resume: go on with the run of this name, where there is one.
        settings: what the run was made with; they are kept when the run begins.

    Raises:
        MissingExtra: trackio is not installed. TrackerError: the run cannot be begun.
    """

    def __init__(
        self,
        project: str = "homeostat",
        name: str | None = None,
        space: str | None = None,
        *,
        resume: bool = False,
        settings: dict[str, Any] | None = None,
        most: int = 10_000,
    ):
        super().__init__(most)
        try:
            trackio: Any = importlib.import_module("trackio")
        except ImportError:
            raise MissingExtra("trackio is not installed: pip install 'homeostat[trackio]'") from None
        if not project:
            raise InputError("the project's name is empty; name one")
        wanted: dict[str, Any] = {"name": name, "space_id": space, "config": settings, "embed": False}
        wanted |= {"resume": "allow" if resume else "never", "auto_log_gpu": False, "auto_log_cpu": False}
        known = inspect.signature(trackio.init).parameters
        with self._asked():
            self._run: Any = trackio.init(project, **{key: value for key, value in wanted.items() if key in known})
        self._alerts = getattr(trackio, "AlertLevel", None)

    def _metrics(self, step: int, values: dict[str, float], at: float) -> None:
        self._run.log(dict(values), step=step)

    def _settings(self, values: dict[str, Any]) -> None:
        # The configuration of a run goes out with its first metrics.
        self._run.config.update({key: value for key, value in values.items() if not key.startswith("_")})

    def _note(self, step: int, kind: str, text: str, at: float) -> None:
        if self._alerts is not None and hasattr(self._run, "alert"):
            level = self._alerts(_LEVELS.get(kind, "info"))
            self._run.alert(title=f"{kind} at window {step}", text=text, level=level, step=step)

    def _file(self, path: Path) -> None:
        if hasattr(self._run, "log_artifact"):
            self._run.log_artifact(path, name=path.name.replace(".", "-"), type="report")

    def _end(self) -> None:
        self._run.finish()
