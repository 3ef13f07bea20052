"""Searches of hyperparameters with Optuna: a tree-structured Parzen estimator and pruning by the median.

References: Akiba et al., "Optuna: a next-generation hyperparameter optimization framework", KDD 2019, arXiv:1907.10902;
Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_flag, check_instance, check_integer, check_real
from fedsim.errors import ConfigError, DivergenceError, missing_extra, named_run
from fedsim.streams import LOW_32, Purpose, keys
from fedsim.study.callbacks import RISING, Callback, FinishedRound, check_callbacks
from fedsim.study.experiment import Experiment
from fedsim.study.grid import seed_list
from fedsim.study.identity import run_name
from fedsim.study.progress import ProgressBar
from fedsim.study.result import Result
from fedsim.study.runner import run
from fedsim.study.search_result import DIVERGED, ROUNDS, Search, finished_trials, make_search
from fedsim.study.search_space import Parameter, apply, read_space
from fedsim.study.search_store import SearchDirectory, open_study
from fedsim.study.store import RUNS
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.engines.engine import Engine

#: The largest number of trials; each trial reads those before it.
MOST_TRIALS = 100_000


@checked_arguments
def search(
    base: Experiment,
    space: Mapping[str, Any],
    *,
    trials: int = 50,
    seeds: int | Sequence[int] = 2,
    metric: str | None = None,
    prune: bool = True,
    timeout: float | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    workers: int | None = None,
    verbose: bool = False,
    engine: str | Callable[..., Engine] = "in-process",
    directory: str | os.PathLike[str] | None = None,
) -> Search:
    """Search for the values of settings with the best metric, with Optuna (extra ``tune``).

    A trial runs the experiment with each seed, one after the other; its value is the mean of the metric in the last
    round. A trial is pruned after a round in which its best value so far is worse than the median of the other trials'
    values in that round, once five trials are complete. A trial that diverges counts as pruned.

    Trials are a function of the arguments: the same search gives the same trials, also if it is interrupted and
    continued, and a search of more trials begins with those of a search of fewer. Each trial depends on all trials
    before it, so trials are not run at the same time.

    Parameters
    ----------
    base : Experiment
    space : mapping
        Setting -> ``(low, high)``, whole numbers if both ends are; ``("log", low, high)``, the logarithm of which is
        uniform; or a list of choices. Arguments of objects are settings too, as in `fedsim.compare`.
    trials : int
        Number of trials, those in the directory included.
    seeds : int or sequence of int
        A number n means ``base.seed, ..., base.seed + n - 1``.
    metric : str, optional
        A column of `Result.history`: losses should fall, scores rise. Default: the test accuracy, or R squared.
    prune : bool
        Whether trials may end early.
    timeout : float, optional
        Seconds after which no further trial starts.
    progress : bool, optional
        Show a progress bar; default: only on a terminal.
    callbacks, workers, verbose, engine
        As for `Experiment.run`; `verbose` also shows Optuna's log.
    directory : path, optional
        Where to write the trials, as Optuna's journal and as ``trials.csv``, the runs, and the best experiment as
        ``best.toml``. A search in the directory is continued; a trial that was interrupted is repeated.

    Returns
    -------
    Search

    Raises
    ------
    ConfigError
        An argument is not allowed, the extra ``tune`` is not installed, or the directory cannot be written or has
        another search.
    DivergenceError
        All trials diverged.

    Examples
    --------
    >>> from fedsim import Experiment
    >>> from fedsim.study.search import search
    >>> found = search(Experiment(rounds=2), {"client.lr": ("log", 0.001, 1.0)}, trials=3, seeds=1)
    >>> list(found.trials.columns)
    ['number', 'state', 'value', 'client.lr', 'rounds_run', 'seconds']
    """
    check_instance("base", base, Experiment, "an Experiment")
    parameters, seeds = read_space(base, space), seed_list(seeds, base.seed)
    check_integer("trials", trials, 1, MOST_TRIALS)
    check_flag("prune", prune)
    check_callbacks(callbacks)
    if timeout is not None:
        check_real("timeout", timeout, 0, open_low=True)
    dataset = base.load_data()
    metric = ("test_r2" if dataset.regression else "test_accuracy") if metric is None else metric
    check_choice("metric", metric, RISING)
    rounds = max([base.rounds, *(n for part in parameters if part.setting == "rounds" for n in part.values)])
    with ExitStack() as stack:
        stack.enter_context(_optuna_log(verbose))
        folder = stack.enter_context(SearchDirectory(directory)) if directory is not None else None
        study = open_study(
            folder, RISING[metric],
            base=run_name(base, dataset, callbacks) if folder else "",
            space={part.setting: part.text for part in parameters}, seeds=list(seeds), metric=metric, prune=prune,
        )  # fmt: skip
        bar = stack.enter_context(ProgressBar(trials * len(seeds) * rounds, progress))

        def execute(experiment: Experiment, report: _Report) -> Result:
            active = [_Trial(report.number, metric), *callbacks]
            where = folder.path / RUNS / run_name(experiment, dataset, active) if folder else None
            for callback in callbacks:
                callback.label_run({"trial": f"trial {report.number}"})
            shown = [report, bar, *callbacks]
            return run(experiment, workers, None, shown, verbose, where, engine, dataset, reuse=True)

        objective = _Objective(base, parameters, seeds, rounds, metric, execute)
        try:
            _run_trials(study, objective, trials, timeout, bar)
        except BaseException:
            done = f"{len(finished_trials(study))} of {trials} trials are finished"
            again = f" in {folder.path}, and the same search continues it" if folder else ""
            print_notice(f"the search ended early; {done}{again}")
            raise
        found = make_search(study, base, parameters, metric, seeds)
        if folder:
            folder.write(found)
    return found


@contextmanager
def _optuna_log(verbose: bool) -> Iterator[None]:
    """Show Optuna's log, or its errors only."""
    try:
        from optuna import logging
    except ImportError:
        raise missing_extra("a search", "tune") from None
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO if verbose else logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _run_trials(study: Any, objective: _Objective, trials: int, timeout: float | None, bar: ProgressBar) -> None:
    """Run the trials that are not finished yet.

    The sampler of each trial has a seed of its own, so that a search that is continued samples the same values.
    """
    from optuna import TrialPruned
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    started, done = time.monotonic(), len(finished_trials(study))
    steps = objective.rounds * len(objective.seeds)
    bar.add(steps * min(done, trials), {}, resumed=True)
    for number in range(done, trials):
        if timeout is not None and number and time.monotonic() - started >= timeout:
            break
        bar.describe(f"trial {number}")
        study.sampler = TPESampler(seed=int(keys(objective.base.seed, Purpose.SEARCH, number)[0] & LOW_32))
        trial = study.ask({part.setting: part.distribution for part in objective.parameters})
        report = _Report(number, trial, objective.metric)
        state, value = TrialState.PRUNED, None
        try:
            state, value = TrialState.COMPLETE, objective.evaluate(report)
        except TrialPruned:
            pass
        except DivergenceError as error:
            trial.set_user_attr(DIVERGED, error.reason)
        trial.set_user_attr(ROUNDS, report.rounds)
        study.tell(trial, value, state)
        bar.add(steps - report.rounds, {}, resumed=True)


