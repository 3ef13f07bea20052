"""A study: the results of many experiments, with statistics, tables and plots."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data
from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_path, check_real
from fedsim.errors import ConfigError
from fedsim.files import write_csv
from fedsim.report.intervals import MIN_SEEDS
from fedsim.study import significance, time_to_target
from fedsim.study import tables as study_tables
from fedsim.study.grid import TUNED
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd

#: `Study.table`'s default target: this share of the best variant's mean final accuracy.
TARGET_SHARE = 0.95


@dataclass(frozen=True)
class Variant:
    """One setting of the axes, run once per seed.

    Attributes
    ----------
    labels : dict of str to str
        Axis name -> short label of this variant's value.
    results : tuple of Result
        One per seed.
    diverged : tuple of int
        Seeds whose runs diverged, which have no result.
    """

    labels: Mapping[str, str]
    results: tuple[Result, ...]
    diverged: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """All labels in one line; numbers with the name of their setting."""
        return ", ".join(significance.titled(axis, label) for axis, label in self.labels.items())

    @property
    def title(self) -> str:
        """The label, or "all" if there are no axes."""
        return self.label or "all"

    @property
    def has_global_model(self) -> bool:
        """Whether the runs have a global model; see `Result.has_global_model`."""
        return all(result.has_global_model for result in self.results)


@dataclass(frozen=True, repr=False)
class Study:
    """The results of many experiments.

    Attributes
    ----------
    variants : tuple of Variant
    remarks : tuple of str
        Sentences on how the study was run: which runs diverged, and which settings were chosen with other seeds.
    tuning : Study, optional
        The study with which settings were chosen; see `fedsim.study.tuning`.
    """

    variants: tuple[Variant, ...]
    remarks: tuple[str, ...] = ()
    tuning: Study | None = None

    def __repr__(self) -> str:
        runs = sum(len(v.results) for v in self.variants)
        return f"Study({', '.join(v.title for v in self.variants)}; runs: {runs})"

    def __str__(self) -> str:
        """Return `table` with all of its columns, and `notes`; columns for which a terminal is too narrow follow."""
        from fedsim.report.terminal import to_text

        return "\n".join([to_text(self.table()), *self.notes])

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{self.table().to_html(index=bool(self.variants[0].labels))}{notes}"

    @property
    def target(self) -> float:
        """The default target: 95 % of the best variant's mean final accuracy (or R squared), rounded to 2 decimals.

        Variants without a global model do not count; NaN if no variant has one.
        """
        if not self.has_global_model:
            return math.nan
        best = float(np.nanmax([np.mean([r.final_score for r in v.results]) for v in self.variants]))
        return round(best - (1 - TARGET_SHARE) * abs(best), 2) + 0.0  # never -0.0

    @checked_arguments
    def summary(self, target: float | None = None, interval: str = "t") -> pd.DataFrame:
        """Return one row per variant, as numbers.

        Parameters
        ----------
        target : float, optional
            Test accuracy to which rounds are counted; default `Study.target`.
        interval : {"t", "bootstrap"}
            95 % intervals of means, for at least three seeds: Student's t; or the bootstrap, whose limits
            ``..._low, ..._high`` replace the half widths ``..._ci95``, see `fedsim.report.intervals`.

        Returns
        -------
        DataFrame
            The axes' columns, then ``seeds, final_accuracy, final_accuracy_ci95`` (half width), ``best_accuracy``
            (mean over seeds of each run's best round), ``local_accuracy, local_accuracy_ci95`` (of clients on their
            own examples, in the last round; NaN if none evaluated), ``attack_success, attack_success_ci95`` (in the
            last round; NaN without a targeted attack), for each of `Experiment.metrics` that is a number, such as
            macro_f1, ``final_macro_f1, final_macro_f1_ci95`` (on the test set), ``final_loss, target,
            rounds_to_target, megabytes_to_target, seconds_to_target`` (medians, see `time_to_target`), ``reached``
            (number of seeds that reached it), ``megabytes_sent`` (both ways, per run), ``epsilon`` (privacy loss; NaN
            without differential privacy, infinite without noise). For regression, every name has ``r2`` in place of
            ``accuracy``. Scores of the global model are NaN for a client strategy that has none; see
            `Result.has_global_model`.
        """
        return study_tables.summary(self, target, interval)

    @checked_arguments
    def table(self, target: float | None = None, interval: str = "t") -> pd.DataFrame:
        """Return the summary as text, one row per variant; `notes` explains it.

        With three seeds or more, means have 95 % intervals, and the column "against best" says which variants are worse
        than the best of their condition (see `test`).

        Parameters
        ----------
        target, interval
            As of `summary`.
        """
        return study_tables.table(self, target, interval)

    @property
    def notes(self) -> list[str]:
        """Lines that explain `table`."""
        return [*significance.notes(self), *self.remarks]

    @checked_arguments
    def test(
        self,
        metric: str | None = None,
        axis: str | Sequence[str] | None = None,
        reference: str | None = None,
        method: str = "t",
    ) -> pd.DataFrame:
        """Test which differences between variants hold: paired tests by seed, corrected for their number.

        Runs with the same seed have the same initial weights and, where the settings allow it, the same split and
        cohorts.

        Parameters
        ----------
        metric : str, optional
            A column of `Result.history`, compared in the last round; default the test accuracy (or R squared).
        axis : str or sequence of str, optional
            Axes whose values are compared with each other, within each combination of the other axes. Default: all but
            the dataset, the split and the attack if there are others, otherwise all.
        reference : str, optional
            Label on `axis` that all others are compared with; default: all pairs.
        method : {"t", "wilcoxon"}
            Paired t test, or Wilcoxon's signed-rank test, which needs no normal distribution, but at least six seeds to
            reach 5 %.

        Returns
        -------
        DataFrame
            A row per pair: the other axes' columns, ``variant, against, metric, test, mean, mean_against, seeds``
            (number of seeds that both have), ``difference, difference_low, difference_high`` (95 % interval, Student's
            t), ``effect_size, effect_size_low, effect_size_high`` (Hedges' g_z, see
            `fedsim.statistics.paired.effect_sizes`), ``statistic, p, p_holm`` (corrected by Holm's method for all
            rows), ``holds`` (whether ``p_holm`` is below 5 %), ``note``. Intervals are those of single comparisons.
            What is not defined is NaN, and the note says why; fewer than three seeds have differences only.

        Raises
        ------
        ConfigError
            An argument is not allowed.
        """
        return significance.paired_tests(self, metric, axis, reference, method)

    @checked_arguments
    def ranks(self, axis: str | Sequence[str] | None = None, metric: str | None = None) -> pd.DataFrame:
        """Rank the values of an axis within each condition, and test the mean ranks (Demšar 2006).

        A condition is a combination of the other axes, such as a split; its scores are means over seeds. Values without
        any score are left out, and then conditions in which one is missing. The best value is the smallest of a loss or
        a cost, and otherwise the largest, also of a metric of your own.

        Parameters
        ----------
        axis, metric
            As of `test`.

        Returns
        -------
        DataFrame
            A row per value, the best first: ``variant, metric, conditions`` (their number), ``mean_rank, behind_best,
            critical_difference`` (Nemenyi's at 5 %), ``worse_than_best`` (whether a mean rank is behind the best by the
            critical difference), ``friedman, p`` (see `fedsim.statistics.ranks`).

        Raises
        ------
        ConfigError
            There are fewer than two values or conditions, or an argument is not allowed.
        """
        return significance.mean_ranks(self, axis, metric)

    @checked_arguments
    def time_to_target(self, target: float | None = None) -> pd.DataFrame:
        """Return rounds, megabytes and seconds to a test accuracy, as censored data.

        A run that ends before it reaches the target counts as one that would have needed longer (Kaplan-Meier), also if
        early stopping ended it. A run that diverged counts as one that never reaches it.

        Parameters
        ----------
        target : float, optional
            As of `summary`.

        Returns
        -------
        DataFrame
            A row per quantity and variant: the axes' columns, ``quantity, target, seeds, reached`` (number of seeds),
            ``median, later_than, low, high`` (95 % interval; a median that is not known is NaN, and later than
            ``later_than``), ``restricted_mean`` (up to the horizon), ``horizon`` (the shortest run of a variant
            of which not all reached the target). See `fedsim.statistics.censored`.
        """
        goal = self.target if target is None else check_real("target", target, high=1)
        return time_to_target.time_to_target(self, goal)

    def rounds(self) -> pd.DataFrame:
        """Return the histories of all runs in one frame, with columns for the axes and the seed."""
        return self._concatenate("history")

    def clients(self) -> pd.DataFrame:
        """Return the clients' evaluations of all runs in one frame, with columns for the axes and the seed."""
        return self._concatenate("clients")

    def groups(self) -> pd.DataFrame:
        """Return the counts in groups of people of all runs in one frame, with columns for the axes and the seed."""
        return self._concatenate("groups")

    def metrics(self) -> pd.DataFrame:
        """Return the metrics (`Result.metrics`) of all runs in one frame, with columns for the axes and the seed."""
        return self._concatenate("metrics")

    def _concatenate(self, name: str) -> pd.DataFrame:
        import pandas as pd

        frames: list[pd.DataFrame] = []
        for variant in self.variants:
            for result in variant.results:
                frame = getattr(result, name).copy()
                for place, (axis, label) in enumerate([*variant.labels.items(), ("seed", result.experiment.seed)]):
                    frame.insert(place, axis, label)
                frames.append(frame)
        widest = max(frames, key=lambda frame: len(frame.columns))  # clients have names in some variants only
        return pd.concat(frames, ignore_index=True)[list(widest)]

    @checked_arguments
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the study into a directory, as `compare` does with a directory: its runs, their index and the tables.

        Parameters
        ----------
        directory : path
            Created if it does not exist. Results that it has already are not written again. `compare` runs such a study
            anew, because the callbacks and the code with which it was made are not known.

        Raises
        ------
        ConfigError
            The directory cannot be written.
        """
        from fedsim.study.store import save_study

        save_study(self, directory)

    @classmethod
    @checked_arguments
    def load(cls, directory: str | os.PathLike[str], modules: Sequence[str] = ()) -> Study:
        """Return the study in a directory, with the runs that are finished.

        Parameters
        ----------
        directory : path
        modules : sequence of str
            As for `Result.load`.

        Raises
        ------
        ConfigError
            The directory has no study, no run of it is finished, or a file is damaged.
        """
        from fedsim.study.result_files import INDEX
        from fedsim.study.store import TUNING, load_runs, read_remarks

        check_path("directory", directory)
        path, tuning = Path(directory), Path(directory) / TUNING
        study = cls.of(*load_runs(path, modules))
        is_tuned = any(axis.startswith(TUNED) for axis in study.variants[0].labels) and (tuning / INDEX).is_file()
        return replace(study, remarks=read_remarks(path), tuning=cls.load(tuning, modules) if is_tuned else None)

    @classmethod
    def of(
        cls,
        results: Iterable[tuple[Mapping[str, str], Result]],
        diverged: Iterable[tuple[Mapping[str, str], int]] = (),
    ) -> Study:
        """Return the study of labelled results; those with the same labels are the seeds of one variant.

        Parameters
        ----------
        results : iterable of (labels, Result)
        diverged : iterable of (labels, int)
            Seeds whose runs diverged. Variants of which all did are left out.
        """
        variants: dict[tuple[str, ...], Variant] = {}
        for labels, result in results:
            before = variants.get(tuple(labels.values()), Variant(labels, ()))
            variants[tuple(labels.values())] = Variant(labels, (*before.results, result))
        for labels, seed in diverged:
            if variant := variants.get(tuple(labels.values())):
                variants[tuple(labels.values())] = replace(variant, diverged=(*variant.diverged, seed))
        return cls(tuple(variants.values()))

    @checked_arguments
    def to_csv(self, directory: str | os.PathLike[str]) -> None:
        """Write the tables of `files` to a folder, which is created if needed; each file is written atomically."""
        check_path("directory", directory)
        for name in self.files:
            write_csv(Path(directory) / name, study_tables.TABLES[name][1](self))

    @property
    def files(self) -> list[str]:
        """The files of `to_csv`: ``rounds.csv``, ``clients.csv``, ``summary.csv``.

        With three seeds and two variants also ``tests.csv``; with two conditions ``ranks.csv``; if clients evaluated,
        ``fairness.csv``; with `Experiment.sensitive`, ``groups.csv``; with `Experiment.metrics`, ``metrics.csv``.
        """
        return [name for name, (present, _) in study_tables.TABLES.items() if present(self)]

    @property
    def has_global_model(self) -> bool:
        """Whether any variant has a global model; see `Result.has_global_model`."""
        return any(variant.has_global_model for variant in self.variants)

    @property
    def tested(self) -> bool:
        """Whether there are enough variants and seeds to test differences."""
        return len(self.variants) > 1 and any(len(v.results) >= MIN_SEEDS for v in self.variants)

    @property
    def ranked(self) -> bool:
        """Whether there are enough variants and conditions for `ranks`."""
        return min(significance.scores_by_condition(self)[1].shape) > 1

    @property
    def evaluated(self) -> bool:
        """Whether any clients evaluated on their own examples."""
        return any(bool(r.history[f"local_{self.score}"].notna().any()) for v in self.variants for r in v.results)

    @property
    def counted_groups(self) -> bool:
        """Whether predictions were counted in groups of people."""
        return any(len(r.groups) for v in self.variants for r in v.results)

    @property
    def has_metrics(self) -> bool:
        """Whether the runs have metrics besides the loss and the accuracy."""
        return any(len(r.metrics) for v in self.variants for r in v.results)

    @property
    def measured_drift(self) -> bool:
        """Whether there is client drift to plot, which secure aggregation hides."""
        from fedsim.report.plots import DRIFTS

        return any(bool(r.history[list(DRIFTS)].notna().any(axis=None)) for v in self.variants for r in v.results)

    @property
    def score(self) -> str:
        """The measured score: ``"accuracy"``, or ``"r2"`` for real-valued targets."""
        return self.variants[0].results[0].score

    def _check_evaluated(self) -> None:
        """Raise ConfigError if no client evaluated."""
        if not self.evaluated:
            raise ConfigError("no client evaluated on its own examples; set fraction_evaluate")

    @checked_arguments
    def plot(self, path: str | os.PathLike[str], evaluation: str = "test") -> None:
        """Plot accuracy by round, a line per variant with its 95 % interval over seeds, as PNG, SVG or PDF.

        Parameters
        ----------
        path : path
        evaluation : {"test", "local"}
            Accuracy of the global model on the test set, or of the clients' models on their own examples.

        Raises
        ------
        ConfigError
            `evaluation` is another word, it is ``"local"`` and no client evaluated, or it is ``"test"`` and no
            variant has a global model.
        """
        from fedsim.report.plots import SCORES, plot_accuracy

        check_choice("evaluation", evaluation, SCORES)
        if evaluation == "local":
            self._check_evaluated()
        elif not self.has_global_model:
            raise ConfigError("no variant has a global model to plot the test scores of; allowed: evaluation 'local'")
        plot_accuracy(self._histories, path, self._about, self.score, evaluation)

    @checked_arguments
    def plot_drift(self, path: str | os.PathLike[str]) -> None:
        """Plot client drift by round: drift, cosine, diversity, and weight divergence where measured."""
        from fedsim.report.plots import plot_drift

        plot_drift(self._histories, path, self._about)

    @checked_arguments
    def plot_score_by_skew(self, path: str | os.PathLike[str]) -> None:
        """Plot each client's accuracy on its own examples against its label skew; ConfigError if none evaluated."""
        from fedsim.report.plots import plot_score_by_skew

        self._check_evaluated()
        points = [(v.title, np.concatenate([_skew_and_score(r) for r in v.results])) for v in self.variants]
        plot_score_by_skew(points, path, self._dataset, self.score)

    @checked_arguments
    def plot_splits(self, path: str | os.PathLike[str], kind: str = "bars") -> None:
        """Plot the label distribution per client: a panel per variant, split with its first seed.

        Labels are numbered where the variants' datasets have different label names.

        Parameters
        ----------
        path : path
        kind : {"bars", "bubbles", "sizes"}
            See `fedsim.report.split_plots.plot_splits`.
        """
        from fedsim.report.split_plots import plot_splits

        counts, clients, names = {}, {}, set()
        for variant in self.variants:
            experiment = variant.results[0].experiment
            dataset = experiment.load_data()
            federated = experiment.split.federate(dataset, experiment.seed)
            counts[variant.title], clients[variant.title] = federated.label_counts(), federated.client_names
            names.add(tuple(dataset.label_names))
        plot_splits(counts, path, self._dataset, kind, names.pop() if len(names) == 1 else (), clients)

    @property
    def _histories(self) -> list[tuple[str, list[pd.DataFrame]]]:
        return [(v.title, [r.history for r in v.results]) for v in self.variants]

    @property
    def _dataset(self) -> str:
        """The names of the variants' datasets."""
        datasets = [v.results[0].experiment.dataset for v in self.variants]
        return " and ".join(dict.fromkeys(data.title(d) if isinstance(d, str) else d.name for d in datasets))

    @property
    def _about(self) -> str:
        """The dataset and, if all variants have the same, the number of clients."""
        counts = {getattr(v.results[0].experiment.split, "num_clients", None) for v in self.variants}
        clients = counts.pop() if len(counts) == 1 else None
        return f"{self._dataset}, {clients} clients" if clients else self._dataset


def _skew_and_score(result: Result) -> NDArray[Any]:
    """Return label skew and score of each client of the last evaluated round, shape (clients, 2)."""
    from fedsim.splits.measure import skew

    federated = result.experiment.federate(result.experiment.load_data())
    emd = skew(federated).set_index("client")["emd"]
    last = result.clients[result.clients["round"] == result.clients["round"].max()]
    return np.column_stack([emd.reindex(last["partition_id"]), last[result.score]])
