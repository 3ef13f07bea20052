"""Comparing: one experiment is run for every combination of the axes' values and every seed, which is a study."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fedsim import data, objects
from fedsim.checks import check_choice, check_integer, check_seed, shorten, suggest, to_builtin_sequence
from fedsim.errors import ConfigError
from fedsim.study.experiment import Experiment
from fedsim.study.progress import ProgressBar
from fedsim.study.study import Study, Variant

if TYPE_CHECKING:
    from fedsim.engines.engine import Engine
    from fedsim.study.callbacks import Callback

#: What a study leaves in its directory: the tables of `Study.to_csv`, and the pictures that ``fedsim compare`` draws.
TABLES = ("rounds.csv", "clients.csv", "summary.csv")
PICTURES = ("accuracy.png", "drift.png", "splits.png", "local_accuracy.png", "accuracy_by_skew.png")
#: While a study runs, at most this share of the time goes into writing the tables of what is finished.
WRITING_SHARE = 0.1
#: The most seeds of a study, where their number is given.
MOST_SEEDS = 10_000


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
        shown = [replace(base, server=v).server for v in values] if axis == "server" else values
        shorts = [_short(v) for v in shown]
        labels[axis] = shorts if len(set(shorts)) == len(shorts) else [objects.short_repr(v) for v in shown]
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
