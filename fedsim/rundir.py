"""A run's directory: its configuration, its checkpoint while it is unfinished, its results when it is done."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from fedsim import checkpoint
from fedsim.errors import ConfigError
from fedsim.report.files import keep_earlier, writable_directory, write_csv, write_whole

if TYPE_CHECKING:
    from fedsim.experiment import Experiment, Result

CONFIGURATION, CHECKPOINT, LOCK = "experiment.toml", "checkpoint.npz", ".lock"
#: What a finished run leaves.
RESULTS = ("history.csv", "clients.csv", "failures.csv", "weights.npz", CONFIGURATION, "environment.json")


class RunDirectory:
    """Use as a context manager: it holds a lock, so that no two runs write into one directory.

    Parameters
    ----------
    path : path
        Made if need be.
    experiment : Experiment

    Raises
    ------
    ConfigError
        It cannot be written, another run holds it, or it has the interrupted run of another experiment.
    """

    def __init__(self, path: str | os.PathLike[str], experiment: Experiment) -> None:
        from filelock import FileLock

        self.path = writable_directory(path)
        self._experiment = experiment
        self._saved: dict[str, Any] | None = None
        self._lock = FileLock(self.path / LOCK)

    def __enter__(self) -> RunDirectory:
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another run is writing into {str(self.path)!r}; give this one a directory of its own"
            ) from None
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _begin(self) -> None:
        if (self.path / CHECKPOINT).exists():
            self._saved = checkpoint.load(self.path / CHECKPOINT)
            if self._saved["experiment"] != self._fingerprint:
                raise ConfigError(
                    f"{str(self.path)!r} holds the interrupted run of another experiment; "
                    f"go on with it by fedsim resume {self.path}, or choose another directory"
                )
            return
        if kept := keep_earlier(self.path, list(RESULTS)):
            notice(f"kept the earlier results in {kept}")
        if isinstance(self._experiment.dataset, str):
            from fedsim.config import to_toml

            text = to_toml(self._experiment).encode()
            write_whole(self.path / CONFIGURATION, lambda stream: stream.write(text))
        environment = json.dumps(_environment(), indent=1).encode()
        write_whole(self.path / "environment.json", lambda stream: stream.write(environment))

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._experiment)

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint."""
        checkpoint.save(self.path / CHECKPOINT, {"experiment": self._fingerprint} | state)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint that was here, if there was one; once, for it may be large."""
        loaded, self._saved = self._saved, None
        if loaded:
            notice(f"going on after round {len(loaded['history']) - 1}, which {self.path / CHECKPOINT} holds")
        return loaded

    def finish(self, result: Result) -> None:
        """Write the results; what was there to resume from goes."""
        write_csv(self.path / "history.csv", result.history)
        write_csv(self.path / "clients.csv", result.clients)
        write_csv(self.path / "failures.csv", result.failures)
        write_whole(self.path / "weights.npz", lambda stream: np.savez(stream, **result.weights))  # type: ignore[arg-type]
        (self.path / CHECKPOINT).unlink(missing_ok=True)


def notice(sentence: str) -> None:
    """Say something besides the results."""
    tqdm.write(f"fedsim: {sentence}", file=sys.stderr)


def fingerprint(experiment: Experiment) -> str:
    """Return a text that two experiments share if they give the same bits."""
    from fedsim.config import to_toml

    dataset = experiment.dataset
    if isinstance(dataset, str) and dataset.startswith("table"):
        dataset = experiment.load_data()  # a file may have changed
    if not isinstance(dataset, str):
        digest = hashlib.sha256()
        groups = (dataset.groups[name] for name in sorted(dataset.groups))
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
