"""Progress of runs: a bar on terminals and in notebooks, otherwise a line once a minute."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from fedsim.study.callbacks import Callback, FinishedRound
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment

#: Seconds between lines, and before the first one.
LINE_SECONDS = 60.0


class ProgressBar(Callback):
    """Shows the rounds of one or several runs and the latest score; a context manager.

    Where standard error is no terminal, it prints a line once a minute, and nothing for work of less than a minute.

    Parameters
    ----------
    rounds : int
        Number of rounds of all runs together.
    show : bool, optional
        Show a bar, or nothing; default: a bar on a terminal and in a notebook, otherwise lines.
    leave : bool
        Leave the bar on the terminal at the end.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(
        self,
        rounds: int,
        show: bool | None = None,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        disable = None if show is None else not show
        self._bar = _bar_class()(total=rounds, unit="round", disable=disable, leave=leave)
        self._prints_lines = show is None and self._bar.disable
        self._rounds, self._done, self._resumed = rounds, 0, 0
        self._clock, self._run = clock, ""
        self._started = self._printed = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def describe(self, run: str) -> None:
        """Show the name of a run."""
        self._run = run
        self._bar.set_description(run)

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Count the rounds that a resumed run has already finished."""
        if len(history) > 1:
            self.add(len(history) - 1, history[-1], resumed=True)

    def round_finished(self, finished: FinishedRound) -> None:
        """Count the round, and show its score."""
        if finished.number:
            self.add(1, finished.metrics)

    def add(self, rounds: int, metrics: Mapping[str, float], resumed: bool = False) -> None:
        """Count rounds; show the last test score, or the clients' score if there is no global model.

        Parameters
        ----------
        rounds : int
        metrics : mapping
            The last row of the history.
        resumed : bool
            Whether the rounds were finished earlier, so that they say nothing of the time that is left.
        """
        self._done += rounds
        self._resumed += rounds if resumed else 0
        self._bar.update(rounds)
        score = "accuracy" if "test_accuracy" in metrics else "r2"
        value = metrics.get(f"test_{score}", math.nan)
        if math.isnan(value):
            value, score = metrics.get(f"local_{score}", math.nan), f"local {score}"
        shown = {} if math.isnan(value) else {score: f"{value:.3f}"}
        if shown:
            self._bar.set_postfix(shown)
        now = self._clock()
        if self._prints_lines and not resumed and now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._print_line("".join(f"{name} {text}" for name, text in shown.items()), now - self._started)

    def _print_line(self, score: str, seconds: float) -> None:
        left = seconds * (self._rounds - self._done) / (self._done - self._resumed)
        parts = [self._run, f"{self._done:,} of {self._rounds:,} rounds", score]
        print_notice("; ".join(filter(None, [*parts, f"about {self._bar.format_interval(left)} left"])))


def _bar_class() -> Any:
    """Return tqdm's bar for a terminal or, if its widgets are installed, for a notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets
        from tqdm.auto import tqdm
    return tqdm
