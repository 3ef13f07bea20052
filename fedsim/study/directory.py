"""Results directories, into which one process at a time writes.

`CHECKPOINT` is written before the other files of a run and deleted after them: a directory with a checkpoint has an
unfinished run, a directory without one a complete run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fedsim.errors import ConfigError
from fedsim.files import (
    keep_earlier,
    remove_temporary,
    sync_directory,
    writable_directory,
    write_csv,
    write_whole,
)
from fedsim.study import checkpoint
from fedsim.text import print_notice

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result

CONFIGURATION, CHECKPOINT, LOCK = "experiment.toml", "checkpoint.npz", ".lock"
#: The counts of an experiment with a sensitive column.
GROUPS = "groups.csv"
#: The metrics of an experiment that has some besides the loss and the accuracy.
METRICS = "metrics.csv"
#: Files of a finished run.
RESULTS = (
    "history.csv",
    "clients.csv",
    "failures.csv",
    "weights.npz",
    "model_card.md",
    CONFIGURATION,
    "environment.json",
)
#: The measures of fairness between clients, of an experiment whose clients evaluate.
FAIRNESS = "fairness.csv"


class ResultsDirectory:
    """A directory of results, locked while its context is open so that no two processes write into it.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    names : iterable of str
        Files that are written there. Temporary files that killed processes have left of them are deleted.

    Raises
    ------
    ConfigError
        The directory cannot be written, or another process has locked it.
    """

    def __init__(self, path: str | os.PathLike[str], names: Iterable[str]) -> None:
        from filelock import FileLock

        self.path = writable_directory(path)
        self._names = tuple(names)
        self._lock = FileLock(self.path / LOCK)
        self._identity = (0, 0)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
        except TimeoutError:
            raise ConfigError(f"another run is writing into {str(self.path)!r}; choose another directory") from None
        try:
            self._identity = self._lock_identity()
            remove_temporary(self.path, self._names)
            self._prepare()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _prepare(self) -> None:
        """Prepare the directory once it is locked."""

    def keep_earlier(self) -> None:
        """Move earlier results to a numbered folder beside the directory, with a notice."""
        if kept := keep_earlier(self.path, self._names):
            print_notice(f"kept the earlier results in {kept}")

    def _lock_identity(self) -> tuple[int, int]:
        status = (self.path / LOCK).stat()
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Raise ConfigError if the directory, and the lock with it, was deleted or replaced since it was locked."""
        with suppress(OSError):
            if self._lock_identity() == self._identity:
                return
        raise ConfigError(f"the results folder {str(self.path)!r} was deleted or replaced during the run")


class RunDirectory(ResultsDirectory):
    """The directory of a run: its configuration, its checkpoint until it is finished, and then its results.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    experiment : Experiment

    Raises
    ------
    ConfigError
        The directory cannot be written, another process has locked it, or it has the interrupted run of another
        experiment or a checkpoint that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], experiment: Experiment) -> None:
        super().__init__(path, (*RESULTS, GROUPS, METRICS, FAIRNESS, CHECKPOINT))
        self.checkpoint = self.path / CHECKPOINT
        self._experiment = experiment
        self._saved: dict[str, Any] | None = None

    def _prepare(self) -> None:
        """Load the checkpoint, if there is one; otherwise keep earlier results and write the first files of a run."""
        if self.checkpoint.exists():
            saved = checkpoint.load(self.checkpoint)
            if not isinstance(saved, dict) or not isinstance(saved.get("experiment"), str):
                raise checkpoint.checkpoint_error(self.checkpoint, "is not that of a run")
            if "history" in saved:
                if saved["experiment"] != self._fingerprint:
                    raise ConfigError(
                        f"{str(self.path)!r} holds the interrupted run of another experiment; "
                        f"continue it with fedsim resume {self.path}, or choose another directory"
                    )
                self._saved = saved
                return
        else:
            self.keep_earlier()
        self.save({})  # marks the run as unfinished
        if isinstance(self._experiment.dataset, str):
            from fedsim.study.config import to_toml

            text = to_toml(self._experiment).encode()
            write_whole(self.path / CONFIGURATION, lambda stream: stream.write(text))
        environment = json.dumps(_environment(), indent=1).encode()
        write_whole(self.path / "environment.json", lambda stream: stream.write(environment))

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._experiment)

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint."""
        self.check()
        checkpoint.save(self.checkpoint, {"experiment": self._fingerprint} | state)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint with which the run starts, if there is one; only once, because it may be large."""
        loaded, self._saved = self._saved, None
        return loaded

    def finish(self, result: Result, card: str) -> None:
        """Write the results and the model card, then delete the checkpoint, which marks the run as complete."""
        self.check()
        for name, table in result_tables(result).items():
            write_csv(self.path / name, table)
        write_whole(self.path / "weights.npz", lambda stream: np.savez(stream, **result.weights))  # type: ignore[arg-type]
        write_whole(self.path / "model_card.md", lambda stream: stream.write(card.encode()))
        self.checkpoint.unlink()
        sync_directory(self.path)


def result_tables(result: Result) -> dict[str, pd.DataFrame]:
    """Return the tables that are written for a result, by the name of the file."""
    tables = {f"{name}.csv": getattr(result, name) for name in ("history", "clients", "failures")}
    if result.experiment.sensitive:
        tables[GROUPS] = result.groups
    if result.experiment.metrics:
        tables[METRICS] = result.metrics
    if len(result.clients):
        from fedsim.fairness import client_fairness

        tables[FAIRNESS] = client_fairness(result)
    return tables


def fingerprint(experiment: Experiment) -> str:
    """Return a text that is equal for experiments that give the same bits."""
    from fedsim.study.config import to_toml

    dataset = experiment.dataset
    if isinstance(dataset, str) and dataset.startswith(("table", "hub")):
        dataset = experiment.load_data()  # a file may have changed
    if not isinstance(dataset, str):
        digest = hashlib.sha256()
        names = sorted(dataset.groups), sorted(dataset.groups_test)
        digest.update(repr((dataset.num_classes, dataset.regression, *names)).encode())
        groups = (
            m[name] for m, some in zip((dataset.groups, dataset.groups_test), names, strict=True) for name in some
        )
        for values in (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test, *groups):
            digest.update(repr((values.shape, values.dtype.str)).encode() + np.ascontiguousarray(values).tobytes())
        dataset = digest.hexdigest()
    return f"# {dataset}\n" + to_toml(replace(experiment, dataset="digits", data_dir=None))


def _environment() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    packages = ("fedsim", "numpy", "numba", "flwr", "pandas")
    return {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"} | {
        name: version(name) for name in packages
    }
