"""Studies: `compare` runs an experiment for every combination of the axes' values and every seed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from fedsim import data, objects
from fedsim.arguments import checked_arguments
from fedsim.checks import check_choice, check_instance, check_integer, check_seed, shorten, to_builtin_sequence
from fedsim.errors import ConfigError, named_run
from fedsim.study.baselines import BASELINES
from fedsim.study.directory import FAIRNESS, GROUPS, ResultsDirectory
from fedsim.study.experiment import Experiment
from fedsim.study.progress import ProgressBar
from fedsim.study.settings import suggest_setting
from fedsim.study.study import Study, Variant
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.engines.engine import Engine
    from fedsim.study.callbacks import Callback

#: Files of a study's directory: the tables of `Study.to_csv`, and the pictures that ``fedsim compare`` draws.
TABLES = ("rounds.csv", "clients.csv", "summary.csv")
PICTURES = ("accuracy.png", "drift.png", "splits.png", "local_accuracy.png", "accuracy_by_skew.png")
#: The largest share of a study's time that is spent on writing tables while it runs.
WRITING_SHARE = 0.1
#: The largest number of seeds.
MOST_SEEDS = 10_000


def variants(base: Experiment, **axes: Sequence[Any]) -> list[tuple[dict[str, str], Experiment]]:
    """Return every combination of the axes' values as (labels, experiment).

    Raises
    ------
    ConfigError
        An axis is not a setting of an experiment, has no values, or has a value that is not allowed.
    """
    check_axes(axes)
    axes = {axis: to_builtin_sequence(values) for axis, values in axes.items()}
    labels: dict[str, list[str]] = {}
    for axis, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"{axis} is {shorten(values)}; compare needs a list of at least one value")
        shown = [replace(base, server=v).server for v in values] if axis == "server" else values
        shorts = [_short(v) for v in shown]
        labels[axis] = shorts if len(set(shorts)) == len(shorts) else [objects.short_repr(v) for v in shown]
    combinations = zip(itertools.product(*labels.values()), itertools.product(*axes.values()), strict=True)
    return [
        (dict(zip(axes, names, strict=True)), replace(base, **dict(zip(axes, values, strict=True))))
        for names, values in combinations
    ]


def check_axes(axes: Iterable[str]) -> None:
    """Raise ConfigError if an axis is not a setting of an experiment, or is the seed."""
    known = [f.name for f in fields(Experiment) if f.name != "seed"]
    for axis in axes:
        check_choice("an axis of compare", axis, known, _suggest_axis)


def _suggest_axis(word: Any, allowed: list[str]) -> str:
    """Return a hint for a name that is not an axis, such as the plural of a setting."""
    singular = str(word).removesuffix("s")
    known = [*allowed, *(p.name for p in signature(compare).parameters.values() if p.kind is p.KEYWORD_ONLY)]
    return f"; did you mean {singular!r}?" if singular in allowed else suggest_setting(word, known)


def _short(value: Any) -> str:
    """Label a value of an axis."""
    if isinstance(value, partial):
        return f"{_short(value.func)}({', '.join(f'{k}={v!r}' for k, v in value.keywords.items())})"
    return getattr(value, "__name__", None) or str(value)


def _seeds(seeds: Any, first: int) -> Sequence[int]:
    """Return a list of seeds as it is; for a number of seeds, return that many from the experiment's own."""
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


@checked_arguments
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
        Baselines of `base` to add; see `fedsim.study.baselines`.
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
        Where to write the tables of `Study.to_csv`. They contain the runs that have finished, also while the study
        runs and if an error or Ctrl-C ends it early. Earlier results are first moved to a numbered folder beside it.
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
    check_instance("base", base, Experiment, "an Experiment")
    check_instance("callbacks", callbacks, list | tuple, "a list of callbacks")
    seeds = _seeds(seeds, base.seed)
    check_instance("baselines", baselines, list | tuple, f"a list of {', '.join(BASELINES)}")
    for name in baselines:
        check_choice("baselines", name, BASELINES)
    chosen = variants(base, **axes)
    if baselines and not axes:
        chosen = [({"training": "federated"}, base)]
    first, *others = axes or ["training"]
    chosen += [({first: name, **dict.fromkeys(others, "-")}, BASELINES[name](base)) for name in baselines]
    runs = [(labels, [replace(e, seed=seed) for seed in seeds]) for labels, e in chosen]
    load = cache(data.load)
    total = sum(e.rounds for _, experiments in runs for e in experiments)
    found: list[Variant] = []
    with ExitStack() as stack:
        folder = None
        if directory is not None:
            folder = stack.enter_context(_StudyDirectory(directory, len(seeds) * len(runs)))
        bar = stack.enter_context(ProgressBar(total, progress))
        for labels, experiments in runs:
            found.append(Variant(labels, ()))
            for experiment in experiments:
                label = ", ".join([*labels.values(), f"seed {experiment.seed}"])
                bar.describe(label)
                with named_run(label):
                    dataset = experiment.dataset
                    if isinstance(dataset, str):
                        dataset = load(dataset, experiment.data_dir)  # type: ignore[arg-type]  # PathLike is hashable
                    result = replace(experiment, dataset=dataset).run(
                        workers=workers, callbacks=[bar, *callbacks], verbose=verbose, engine=engine
                    )
                if found[0].results and result.score != found[0].results[0].score:
                    raise ConfigError("dataset mixes labels and real-valued targets; compare them in separate studies")
                found[-1] = replace(found[-1], results=(*found[-1].results, replace(result, experiment=experiment)))
                if folder:
                    folder.add(found)
    return Study(tuple(found))


class _StudyDirectory(ResultsDirectory):
    """A directory with the tables of a study's finished runs, written while it runs and when it ends.

    Parameters
    ----------
    path : path
    total : int
        Number of runs of the whole study.
    """

    def __init__(self, path: str | os.PathLike[str], total: int) -> None:
        super().__init__(path, (*TABLES, FAIRNESS, GROUPS, *PICTURES))
        self._total, self._finished, self._written = total, 0, 0
        self._study = Study(())
        self._started, self._writing = time.perf_counter(), 0.0

    def add(self, variants: Sequence[Variant]) -> None:
        """Add a finished run; write the tables, unless writing has taken too large a share of the time."""
        self._finished += 1
        self._study = Study(tuple(v for v in variants if v.results))
        self.check()
        if self._writing <= WRITING_SHARE * (time.perf_counter() - self._started):
            self._write()

    def _write(self) -> None:
        begun = time.perf_counter()
        self.check()
        if not self._written:
            self.keep_earlier()
        self._study.to_csv(self.path)
        self._written = self._finished
        self._writing += time.perf_counter() - begun

    def __exit__(self, *error: object) -> None:
        """Write the runs that are not in the tables yet; print a notice if the study has failed."""
        failed = error[0] is not None
        try:
            if self._written < self._finished:
                self._write()
        except (ConfigError, OSError):
            if not failed:
                raise
        finally:
            super().__exit__()
        if failed:
            print_notice(f"the study ended early; {self._written} of {self._total} runs were written to {self.path}")