@dataclass(frozen=True)
class _Objective:
    """What trials have in common.

    Attributes
    ----------
    base, seeds, metric
        As for `search`.
    parameters : sequence of Parameter
    rounds : int
        The largest number of rounds of a run.
    execute : callable
        Runs an experiment.
    """

    base: Experiment
    parameters: Sequence[Parameter]
    seeds: Sequence[int]
    rounds: int
    metric: str
    execute: Callable[[Experiment, _Report], Result]

    def evaluate(self, report: _Report) -> float:
        """Return the value of a trial.

        Raises
        ------
        TrialPruned
            The trial is pruned.
        """
        from optuna import TrialPruned

        experiment = apply(self.base, self.parameters, report.trial.params)
        report.last_step = (len(self.seeds) - 1) * self.rounds + experiment.rounds
        values = []
        for place, seed in enumerate(self.seeds):
            report.first_step = place * self.rounds
            with named_run(f"trial {report.number}, seed {seed}"):
                result = self.execute(replace(experiment, seed=seed), report)
                row = result.history.iloc[-1]
                if math.isnan(row[self.metric]):
                    measured = ", ".join(name for name in RISING if not math.isnan(row.get(name, math.nan)))
                    raise ConfigError(f"metric is {self.metric!r}, which is not measured; allowed: {measured}")
            if report.pruned:
                raise TrialPruned
            values.append(float(row[self.metric]))
        return float(np.mean(values))


@dataclass(frozen=True)
class _Trial(Callback):
    """Stands for the `_Report` of a trial in the identity of its runs."""

    number: int
    metric: str


@dataclass
class _Report(Callback):
    """Reports the metric after each round of a trial, and ends a run when the trial is pruned.

    Attributes
    ----------
    number : int
        Of the trial. It is part of the name of a run's folder, because trials with the same values may be pruned in
        different rounds.
    trial : optuna.Trial
    metric : str
    first_step, last_step : int
        The step before the run's first round, and that of the trial's last round, in which nothing is left to prune.
    rounds : int
        Number of rounds so far.
    pruned : bool
    """

    number: int
    trial: Any = field(repr=False)
    metric: str
    first_step: int = field(default=0, repr=False)
    last_step: int = field(default=0, repr=False)
    rounds: int = field(default=0, repr=False)
    pruned: bool = field(default=False, repr=False)

    def run_started(self, experiment: Experiment, history: Sequence[Mapping[str, float]]) -> None:
        """Report the rounds that a resumed run has already finished."""
        for row in history:
            self._add(row)

    def round_finished(self, finished: FinishedRound) -> None:
        """Report the round."""
        self._add(finished.metrics)
        if self.pruned:
            finished.stop("the trial was pruned")

    def _add(self, row: Mapping[str, float]) -> None:
        if self.metric not in row:
            columns = ", ".join(name for name in RISING if name in row)
            raise ConfigError(f"metric is {self.metric!r}; this experiment has {columns}")
        number, value = int(row["round"]), row[self.metric]
        if self.pruned or not number:
            return
        self.rounds += 1
        if not math.isnan(value):
            step = self.first_step + number
            self.trial.report(value, step)
            self.pruned = step < self.last_step and self.trial.should_prune()
