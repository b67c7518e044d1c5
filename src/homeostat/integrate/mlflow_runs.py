"""A run in MLflow: metrics by step, settings as parameters, the report and what happened in words as artifacts.

Metrics are sent in batches. Their names keep letters, digits and `_ - . /`; other characters become `_`. What happened
is the artifact `events.txt`, written when the run is closed. Nothing of MLflow's global state (active run, tracking
address) is read or changed but its usual environment variables, so that several runs can be open at once.

A server that does not answer is tried again for as long as `MLFLOW_HTTP_REQUEST_MAX_RETRIES` says; at the start and in
`close` that is waited for.
"""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path
from typing import Any

from homeostat.core.errors import InputError, MissingExtra
from homeostat.integrate.tracker import Tracker

_BATCH, _PARAMETERS, _LONGEST = 500, 100, 500
"""Metrics and parameters that are sent at once, and the longest value of a parameter that every MLflow takes."""


class MLflow(Tracker):
    """A run in MLflow.

    Args:
        experiment: its experiment, made where there is none.
        name: of the run; default, one that MLflow makes up.
        uri: where the tracking server or database is, as in `sqlite:///mlflow.db`; default, MLflow's own.
        run: id of an earlier run to go on with; then `experiment` and `name` are not looked at.
        tags: names and texts.

    Attributes:
        run: the run's id.

    Raises:
        MissingExtra: MLflow is not installed. TrackerError: the server cannot be reached, or knows no such run.
    """

    def __init__(
        self,
        experiment: str = "homeostat",
        name: str | None = None,
        uri: str | None = None,
        *,
        run: str | None = None,
        tags: dict[str, str] | None = None,
        most: int = 10_000,
    ):
        super().__init__(most)
        try:
            mlflow: Any = importlib.import_module("mlflow")
        except ImportError:
            raise MissingExtra("MLflow is not installed: pip install 'homeostat[mlflow]'") from None
        if not experiment:
            raise InputError("the experiment's name is empty; name one")
        self._metric, self._param = mlflow.entities.Metric, mlflow.entities.Param
        self._gathered: list[Any] = []
        self._said: list[str] = []
        with self._asked():
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            if run is not None:
                self.run: str = self._client.get_run(run).info.run_id
                self._client.update_run(run, status="RUNNING")
            else:
                found = self._client.get_experiment_by_name(experiment)
                number = self._client.create_experiment(experiment) if found is None else found.experiment_id
                self.run = self._client.create_run(number, run_name=name, tags=tags).info.run_id

    def _metrics(self, step: int, values: dict[str, float], at: float) -> None:
        self._gathered += [self._metric(_name(key), value, int(1000 * at), step) for key, value in values.items()]
        if len(self._gathered) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        # What could not be sent is tried once: a server that refuses it would refuse all that follows with it.
        gathered, self._gathered = self._gathered, []
        for low in range(0, len(gathered), _BATCH):
            self._client.log_batch(self.run, metrics=gathered[low : low + _BATCH])

    def _settings(self, values: dict[str, Any]) -> None:
        made = [self._param(_name(key), str(value)[:_LONGEST]) for key, value in values.items()]
        for low in range(0, len(made), _PARAMETERS):
            self._client.log_batch(self.run, params=made[low : low + _PARAMETERS])

    def _note(self, step: int, kind: str, text: str, at: float) -> None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
        self._said.append(f"{when} window {step} {kind}: {text}\n")

    def _file(self, path: Path) -> None:
        self._client.log_artifact(self.run, str(path))

    def _end(self) -> None:
        if self._said:
            self._client.log_text(self.run, "".join(self._said), "events.txt")
        self._client.set_terminated(self.run)


def _name(text: str) -> str:
    return re.sub(r"[^\w\-./]", "_", text, flags=re.ASCII)[:250]
