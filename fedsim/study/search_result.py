"""The result of a search: its trials as a table, and the best experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedsim.errors import DivergenceError
from fedsim.study.callbacks import RISING
from fedsim.study.experiment import Experiment
from fedsim.study.search_space import Parameter, apply

if TYPE_CHECKING:
    import pandas as pd

#: Attributes of Optuna's trials: why a trial diverged, and its number of rounds.
DIVERGED, ROUNDS = "diverged", "rounds"
OPTIMISTIC = "The value of the best trial is optimistic, because the trial was chosen by it; report it on other seeds"
#: Number of trials that are printed.
SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class Search:
    """The result of a search.

    Attributes
    ----------
    best : Experiment
        With the values of the best trial, and the seed of the base.
    value : float
        The value of the best trial.
    metric : str
    seeds : tuple of int
        The seeds of each trial.
    trials : DataFrame
        One row per trial: ``number, state`` ("complete", "pruned" or "diverged"), ``value`` (the mean of the metric
        over the seeds; NaN unless complete), a column for each setting, ``rounds_run`` (of all seeds together),
        ``seconds``.
    study : optuna.Study
        For Optuna's plots and importances. It also has the trials that were interrupted, in the state FAIL.
    """

    best: Experiment
    value: float
    metric: str
    seeds: tuple[int, ...]
    trials: pd.DataFrame
    study: Any = field(repr=False)

    def __repr__(self) -> str:
        return f"Search({self.best!r}: {self.metric} {self.value:.4g}, {self._counts})"

    def __str__(self) -> str:
        from fedsim.report.terminal import to_text

        return "\n".join([to_text(self.top()), *self.notes])

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{self.top().to_html(index=False)}{notes}"

    def top(self, number: int = SHOWN) -> pd.DataFrame:
        """Return the rows of the best complete trials, the best one first."""
        complete = self.trials[self.trials["state"] == "complete"].drop(columns="state")
        ordered = complete.sort_values("value", ascending=not RISING[self.metric], kind="stable", ignore_index=True)
        return ordered.head(number)

    @property
    def _counts(self) -> str:
        states = self.trials["state"].value_counts()
        return ", ".join(f"{states[name]} {name}" for name in ("complete", "pruned", "diverged") if name in states)

    @property
    def next_seed(self) -> int:
        """The first seed above those of the trials, for a report on other seeds."""
        return max(self.seeds) + 1

    @property
    def notes(self) -> list[str]:
        """What the values are, the numbers of trials, and how to report the best one."""
        return [
            f"value: {self.metric} in the last round, mean over seeds {', '.join(map(str, self.seeds))}; "
            f"{len(self.trials)} trials: {self._counts}",
            f"{OPTIMISTIC}: compare(replace(search.best, seed={self.next_seed}), seeds=5)",
        ]


def finished_trials(study: Any) -> list[Any]:
    """Return Optuna's trials in order, without those that were interrupted."""
    from optuna.trial import TrialState

    found: list[Any] = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return found


def make_search(
    study: Any, base: Experiment, parameters: Sequence[Parameter], metric: str, seeds: Sequence[int]
) -> Search:
    """Return the result of the trials of Optuna's study.

    Raises
    ------
    DivergenceError
        All trials diverged.
    """
    import pandas as pd

    finished = finished_trials(study)
    rows = [_row(number, trial, parameters) for number, trial in enumerate(finished)]
    complete = [trial for trial, row in zip(finished, rows, strict=True) if row["state"] == "complete"]
    if not complete:
        reason = finished[0].user_attrs[DIVERGED]
        raise DivergenceError(f"all {len(finished)} trials diverged; the first one: {reason}")
    best = (max if RISING[metric] else min)(complete, key=lambda trial: trial.value)
    experiment = apply(base, parameters, best.params)
    return Search(experiment, best.value, metric, tuple(seeds), pd.DataFrame(rows), study)


def _row(number: int, trial: Any, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Return the row of a trial."""
    is_complete = trial.state.name == "COMPLETE"
    state = "complete" if is_complete else "diverged" if DIVERGED in trial.user_attrs else "pruned"
    return {
        "number": number,
        "state": state,
        "value": trial.value if is_complete else float("nan"),
        **{part.setting: part.shown(trial.params[part.setting]) for part in parameters},
        "rounds_run": trial.user_attrs[ROUNDS],
        "seconds": trial.duration.total_seconds(),
    }
