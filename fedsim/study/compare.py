"""A study: one experiment varied along axes and over seeds, and what the comparison says."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import data, text
from fedsim.checks import check_choice, check_integer, check_seed, shorten, suggest, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.report.intervals import half_width
from fedsim.study.experiment import Experiment
from fedsim.study.progress import ProgressBar
from fedsim.study.result import Result

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.engines.engine import Engine
    from fedsim.study.callbacks import Callback

#: What a study leaves in its directory: the tables of `Study.to_csv`, and the pictures that ``fedsim compare`` draws.
TABLES = ("rounds.csv", "clients.csv", "summary.csv")
PICTURES = ("accuracy.png", "drift.png", "splits.png", "local_accuracy.png", "accuracy_by_skew.png")
#: While a study runs, at most this share of the time goes into writing the tables of what is finished.
WRITING_SHARE = 0.1
#: `Study.table`'s default target: this share of the best variant's mean final accuracy.
TARGET_SHARE = 0.95
#: The most seeds of a study, where their number is given.
MOST_SEEDS = 10_000


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


@dataclass(frozen=True)
class Study:
    """Many experiments' results, compared.

    Attributes
    ----------
    variants : tuple of Variant
    """

    variants: tuple[Variant, ...]

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
            Test accuracy whose first passing is counted; default `Study.target`.

        Returns
        -------
        DataFrame
            The axes' columns, then ``seeds, final_accuracy, final_accuracy_ci95`` (half width), ``best_accuracy``
            (mean over seeds of each run's best round), ``local_accuracy, local_accuracy_ci95`` (of clients on their
            own examples, in the last round; NaN if none evaluated), ``final_loss, target, rounds_to_target`` (mean
            over the seeds that reached it), ``reached`` (their number), ``megabytes_sent`` (both ways, per run).
            For regression ``r2`` stands for ``accuracy`` in every name.
        """
        import pandas as pd

        goal, score = self.target if target is None else target, self.score
        rows = []
        for variant in self.variants:
            final = [r.final_score for r in variant.results]
            local = [float(r.history[f"local_{score}"].iloc[-1]) for r in variant.results]
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
                    "final_loss": float(np.mean([r.history["test_loss"].iloc[-1] for r in variant.results])),
                    "target": goal,
                    "rounds_to_target": float(np.mean(reached)) if reached else math.nan,
                    "reached": len(reached),
                    "megabytes_sent": float(np.mean(sent)) / 1e6,
                }
            )
        return pd.DataFrame(rows)

    def table(self, target: float | None = None) -> pd.DataFrame:
        """Return the summary for reading: one row per variant, accuracy with its 95 % interval over seeds."""
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
        shown[f"best {name}"] = [f"{m:.3f}" for m in summary[f"best_{self.score}"]]
        shown[f"rounds to {summary['target'].iloc[0]:.2f}"] = rounds
        shown["MB sent"] = [f"{m:.1f}" for m in summary["megabytes_sent"]]
        frame = pd.DataFrame(shown)
        return frame.set_index(list(self.variants[0].labels)) if self.variants[0].labels else frame

    def rounds(self) -> pd.DataFrame:
        """Return every run's history in one tidy frame, with the axes and the seed in front."""
        return self._tidy("history")

    def clients(self) -> pd.DataFrame:
        """Return every run's per-client rows in one tidy frame, with the axes and the seed in front."""
        return self._tidy("clients")

    def _tidy(self, name: str) -> pd.DataFrame:
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
        """Write ``rounds.csv``, ``clients.csv`` and ``summary.csv`` into a folder, made if need be; each whole."""
        from fedsim.files import write_csv

        for name, frame in (("rounds", self.rounds()), ("clients", self.clients()), ("summary", self.summary())):
            write_csv(Path(directory) / f"{name}.csv", frame)

    @property
    def evaluated(self) -> bool:
        """Whether any clients evaluated on examples of their own."""
        return any(bool(r.history[f"local_{self.score}"].notna().any()) for v in self.variants for r in v.results)

    @property
    def score(self) -> str:
        """What is measured: ``"accuracy"``, or ``"r2"`` where targets are real numbers."""
        return self.variants[0].results[0].score

    def need_evaluation(self) -> None:
        """Raise ConfigError if no client evaluated."""
        if not self.evaluated:
            raise ConfigError("no client evaluated on its own examples; set fraction_evaluate")

    def plot(self, path: str | os.PathLike[str], whose: str = "test") -> None:
        """Draw accuracy by round, a line per variant with its 95 % band over seeds, as PNG, SVG or PDF.

        Parameters
        ----------
        path : path
        whose : {"test", "local"}
            Of the global model on the test set; of what clients use, on their own examples.

        Raises
        ------
        ConfigError
            Another word, or local accuracy where no client evaluated.
        """
        from fedsim.report.plots import SCORES, plot_accuracy

        check_choice("whose", whose, SCORES)
        if whose == "local":
            self.need_evaluation()
        plot_accuracy(self, path, whose)

    def plot_drift(self, path: str | os.PathLike[str]) -> None:
        """Draw how far clients went apart by round: drift, cosine, diversity, and weight divergence where measured."""
        from fedsim.report.plots import plot_drift

        plot_drift(self, path)

    def plot_score_by_skew(self, path: str | os.PathLike[str]) -> None:
        """Draw each client's accuracy on its own examples against its label skew; ConfigError if none evaluated."""
        from fedsim.report.plots import plot_score_by_skew

        plot_score_by_skew(self, path)

    def plot_splits(self, path: str | os.PathLike[str], kind: str = "bars") -> None:
        """Draw who holds which labels: a panel per variant, as its first seed divided the data.

        Parameters
        ----------
        path : path
        kind : {"bars", "bubbles", "sizes"}
            See `fedsim.report.split_plots.plot_splits`.
        """
        from fedsim.report.split_plots import plot_splits

        counts = {}
        for variant in self.variants:
            experiment = variant.results[0].experiment
            dataset = experiment.load_data()
            counts[variant.label] = experiment.split.federate(dataset, experiment.seed).label_counts()
        plot_splits(counts, path, dataset.name, kind, dataset.label_names)


