"""Tuning: for each variant of a study, the best values of some settings, chosen with other seeds than are reported.

If the values were chosen with the seeds that are reported, the reported scores would be those of lucky draws. The test
set is the same, so that the choice by `Tuning.metric` of clients' held-out examples (``local_accuracy`` with
`Experiment.test_fraction`) is stricter still.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.checks import check_choice
from fedsim.errors import ConfigError, DivergenceError
from fedsim.study.callbacks import RISING
from fedsim.study.experiment import Experiment
from fedsim.study.grid import MOST_SEEDS, TUNED, has_setting, seed_list, variants

if TYPE_CHECKING:
    from fedsim.study.study import Study

#: A variant: its labels and its experiment.
Variants = list[tuple[dict[str, str], Experiment]]
#: The label of a setting that a variant does not have.
NONE = "-"


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and how.

    Parameters
    ----------
    settings : mapping
        Setting, such as ``client.lr`` -> values. Variants without a setting keep what they have.
    seeds : int or sequence of int
        Seeds to choose with; a number means that many, from `MOST_SEEDS` after the first seed that is reported.
    metric : str, optional
        A column of `Result.history`, whose mean over the seeds in the last round is best; default the test score, or
        the clients' score without a global model.
    """

    settings: Mapping[str, Sequence[Any]]
    seeds: int | Sequence[int] = 3
    metric: str | None = None

    def seed_list(self, reported: Sequence[int]) -> Sequence[int]:
        """Return the seeds to choose with.

        Raises
        ------
        ConfigError
            A seed is reported too, or is not allowed.
        """
        seeds = seed_list(self.seeds, reported[0] + MOST_SEEDS)  # the same for any number of reported seeds
        if both := sorted(set(seeds) & set(reported)):
            allowed = f"other seeds than {', '.join(map(str, reported))}"
            raise ConfigError(f"tune_seeds has {both[0]}, which is reported too; allowed: {allowed}")
        return seeds

    def check(self, axes: Iterable[str]) -> None:
        """Raise ConfigError if a setting is an axis of the study too."""
        for name in axes:
            if name in self.settings:
                raise ConfigError(f"{name} is both tuned and compared; allowed: one of the two")

    def candidates(self, labels: Mapping[str, str], experiment: Experiment) -> Variants:
        """Return the variants from which one is chosen: every combination of the values."""
        settings = {name: values for name, values in self.settings.items() if has_setting(experiment, name)}
        found = variants(experiment, settings) if settings else [({}, experiment)]
        return [({**labels, **dict.fromkeys(self.settings, NONE), **inner}, made) for inner, made in found]

    def choose(self, chosen_from: Sequence[Variants], tuned: Study, seeds: int) -> tuple[Variants, list[str]]:
        """Return the best candidate of each variant, and notes on the choice.

        Parameters
        ----------
        chosen_from : sequence of list of (labels, experiment)
            The candidates of each variant.
        tuned : Study
            Results of the candidates.
        seeds : int
            Number of seeds; a candidate of which one diverged is not chosen.

        Raises
        ------
        DivergenceError
            All candidates of a variant diverged.
        """
        results = {tuple(variant.labels.items()): variant.results for variant in tuned.variants}
        best: Variants = []
        for candidates in chosen_from:
            scores = []
            for labels, _ in candidates:
                found = results.get(tuple(labels.items()), ())
                scores.append(self._score(found) if len(found) == seeds else -math.inf)
            labels, experiment = candidates[int(np.argmax(scores))]
            if max(scores) == -math.inf:
                tried = ", ".join(self.settings)
                raise DivergenceError(f"no value of {tried} has a score in all seeds for {', '.join(labels.values())}")
            best.append(({self._title(name): label for name, label in labels.items()}, experiment))
        return best, self._notes(best)

    def _title(self, axis: str) -> str:
        """Return the name of an axis among the reported labels."""
        return f"{TUNED}{axis}" if axis in self.settings else axis

    def _score(self, results: Sequence[Any]) -> float:
        """Return the mean of the metric in the last round; larger is better, and NaN is worst."""
        score = results[0].score
        metric = self.metric or (f"test_{score}" if results[0].has_global_model else f"local_{score}")
        check_choice("tune_metric", metric, [name for name in results[0].history if name in RISING])
        mean = float(np.mean([result.history[metric].iloc[-1] for result in results]))
        return -math.inf if math.isnan(mean) else mean if RISING[metric] else -mean

    def _notes(self, best: Variants) -> list[str]:
        """Return a note on numeric settings whose best value is the smallest or the largest that was tried."""
        notes = []
        for name, values in self.settings.items():
            tried = sorted(value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
            if len(tried) < max(3, len(values)):
                continue
            chosen = [label for labels, _ in best if (label := labels[self._title(name)]) != NONE]
            for end, value in (("smallest", tried[0]), ("largest", tried[-1])):
                if number := chosen.count(str(value)):
                    notes.append(
                        f"{name} {value}, the {end} that was tried, is best for {number} of {len(chosen)}: try more."
                    )
        return notes


def seeded(labelled: Variants, seeds: Sequence[int]) -> Variants:
    """Return each variant with each seed."""
    return [(labels, replace(experiment, seed=seed)) for labels, experiment in labelled for seed in seeds]
