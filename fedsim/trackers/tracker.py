"""The base of trackers: when a run is opened, logged and closed, and what happens if its tracker fails."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol

from fedsim.errors import missing_extra
from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.text import describe, print_notice
from fedsim.trackers.description import RunDescription, describe_run, notes, summary, write_artifacts

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result

#: Rounds are logged together after this number of seconds, because a request may take longer than a round.
LOGGING_SECONDS = 2.0
#: How a run may end.
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


class TrackedRun(Protocol):
    """A run that a tracker logs."""

    def log_rounds(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows of the history. Those of a resumed run may have been logged before it was interrupted."""

    def log_result(self, summary: Mapping[str, float], notes: Mapping[str, str], files: Sequence[Path]) -> None:
        """Log figures and notes of the whole run, and files."""

    def close(self, status: str, reason: str) -> None:
        """Close the run as `FINISHED`, `FAILED` or `KILLED`; `reason` is the error, empty if it has finished."""


class Tracker(Callback, ABC):
    """Logs runs, by `open_run` of a subclass.

    Rounds are logged every `LOGGING_SECONDS`, and the rest at the end. If logging fails, a notice is printed, and the
    run continues without it. An object logs one run at a time; between runs it can be sent to worker processes.

    Attributes
    ----------
    package : str
        The package that a subclass imports; the extra that installs it has the same name.
    """

    passive = True
    package: ClassVar[str]
    _labels: Mapping[str, str] = MappingProxyType({})
    _experiment: Experiment | None = None  # None if nothing is to be logged
    _run: TrackedRun | None = None

    def __post_init__(self) -> None:
        found = find_spec(self.package)
        if found is None or found.origin is None:  # a folder of that name has no origin
            raise missing_extra(type(self).__name__, self.package)

    @abstractmethod
    def open_run(self, description: RunDescription, resumed: bool) -> TrackedRun:
        """Open a run. One that is resumed was opened before, unless it was not tracked then."""

    def label_run(self, labels: Mapping[str, str]) -> None:
        """Take the labels of the study's run that starts next."""
        self._labels = dict(labels)

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Open the run if it is resumed; a new run is opened at its first row, which identifies it."""
        self._experiment, self._run, self._rows = experiment, None, list(history)
        if history:
            self._attempt(lambda: self._log_rows(resumed=True))

    def round_finished(self, finished: FinishedRound) -> None:
        """Log the rounds since the last time, if enough time has passed."""
        if self._experiment is not None:
            self._rows.append(finished.metrics)
            if self._run is None or time.monotonic() - self._logged >= LOGGING_SECONDS:
                self._attempt(self._log_rows)

    def run_finished(self, result: Result) -> None:
        """Log the result and close the run."""
        self._attempt(lambda: self._log_result(result))
        self._reset()

    def run_failed(self, error: BaseException) -> None:
        """Log the rounds so far and close the run, as killed after Ctrl-C, otherwise as failed."""
        self._attempt(lambda: self._log_error(error))
        self._reset()

    def _attempt(self, action: Callable[[], None]) -> None:
        """Log something; if that fails, print a notice and log nothing more of this run."""
        if self._experiment is None:
            return
        try:
            action()
        except Exception as error:
            reason = describe(error)
            print_notice(f"{type(self).__name__} failed, and the run continues without it: {reason}")
            run = self._run
            self._reset()
            if run:
                with suppress(Exception):
                    run.close(FAILED, f"logging failed: {reason}")

    def _log_rows(self, resumed: bool = False) -> None:
        if self._run is None and self._experiment is not None:
            self._run = self.open_run(describe_run(self._experiment, self._labels, self._rows[0]), resumed)
        if self._run and self._rows:
            self._run.log_rounds(self._rows)
        self._rows, self._logged = [], time.monotonic()

    def _log_result(self, result: Result) -> None:
        self._log_rows()
        if self._run:
            with TemporaryDirectory() as folder:
                self._run.log_result(summary(result), notes(result), write_artifacts(result, Path(folder)))
            self._run.close(FINISHED, "")

    def _log_error(self, error: BaseException) -> None:
        if self._rows:
            self._log_rows()
        if self._run:
            self._run.close(KILLED if isinstance(error, KeyboardInterrupt) else FAILED, describe(error))

    def _reset(self) -> None:
        """Forget the run and its labels."""
        self._labels, self._experiment, self._run, self._rows = {}, None, None, []