def _with_interval(summary: pd.DataFrame, name: str) -> list[str]:
    pairs = zip(summary[name], summary[f"{name}_ci95"], strict=True)
    return [f"{m:.3f}" + ("" if math.isnan(h) else f" ± {h:.3f}") for m, h in pairs]


def variants(base: Experiment, **axes: Sequence[Any]) -> list[tuple[dict[str, str], Experiment]]:
    """Return every combination of the axes' values as (labels, experiment).

    Raises
    ------
    ConfigError
        An axis that is no setting of an experiment, has no values, or has a value that is not allowed.
    """
    known = [f.name for f in fields(Experiment)]
    axes = {axis: to_builtin_sequence(values) for axis, values in axes.items()}
    labels: dict[str, list[str]] = {}
    for axis, values in axes.items():
        if axis not in known or axis == "seed":
            raise ConfigError(f"compare cannot vary {axis!r}; allowed: {', '.join(known)}{suggest(axis, known)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"{axis} is {shorten(values)}; compare wants a list of values, at least one")
        shorts = [_short(v) for v in values]
        labels[axis] = shorts if len(set(shorts)) == len(shorts) else [text.short(v) for v in values]
    combinations = []
    for chosen in itertools.product(*(range(len(v)) for v in axes.values())):
        pairs = list(zip(axes, chosen, strict=True))
        experiment = replace(base, **{axis: axes[axis][k] for axis, k in pairs})
        combinations.append(({axis: labels[axis][k] for axis, k in pairs}, experiment))
    return combinations


def _short(value: Any) -> str:
    """Label a value of an axis."""
    if isinstance(value, partial):
        return f"{_short(value.func)}({', '.join(f'{k}={v!r}' for k, v in value.keywords.items())})"
    return getattr(value, "__name__", None) or str(value)


def _seeds(seeds: Any, first: int) -> Sequence[int]:
    """Return a study's seeds: those given, or so many from the experiment's own on."""
    seeds = to_builtin_sequence(seeds)
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        return range(first, first + check_integer("seeds", seeds, 1, MOST_SEEDS))
    if not seeds:
        raise ConfigError("seeds is empty; allowed: a number of seeds, or a list of them")
    for seed in seeds:
        check_seed("seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds is {shorten(seeds)}; allowed: each seed once")
    return seeds


def _check_baselines(names: Any) -> None:
    from fedsim.study.baselines import BASELINES

    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"baselines is {shorten(names)}; allowed: a list of {', '.join(BASELINES)}")
    for name in names:
        check_choice("baselines", name, BASELINES)


def _baselines(base: Experiment, names: Sequence[str], axes: Sequence[str]) -> list[tuple[dict[str, str], Experiment]]:
    from fedsim.study.baselines import BASELINES

    first, *others = axes
    return [({first: name, **dict.fromkeys(others, "-")}, BASELINES[name](base)) for name in names]


