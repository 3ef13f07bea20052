"""Executes the runs of a study: one after the other, or several at the same time in worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import kernels
from fedsim.checks import check_integer
from fedsim.data import Dataset
from fedsim.engines.engine import engine_class
from fedsim.engines.workers import MAX_WORKERS, available_cores
from fedsim.errors import ConfigError, DivergenceError, named_run
from fedsim.files import write_text
from fedsim.study.build import build_runtime
from fedsim.study.callbacks import Callback, FinishedRound, check_callbacks
from fedsim.study.directory import DIVERGED, DirectoryInUseError, divergence
from fedsim.study.pool import FORKS, in_processes, may_start_workers
from fedsim.study.progress import ProgressBar
from fedsim.study.result import Result
from fedsim.study.runner import replay, run
from fedsim.study.store import PlannedRun

if TYPE_CHECKING:
    from fedsim.engines.engine import Engine

#: What becomes of a run: its result, the error with which it diverged, or None if another process works on it.
Outcome = Result | DivergenceError | None
#: Floating-point operations per round from which a run goes alone, on all threads.
LARGE_ROUND = 1e10
#: Seconds between looks at runs on which other processes work.
POLL_SECONDS = 0.2
#: Seconds between reports of a worker process.
REPORT_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is run, which does not change its results; parameters and errors as for `fedsim.compare`."""

    progress: bool | None = None
    callbacks: Sequence[Callback] = ()
    workers: int | None = None
    jobs: int | None = None
    verbose: bool = False
    engine: str | Callable[..., Engine] = "in-process"

    def __post_init__(self) -> None:
        check_callbacks(self.callbacks)
        engine_class(self.engine)
        if self.jobs is not None:
            check_integer("jobs", self.jobs, 1, MAX_WORKERS)


