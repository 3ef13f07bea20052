"""A study: the results of many experiments, with statistics, tables and plots."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data
from fedsim.checks import check_choice
from fedsim.errors import ConfigError
from fedsim.files import write_csv
from fedsim.models.metrics import metric_title, scalar_metrics
from fedsim.report.intervals import half_width, with_interval
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
    """

    labels: Mapping[str, str]
    results: tuple[Result, ...]

    @property
    def label(self) -> str:
        """All labels in one line; numbers with the name of their setting."""
        return ", ".join(_titled(axis, label) for axis, label in self.labels.items())

    @property
    def title(self) -> str:
        """The label, or "all" if there are no axes."""
        return self.label or "all"

    @property
    def has_global_model(self) -> bool:
        """Whether the runs have a global model; see `Result.has_global_model`."""
        return all(result.has_global_model for result in self.results)


def _titled(axis: str, label: str) -> str:
    """Return a label, with the last part of the axis' name if it is a plain value, as in ``lr=0.1``."""
    is_name = label[:1].isalpha() and label not in ("True", "False", "None", "nan", "inf")
    return label if is_name else f"{axis.rpartition('.')[2]}={label}"


@dataclass(frozen=True, repr=False)
class Study:
    """The results of many experiments.

    Attributes
    ----------
    variants : tuple of Variant
    """

    variants: tuple[Variant, ...]

    def __repr__(self) -> str:
        runs = sum(len(v.results) for v in self.variants)
        return f"Study({', '.join(v.title for v in self.variants)}; runs: {runs})"

    def __str__(self) -> str:
        """Return `table` with all of its columns; those for which a terminal is too narrow follow below."""
        from fedsim.report.terminal import to_text

        return to_text(self.table())

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=bool(self.variants[0].labels))
        return html

    @property
    def target(self) -> float:
        """The default target: 95 % of the best variant's mean final accuracy (or R squared), rounded to 2 decimals.

        Variants without a global model do not count; NaN if no variant has one.
        """
        if not self.has_global_model:
            return math.nan
        best = float(np.nanmax([np.mean([r.final_score for r in v.results]) for v in self.variants]))
        return round(best - (1 - TARGET_SHARE) * abs(best), 2) + 0.0  # never -0.0

    def summary(self, target: float | None = None) -> pd.DataFrame:
        """Return one row per variant, as numbers.

        Parameters
        ----------
        target : float, optional
            Test accuracy to which rounds are counted; default `Study.target`.

        Returns
        -------
        DataFrame
            The axes' columns, then ``seeds, final_accuracy, final_accuracy_ci95`` (half width), ``best_accuracy``
            (mean over seeds of each run's best round), ``local_accuracy, local_accuracy_ci95`` (of clients on their
            own examples, in the last round; NaN if none evaluated), ``attack_success, attack_success_ci95`` (in the
            last round; NaN without a targeted attack), for each of `Experiment.metrics` that is a number, such as
            macro_f1, ``final_macro_f1, final_macro_f1_ci95`` (on the test set), ``final_loss, target,
            rounds_to_target`` (mean over the seeds that reached it), ``reached`` (their number), ``megabytes_sent``
            (both ways, per run), ``epsilon`` (privacy loss; NaN without differential privacy, infinite without noise).
            For regression, every name has ``r2`` in place of ``accuracy``. Scores of the global model are NaN for
            a client strategy with private parameters, which has none.
        """
        import pandas as pd

        goal, score = self.target if target is None else target, self.score
        rows = []
        for variant in self.variants:
            final = [r.final_score for r in variant.results]
            local = [float(r.history[f"local_{score}"].iloc[-1]) for r in variant.results]
            success = [float(r.history["attack_success"].iloc[-1]) for r in variant.results]
            reached = [n for n in (r.rounds_to(goal) for r in variant.results) if not math.isnan(n)]
            sent = [float((r.history["bytes_up"] + r.history["bytes_down"]).sum()) for r in variant.results]
            rows.append(
                {
                    **variant.labels,
                    "seeds": len(final),
                    f"final_{score}": float(np.mean(final)),
                    f"final_{score}_ci95": half_width(final),
                    f"best_{score}": float(np.mean([r.test_scores.max() for r in variant.results])),
                    f"local_{score}": float(np.mean(local)),
                    f"local_{score}_ci95": half_width(local),
                    "attack_success": float(np.mean(success)),
                    "attack_success_ci95": half_width(success),
                    **self._final_metrics(variant),
                    "final_loss": float(np.mean([r.history["test_loss"].iloc[-1] for r in variant.results])),
                    "target": goal,
                    "rounds_to_target": float(np.mean(reached)) if reached else math.nan,
                    "reached": len(reached),
                    "megabytes_sent": float(np.mean(sent)) / 1e6,
                    "epsilon": float(np.mean([r.history["epsilon"].iloc[-1] for r in variant.results])),
                }
            )
        return pd.DataFrame(rows)

    @property
    def _metric_names(self) -> list[str]:
        """The metrics of `Experiment.metrics` that are numbers, of all variants."""
        found = (r.experiment.metrics for v in self.variants for r in v.results)
        return list(dict.fromkeys(name for metrics in found for name in scalar_metrics(metrics)))

    def _final_metrics(self, variant: Variant) -> dict[str, float]:
        """Return each metric of the global models after the last round: the mean and the half width over seeds."""
        found: dict[str, float] = {}
        for name in self._metric_names:
            values = [float(r.history.get(f"test_{name}", math.nan * r.test_scores)[r.rounds]) for r in variant.results]
            found |= {f"final_{name}": float(np.mean(values)), f"final_{name}_ci95": half_width(values)}
        return found

    def table(self, target: float | None = None) -> pd.DataFrame:
        """Return the summary as text: one row per variant, accuracy with its 95 % interval over seeds."""
        import pandas as pd

        summary = self.summary(target)
        rounds = []
        for row, variant in zip(summary.itertuples(), self.variants, strict=True):
            mean, reached, seeds = float(row.rounds_to_target), int(row.reached), int(row.seeds)
            share = "" if reached == seeds else f" ({reached} of {seeds} seeds)"
            never = "not reached" if variant.has_global_model else ""
            rounds.append(f"{mean:.1f}{share}" if reached else never)
        shown = {axis: summary[axis] for axis in self.variants[0].labels}
        name = {"accuracy": "accuracy", "r2": "R2"}[self.score]
        if self.has_global_model:
            shown[f"final {name}"] = _with_interval(summary, f"final_{self.score}")
        for metric in self._metric_names:
            shown[f"final {metric_title(metric)}"] = _with_interval(summary, f"final_{metric}")
        if self.evaluated:
            shown[f"local {name}"] = _with_interval(summary, f"local_{self.score}")
        if summary["attack_success"].notna().any():
            shown["attack success"] = _with_interval(summary, "attack_success")
        if self.has_global_model:
            shown[f"best {name}"] = ["" if np.isnan(m) else f"{m:.3f}" for m in summary[f"best_{self.score}"]]
            shown[f"rounds to {summary['target'].iloc[0]:.2f}"] = rounds
        shown["MB sent"] = [f"{m:.1f}" for m in summary["megabytes_sent"]]
        if summary["epsilon"].notna().any():
            shown["epsilon"] = ["" if np.isnan(e) else f"{e:.2f}" for e in summary["epsilon"]]
        frame = pd.DataFrame(shown)
        return frame.set_index(list(self.variants[0].labels)) if self.variants[0].labels else frame

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

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the study into a directory, as `compare` does with a directory: its runs, their index and the tables.

        Parameters
        ----------
        directory : path
            Created if it does not exist. Runs that it has already are not written again.

        Raises
        ------
        ConfigError
            The directory cannot be written.
        """
        from fedsim.study.store import save_study

        save_study(self, directory)

    @classmethod
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
        from fedsim.study.store import load_results

        return cls.of(load_results(Path(directory), modules))

    @classmethod
    def of(cls, results: Iterable[tuple[Mapping[str, str], Result]]) -> Study:
        """Return the study of labelled results; those with the same labels are the seeds of one variant."""
        variants: dict[tuple[str, ...], Variant] = {}
        for labels, result in results:
            before = variants.get(tuple(labels.values()), Variant(labels, ()))
            variants[tuple(labels.values())] = Variant(labels, (*before.results, result))
        return cls(tuple(variants.values()))

    def to_csv(self, directory: str | os.PathLike[str]) -> None:
        """Write `tables` as CSV files, each atomically; the folder is created if needed."""
        for name, frame in self.tables().items():
            write_csv(Path(directory) / name, frame)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by the name of their file.

        ``rounds.csv``, ``clients.csv`` and ``summary.csv``; if clients evaluated, also ``fairness.csv``, with
        `Experiment.sensitive` ``groups.csv``, and with `Experiment.metrics` ``metrics.csv``.
        """
        from fedsim.fairness import client_fairness

        tables = {"rounds.csv": self.rounds(), "clients.csv": self.clients(), "summary.csv": self.summary()}
        if self.evaluated:
            tables["fairness.csv"] = client_fairness(self)
        if self.counted_groups:
            tables["groups.csv"] = self.groups()
        if self.has_metrics:
            tables["metrics.csv"] = self.metrics()
        return tables

    @property
    def has_global_model(self) -> bool:
        """Whether any variant has a global model; see `Result.has_global_model`."""
        return any(variant.has_global_model for variant in self.variants)

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

    def plot_drift(self, path: str | os.PathLike[str]) -> None:
        """Plot client drift by round: drift, cosine, diversity, and weight divergence where measured."""
        from fedsim.report.plots import plot_drift

        plot_drift(self._histories, path, self._about)

    def plot_score_by_skew(self, path: str | os.PathLike[str]) -> None:
        """Plot each client's accuracy on its own examples against its label skew; ConfigError if none evaluated."""
        from fedsim.report.plots import plot_score_by_skew

        self._check_evaluated()
        points = [(v.title, np.concatenate([_skew_and_score(r) for r in v.results])) for v in self.variants]
        plot_score_by_skew(points, path, self._dataset, self.score)

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


def _with_interval(summary: pd.DataFrame, name: str) -> list[str]:
    return list(map(with_interval, summary[name], summary[f"{name}_ci95"]))
