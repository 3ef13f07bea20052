"""A study: the results of many experiments, with statistics, tables and plots."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data
from fedsim.checks import check_choice, check_path, check_real
from fedsim.errors import ConfigError
from fedsim.files import write_csv
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
        """All labels in one line."""
        return ", ".join(self.labels.values())

    @property
    def title(self) -> str:
        """The label, or "all" if there are no axes."""
        return self.label or "all"


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

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=bool(self.variants[0].labels))
        return html

    @property
    def target(self) -> float:
        """The default target: 95 % of the best variant's mean final accuracy (or R squared), rounded to 2 decimals."""
        best = float(max(np.mean([r.final_score for r in v.results]) for v in self.variants))
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
            last round; NaN without a targeted attack), ``final_loss, target, rounds_to_target`` (mean
            over the seeds that reached it), ``reached`` (their number), ``megabytes_sent`` (both ways, per run),
            ``epsilon`` (privacy loss; NaN without differential privacy, infinite without noise).
            For regression, every name has ``r2`` in place of ``accuracy``.
        """
        import pandas as pd

        goal, score = self.target if target is None else check_real("target", target), self.score
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
                    "final_loss": float(np.mean([r.history["test_loss"].iloc[-1] for r in variant.results])),
                    "target": goal,
                    "rounds_to_target": float(np.mean(reached)) if reached else math.nan,
                    "reached": len(reached),
                    "megabytes_sent": float(np.mean(sent)) / 1e6,
                    "epsilon": float(np.mean([r.history["epsilon"].iloc[-1] for r in variant.results])),
                }
            )
        return pd.DataFrame(rows)

    def table(self, target: float | None = None) -> pd.DataFrame:
        """Return the summary as text: one row per variant, accuracy with its 95 % interval over seeds."""
        import pandas as pd

        summary = self.summary(target)
        rounds = []
        for row in summary.itertuples():
            mean, reached, seeds = float(row.rounds_to_target), int(row.reached), int(row.seeds)
            share = "" if reached == seeds else f" ({reached} of {seeds} seeds)"
            rounds.append(f"{mean:.1f}{share}" if reached else "not reached")
        shown = {axis: summary[axis] for axis in self.variants[0].labels}
        name = {"accuracy": "accuracy", "r2": "R2"}[self.score]
        shown[f"final {name}"] = _with_interval(summary, f"final_{self.score}")
        if self.evaluated:
            shown[f"local {name}"] = _with_interval(summary, f"local_{self.score}")
        if summary["attack_success"].notna().any():
            shown["attack success"] = _with_interval(summary, "attack_success")
        shown[f"best {name}"] = [f"{m:.3f}" for m in summary[f"best_{self.score}"]]
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

    def _concatenate(self, name: str) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for variant in self.variants:
            for result in variant.results:
                frame = getattr(result, name).copy()
                for place, (axis, label) in enumerate([*variant.labels.items(), ("seed", result.experiment.seed)]):
                    frame.insert(place, axis, label)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def to_csv(self, directory: str | os.PathLike[str]) -> None:
        """Write ``rounds.csv``, ``clients.csv`` and ``summary.csv``.

        If clients evaluated, also ``fairness.csv``, and with `Experiment.sensitive` ``groups.csv``. Each is written
        atomically; the folder is created if needed.
        """
        from fedsim.fairness import client_fairness

        check_path("directory", directory)
        tables = {"rounds": self.rounds(), "clients": self.clients(), "summary": self.summary()}
        if self.evaluated:
            tables["fairness"] = client_fairness(self)
        if self.counted_groups:
            tables["groups"] = self.groups()
        for name, frame in tables.items():
            write_csv(Path(directory) / f"{name}.csv", frame)

    @property
    def evaluated(self) -> bool:
        """Whether any clients evaluated on their own examples."""
        return any(bool(r.history[f"local_{self.score}"].notna().any()) for v in self.variants for r in v.results)

    @property
    def counted_groups(self) -> bool:
        """Whether predictions were counted in groups of people."""
        return any(len(r.groups) for v in self.variants for r in v.results)

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
            `evaluation` is another word, or it is ``"local"`` and no client evaluated.
        """
        from fedsim.report.plots import SCORES, plot_accuracy

        check_choice("evaluation", evaluation, SCORES)
        if evaluation == "local":
            self._check_evaluated()
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

        counts, names = {}, set()
        for variant in self.variants:
            experiment = variant.results[0].experiment
            dataset = experiment.load_data()
            counts[variant.title] = experiment.split.federate(dataset, experiment.seed).label_counts()
            names.add(tuple(dataset.label_names))
        plot_splits(counts, path, self._dataset, kind, names.pop() if len(names) == 1 else ())

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
