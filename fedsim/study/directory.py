"""Results directories, into which one process at a time writes.

`CHECKPOINT` is written before the other files of a run and deleted after them: a directory with a checkpoint has an
unfinished run, a directory without one a complete run. `PREVIOUS` is the checkpoint before it, which replaces it if it
is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedsim.errors import ConfigError
from fedsim.files import keep_earlier, remove_temporary, sync_directory, writable_directory
from fedsim.study import checkpoint
from fedsim.study.identity import fingerprint, run_name
from fedsim.study.result_files import (
    CHECKSUMS,
    FAIRNESS,
    GROUPS,
    INDEX,
    METRICS,
    RESULTS,
    RUN_NAME,
    damage,
    write_result,
    write_settings,
)
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result

CHECKPOINT, PREVIOUS, LOCK = "checkpoint.npz", "checkpoint.previous.npz", ".lock"
#: The message of a study's run that diverged, and would diverge again.
DIVERGED = "diverged.txt"

#: All files of a run's directory.
RUN_FILES = (*RESULTS, GROUPS, METRICS, FAIRNESS, CHECKPOINT, PREVIOUS, DIVERGED)


class DirectoryInUseError(ConfigError):
    """Another process is writing into a directory."""


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
            raise DirectoryInUseError(
                f"another run is writing into {str(self.path)!r}; choose another directory"
            ) from None
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
    dataset : Dataset, optional
        The experiment's dataset, if it has been loaded.
    reuse : bool
        Whether the run is one of a study, in a folder with its `run_name`: a complete result is left as it is, and a
        run whose checkpoints are all damaged starts again. Otherwise earlier results are moved to a numbered folder,
        and damaged checkpoints are an error.

    Attributes
    ----------
    complete : bool
        Whether a complete result was found; the run need not be repeated.

    Raises
    ------
    ConfigError
        The directory cannot be written, another process has locked it, or it has the interrupted run of another
        experiment or a checkpoint that cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        experiment: Experiment,
        dataset: Dataset | None = None,
        reuse: bool = False,
    ) -> None:
        super().__init__(path, RUN_FILES)
        self.checkpoint, self.previous = self.path / CHECKPOINT, self.path / PREVIOUS
        self.complete = False
        self._experiment, self._dataset, self._reuse = experiment, dataset, reuse
        self._saved: dict[str, Any] | None = None
        self._has_rounds = False  # whether the checkpoint has any, so that it is worth keeping

    def _prepare(self) -> None:
        """Load the checkpoint, if there is one; otherwise keep earlier results and write the first files of a run."""
        saved = None
        if (self.path / INDEX).exists():
            raise ConfigError(f"{str(self.path)!r} has a study; choose another directory for a run")
        if self._reuse and (self.path / CHECKSUMS).exists():
            if not (reason := damage(self.path)):
                self.complete = True
                self._delete_checkpoints()
                return
            print_notice(f"the run in {self.path} starts again, because {reason}")
        elif self.checkpoint.exists() or self.previous.exists():
            saved = self._load_newest()
        if saved is not None and "history" in saved:
            if saved["experiment"] == self._run_identity or self._is_same_run(saved["experiment"]):
                self._saved, self._has_rounds = saved, True
                return
            if not self._reuse:
                raise ConfigError(
                    f"{str(self.path)!r} holds the interrupted run of another experiment, or of code that has changed; "
                    f"continue it with fedsim resume {self.path}, or choose another directory"
                )
            print_notice(f"the run in {self.path} starts again, because its checkpoint is that of another run")
            saved = None
        if saved is None:
            self.keep_earlier()
        self.save({})  # marks the run as unfinished
        write_settings(self.path, self._experiment)

    def _load_newest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that is intact; None if none is and a run may start again."""
        errors: list[ConfigError] = []
        for file in (self.checkpoint, self.previous):
            if file.exists():
                try:
                    saved = checkpoint.load(file)
                    if not isinstance(saved, dict) or not isinstance(saved.get("experiment"), str):
                        raise checkpoint.checkpoint_error(file, "is not that of a run")
                except ConfigError as error:
                    errors.append(error)
                else:
                    if errors:
                        print_notice(f"{errors[0]}; the checkpoint before it is used instead")
                    return saved
        if not self._reuse:
            raise errors[0]
        print_notice(f"{errors[0]}; the run starts again")
        return None

    @cached_property
    def _run_identity(self) -> str:
        """The identity of the run; in a study the name that it was given, because state may have changed since."""
        return self.path.name if self._reuse else fingerprint(self._experiment, self._dataset)

    def _is_same_run(self, saved: str) -> bool:
        """Return whether an identity is that of this run outside, or inside, of a study."""
        return saved in (fingerprint(self._experiment, self._dataset), run_name(self._experiment, self._dataset))

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint, and keep the one before it."""
        self.check()
        if self._has_rounds and self.checkpoint.exists():
            self.checkpoint.replace(self.previous)
        checkpoint.save(self.checkpoint, {"experiment": self._run_identity} | state, durable=bool(state))
        self._has_rounds = bool(state)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint with which the run starts, if there is one; only once, because it may be large."""
        loaded, self._saved = self._saved, None
        return loaded

    def finish(self, result: Result, card: str) -> None:
        """Write the results and the model card, then delete the checkpoints: the run is complete.

        A run that was too short for a checkpoint is soon repeated, and is not flushed to the disk.
        """
        self.check()
        named = self._reuse or RUN_NAME.fullmatch(self.path.name)
        run = self.path.name if named else run_name(self._experiment, self._dataset)
        write_result(self.path, result, card, run, durable=self._has_rounds)
        self._delete_checkpoints()

    def _delete_checkpoints(self) -> None:
        for file in (self.path / DIVERGED, self.previous, self.checkpoint):
            file.unlink(missing_ok=True)
        if self._has_rounds:
            sync_directory(self.path)


def divergence(folder: Path) -> str:
    """Return the message of a study's run that diverged; empty if it did not."""
    try:
        return (folder / DIVERGED).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def finished_rounds(folder: Path) -> int:
    """Return the number of rounds in the newest checkpoint of an interrupted run; 0 if none can be read."""
    for file in (folder / CHECKPOINT, folder / PREVIOUS):
        with suppress(ConfigError, TypeError):
            return max(len(checkpoint.load(file).get("history", ())) - 1, 0)
    return 0


def save_result(result: Result, directory: str | os.PathLike[str]) -> None:
    """Write a result into a directory; see `Result.save`."""
    with RunDirectory(directory, result.experiment) as folder:
        if folder.load():
            raise ConfigError(f"{str(folder.path)!r} has an unfinished run; choose another directory")
        folder.finish(result, result.card())