@dataclass(frozen=True)
class Execution:
    """How the runs of a study are executed.

    Attributes
    ----------
    runs : sequence of PlannedRun
    datasets : sequence of Dataset
        Of each run.
    folders : sequence of Path or None
        Of each run.
    options : StudyOptions
    """

    runs: Sequence[PlannedRun]
    datasets: Sequence[Dataset]
    folders: Sequence[Path | None]
    options: StudyOptions

    def results(self, bar: ProgressBar) -> Iterator[tuple[int, Result | DivergenceError]]:
        """Execute the runs and yield their numbers and results: those that were finished earlier, then the others.

        A run that diverges has its error as the result.
        """
        numbers = []
        for number in range(len(self.runs)):
            found = self._load(number)
            if isinstance(found, Result):
                self._label(number)
                replay(found, [bar, *self.options.callbacks])
            if found is None:
                numbers.append(number)
            else:
                yield number, found
        jobs = self._default_jobs() if self.options.jobs is None else self.options.jobs
        if jobs > 1 and not may_start_workers():
            raise ConfigError(f"jobs is {jobs}; allowed in a daemon process and outside of the main thread: 1")
        large = self._large(numbers) if self.options.jobs is None and jobs > 1 else set()
        small = [number for number in numbers if number not in large]
        for todo, at_once in ((small, jobs), (sorted(large), 1)):
            while todo:
                in_use: list[int] = []
                for number, finished in self._pass(todo, bar, at_once):
                    if finished is None:
                        in_use.append(number)
                    else:
                        yield number, finished
                if len(in_use) == len(todo):
                    time.sleep(POLL_SECONDS)
                todo = in_use

    def _load(self, number: int) -> Outcome:
        """Return the result or the divergence that a run has in its folder; None if there is none that can be read."""
        folder = self.folders[number]
        if folder is None:
            return None
        if message := divergence(folder):
            error = DivergenceError(message)
            error.run = self.runs[number].title
            return error
        try:
            return Result.load(folder, self.runs[number].experiment)
        except ConfigError:
            return None

    def _pass(self, numbers: Sequence[int], bar: ProgressBar, jobs: int) -> Iterator[tuple[int, Outcome]]:
        """Execute runs, except those on which other processes work: their result is None."""
        if min(jobs, len(numbers)) == 1:
            for number in numbers:
                bar.describe(self.runs[number].title)
                yield number, self.run(number, [bar, *self.options.callbacks], self.options.workers)
            return

        def observe(number: int, report: Any) -> None:
            bar.describe(self.runs[number].title)
            bar.add(*report)

        threads = self.options.workers or max(1, available_cores() // jobs)
        for number, content in in_processes(partial(self._work, workers=threads), numbers, jobs, observe):
            yield number, Result(self.runs[number].experiment, **content) if isinstance(content, dict) else content

    def _work(self, number: int, report: Callable[[Any], None], workers: int) -> Any:
        """Execute a run in a worker process; return the fields of its result but the experiment, which has objects."""
        result = self.run(number, [_Reporter(report), *self.options.callbacks], workers)
        if not isinstance(result, Result):
            return result
        return {field.name: getattr(result, field.name) for field in fields(Result) if field.name != "experiment"}

    def run(self, number: int, callbacks: Sequence[Callback], workers: int | None) -> Outcome:
        """Execute a run in this process."""
        planned, folder = self.runs[number], self.folders[number]
        self._label(number)
        try:
            with named_run(planned.title):
                return run(
                    planned.experiment, workers, None, callbacks, self.options.verbose, folder, self.options.engine,
                    self.datasets[number], reuse=True,
                )  # fmt: skip
        except DirectoryInUseError:
            return None
        except DivergenceError as error:
            if folder:
                write_text(folder / DIVERGED, error.reason)
            return error

    def _label(self, number: int) -> None:
        """Tell the callbacks which run starts next."""
        for callback in self.options.callbacks:
            callback.label_run(self.runs[number].labels)

    def _default_jobs(self) -> int:
        """Return the number of small runs at the same time."""
        options = self.options
        passive = all(callback.passive for callback in options.callbacks)
        alone = not passive or options.verbose or not _is_in_process(options.engine) or options.workers is not None
        return 1 if alone or not FORKS or not may_start_workers() else available_cores()

    def _large(self, numbers: Sequence[int]) -> set[int]:
        """Return the runs whose rounds are long enough to use all threads well; load the kernels of all runs.

        The seed makes no difference to the size, so that one run of each variant is measured.
        """
        found: dict[tuple[str, ...], bool] = {}
        for number in numbers:
            labels = tuple(self.runs[number].labels.values())
            if labels not in found:
                experiment = self.runs[number].experiment
                runtime = build_runtime(experiment, self.datasets[number])
                runtime.prepare()
                examples = experiment.examples_per_round(runtime.federated)
                found[labels] = kernels.round_flops(runtime.model, examples) >= LARGE_ROUND
        return {number for number in numbers if found[tuple(self.runs[number].labels.values())]}


def _is_in_process(engine: Any) -> bool:
    """Return whether an engine, by its name or its class, runs clients in this process."""
    return bool(engine_class(engine) is engine_class("in-process"))


class _Reporter(Callback):
    """Reports the rounds of a run from a worker process, at most ten times a second."""

    def __init__(self, report: Callable[[Any], None]) -> None:
        self._report, self._rounds, self._next = report, 0, 0.0

    def run_started(self, experiment: Any, history: Sequence[Mapping[str, float]]) -> None:
        """Report the rounds that were finished earlier."""
        if len(history) > 1:
            self._report((len(history) - 1, history[-1], True))

    def round_finished(self, finished: FinishedRound) -> None:
        """Report the rounds since the last report, unless it was a moment ago."""
        self._rounds += finished.number > 0
        if self._rounds and time.monotonic() >= self._next:
            self._send(finished.metrics)

    def run_finished(self, result: Result) -> None:
        """Report the last rounds."""
        if self._rounds:
            self._send(result.history.iloc[-1].to_dict())

    def _send(self, metrics: Mapping[str, float]) -> None:
        self._report((self._rounds, metrics))
        self._rounds, self._next = 0, time.monotonic() + REPORT_SECONDS