def compare(
    base: Experiment,
    *,
    seeds: int | Sequence[int] = 1,
    baselines: Sequence[str] = (),
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    workers: int | None = None,
    verbose: bool = False,
    engine: str | Callable[..., Engine] = "in-process",
    directory: str | os.PathLike[str] | None = None,
    **axes: Sequence[Any],
) -> Study:
    """Run an experiment for every combination of the axes' values and every seed.

    Parameters
    ----------
    base : Experiment
    seeds : int or sequence of int
        A number n means ``base.seed, ..., base.seed + n - 1``.
    baselines : sequence of {"centralised", "data-parallel"}
        What to run besides, of `base`; see `fedsim.study.baselines`.
    progress : bool, optional
        Show a progress bar; default: only on a terminal.
    callbacks : sequence of Callback
        Called in each run; see `fedsim.study.callbacks`.
    workers : int, optional
        Threads.
    verbose : bool
        Show Flower's log.
    engine : {"in-process", "ray"} or callable
        Where clients run, as for `Experiment.run`.
    directory : path, optional
        Where to write the tables of `Study.to_csv`: while the study runs and if it ends early, by an error or Ctrl-C,
        of the runs that are finished; at the end of all. Earlier results there are moved to a numbered folder beside
        it before the first is written.
    **axes : sequence
        Setting -> values, e.g. ``split=[IID(50), Dirichlet(50, alpha=0.1)]``.

    Returns
    -------
    Study

    Examples
    --------
    >>> from fedsim import Experiment, compare
    >>> from fedsim.splits import IID, Shards
    >>> study = compare(Experiment(rounds=2), split=[IID(20), Shards(20, per_client=2)], seeds=2)
    >>> [variant.label for variant in study.variants]
    ['IID', 'Shards(2)']
    """
    seeds = _seeds(seeds, base.seed)
    _check_baselines(baselines)
    chosen = variants(base, **axes)
    if baselines:
        if not axes:
            chosen = [({"training": "federated"}, base)]
        chosen += _baselines(base, baselines, list(axes) or ["training"])
    runs = [(labels, [replace(e, seed=seed) for seed in seeds]) for labels, e in chosen]
    loaded: dict[tuple[str, str], data.Dataset] = {}
    total = sum(e.rounds for _, experiments in runs for e in experiments)
    found: list[Variant] = []
    with ExitStack() as stack:
        files = _StudyFiles(stack, directory, sum(len(e) for _, e in runs)) if directory is not None else None
        bar = stack.enter_context(ProgressBar(total, progress))
        for labels, experiments in runs:
            found.append(Variant(labels, ()))
            for experiment in experiments:
                # Sorted-out data is shared by all runs; the result keeps the experiment as it was written.
                if isinstance(experiment.dataset, str):
                    key = (experiment.dataset, str(experiment.data_dir))
                    if key not in loaded:
                        loaded[key] = experiment.load_data()
                    ready = replace(experiment, dataset=loaded[key])
                else:
                    ready = experiment
                bar.describe(", ".join([*labels.values(), f"seed {experiment.seed}"]))
                result = ready.run(workers=workers, callbacks=[bar, *callbacks], verbose=verbose, engine=engine)
                if found[0].results and result.score != found[0].results[0].score:
                    raise ConfigError("dataset mixes labels and real-valued targets; compare them in separate studies")
                found[-1] = replace(found[-1], results=(*found[-1].results, replace(result, experiment=experiment)))
                if files:
                    files.add(found)
    return Study(tuple(found))


class _StudyFiles:
    """Writes the tables of a study's finished runs: now and then while it runs, and when `stack` is left.

    Parameters
    ----------
    stack : ExitStack
        Of the study; holds the directory's lock.
    directory : path
    total : int
        Runs of the whole study.
    """

    def __init__(self, stack: ExitStack, directory: str | os.PathLike[str], total: int) -> None:
        from fedsim.study.directory import ResultsDirectory

        self._folder = ResultsDirectory(directory, (*TABLES, *PICTURES))
        stack.enter_context(self._folder)
        stack.push(self._leave)
        self._total, self._finished, self._written = total, 0, 0
        self._variants: tuple[Variant, ...] = ()
        self._started, self._writing = time.perf_counter(), 0.0

    def add(self, variants: Sequence[Variant]) -> None:
        """Take note of another finished run; write, unless writing has taken too long already."""
        self._finished += 1
        self._variants = tuple(v for v in variants if v.results)
        self._folder.check()
        if self._writing <= WRITING_SHARE * (time.perf_counter() - self._started):
            self._write()

    def _write(self) -> None:
        from fedsim.files import keep_earlier
        from fedsim.study.directory import notice

        begun = time.perf_counter()
        self._folder.check()
        if not self._written and (kept := keep_earlier(self._folder.path, (*TABLES, *PICTURES))):
            notice(f"kept the earlier results in {kept}")
        Study(self._variants).to_csv(self._folder.path)
        self._written = self._finished
        self._writing += time.perf_counter() - begun

    def _leave(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is finished and not written yet; after an error say what there is, and leave it to be raised."""
        from fedsim.study.directory import notice

        try:
            if self._written < self._finished:
                self._write()
        except (ConfigError, OSError):
            if kind is None:
                raise
        if kind is None:
            return
        if self._written:
            notice(
                f"the study did not end; {', '.join(TABLES)} in {self._folder.path} hold "
                f"{self._written} of its {self._total} runs"
            )
        elif not self._finished:
            notice(f"the study ended before its first run had finished; nothing was written to {self._folder.path}")
