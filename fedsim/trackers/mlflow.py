"""Runs in MLflow (https://mlflow.org): on a tracking server, or in a database on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedsim.checks import check_instance
from fedsim.trackers.description import RunDescription, metrics
from fedsim.trackers.tracker import TrackedRun, Tracker

#: The tag by which a resumed run is found.
ID_TAG = "fedsim.run_id"
#: The largest numbers of metrics, and of parameters, in a request.
MAX_METRICS, MAX_PARAMETERS = 1000, 100
#: Number of retries of a failed request, unless the environment has MLFLOW_HTTP_REQUEST_MAX_RETRIES. MLflow's own 7
#: would delay a run by minutes if the server is away.
RETRIES = "2"


@dataclass(eq=False)
class MLflow(Tracker):
    """Logs runs to MLflow; needs the extra ``mlflow``.

    Parameters
    ----------
    uri : str, optional
        The address of a tracking server, such as ``"http://localhost:5000"``, or of a database, such as
        ``"sqlite:///mlflow.db"``. Default: ``$MLFLOW_TRACKING_URI``, otherwise MLflow's default.
    experiment : str
        The name of the MLflow experiment, which is made if it does not exist.

    Raises
    ------
    ConfigError
        The extra is missing, or a value is not allowed.
    """

    package: ClassVar[str] = "mlflow"
    uri: str | None = None
    experiment: str = "fedsim"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("MLflow's uri", self.uri, str | None, "text, such as 'sqlite:///mlflow.db'")
        check_instance("MLflow's experiment", self.experiment, str, "the name of an experiment")

    def open_run(self, description: RunDescription, resumed: bool) -> TrackedRun:
        """Open a run; one that is resumed is found by its id."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        experiment = self._experiment_id(client)
        found = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{description.id}'") if resumed else []
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            if "error" in found[0].data.tags:
                client.delete_tag(found[0].info.run_id, "error")
            return _MLflowRun(client, found[0].info.run_id, description, found[0].data)
        tags = {ID_TAG: description.id, **description.tags}
        if "git_revision" in tags:
            tags["mlflow.source.git.commit"] = tags["git_revision"]
        made = client.create_run(experiment, tags=tags, run_name=description.name)
        return _MLflowRun(client, made.info.run_id, description, made.data)

    def _experiment_id(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return client.create_experiment(self.experiment)
            except MlflowException:  # another process may have made it
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return found.experiment_id


class _MLflowRun:
    """A run of MLflow; `data` is what was logged of it before."""

    def __init__(self, client: Any, run_id: str, description: RunDescription, data: Any) -> None:
        from mlflow.entities import Param

        self._client, self._id = client, run_id
        self._steps = {key: {m.step for m in client.get_metric_history(run_id, key)} for key in data.metrics}
        new = [Param(key, str(value)) for key, value in description.parameters.items() if key not in data.params]
        for start in range(0, len(new), MAX_PARAMETERS):
            client.log_batch(run_id, params=new[start : start + MAX_PARAMETERS])

    def log_rounds(self, rows: Sequence[Mapping[str, float]]) -> None:
        for start in range(0, len(rows), per_request := MAX_METRICS // len(rows[0])):
            part = rows[start : start + per_request]
            self._log([(key, value, int(row["round"])) for row in part for key, value in metrics(row).items()])

    def log_result(self, summary: Mapping[str, float], notes: Mapping[str, str], files: Sequence[Path]) -> None:
        self._log([(key, value, int(summary["rounds"])) for key, value in summary.items()])
        for key, text in notes.items():
            self._client.set_tag(self._id, key, text)
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def close(self, status: str, reason: str) -> None:
        if reason:
            self._client.set_tag(self._id, "error", reason)
        self._client.set_terminated(self._id, status)

    def _log(self, values: Sequence[tuple[str, float, int]]) -> None:
        """Log metrics with their steps, except those that were logged before the run was interrupted."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        new = [Metric(key, value, now, step) for key, value, step in values if step not in self._steps.get(key, ())]
        if new:
            self._client.log_batch(self._id, metrics=new)
