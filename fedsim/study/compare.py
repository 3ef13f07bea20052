"""Studies: `compare` runs an experiment for every combination of the axes' values and every seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import data
from fedsim.arguments import checked_arguments
from fedsim.checks import check_instance
from fedsim.errors import ConfigError, DivergenceError
from fedsim.study.callbacks import Callback
from fedsim.study.execution import Execution, StudyOptions
from fedsim.study.experiment import Experiment
from fedsim.study.plan import Plan
from fedsim.study.progress import ProgressBar
from fedsim.study.result import Result
from fedsim.study.store import TUNING, PlannedRun, StudyStore
from fedsim.study.study import Study
from fedsim.study.tuning import Tuning, seeded
from fedsim.text import print_notice

if TYPE_CHECKING:
    from fedsim.engines.engine import Engine


@checked_arguments
def compare(
    base: Experiment,
    *,
    seeds: int | Sequence[int] = 1,
    baselines: Sequence[str] = (),
    tune: Mapping[str, Sequence[Any]] | None = None,
    tune_seeds: int | Sequence[int] = 3,
    tune_metric: str | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    workers: int | None = None,
    jobs: int | None = None,
    verbose: bool = False,
    engine: str | Callable[..., Engine] = "in-process",
    directory: str | os.PathLike[str] | None = None,
    **axes: Sequence[Any],
) -> Study:
    """Run an experiment for every combination of the axes' values and every seed.

    Runs with the same seed are paired: they have the same initial weights if their models have the same shape, the same
    split if they have the same setting of it, and the same cohorts if they have as many clients and sample as many.

    Parameters
    ----------
    base : Experiment
    seeds : int or sequence of int
        A number n means ``base.seed, ..., base.seed + n - 1``.
    baselines : sequence of {"centralised", "data-parallel"}
        Baselines of `base` to add; see `fedsim.study.baselines`.
    tune : mapping, optional
        Setting -> values, such as ``{"client.lr": [0.01, 0.1, 1.0]}``: for each variant, the best combination is chosen
        with the seeds `tune_seeds`, and reported with `seeds`.
    tune_seeds : int or sequence of int
        Other seeds than `seeds`; a number n means ``base.seed + 10_000, ...``.
    tune_metric : str, optional
        A column of `Result.history`, to choose by its mean in the last round; default the test score.
    progress : bool, optional
        Show a progress bar; default: only on a terminal.
    callbacks : sequence of Callback
        Called in each run; see `fedsim.study.callbacks`. A run that was finished earlier is shown to them as a resumed
        run of which all rounds are done.
    workers : int, optional
        Threads of each run; see `Experiment.run`.
    jobs : int, optional
        Number of runs at the same time, each in a process of its own. Default: on Linux one per core for small runs,
        and one for large runs, which use all threads; one if `workers` is given, `verbose` is set, the engine is
        another, or a callback is not `Callback.passive`. With other systems one.
    verbose : bool
        Show Flower's log.
    engine : {"in-process", "ray"} or callable
        Where clients run, as for `Experiment.run`.
    directory : path, optional
        Where to write the runs and the tables of `Study.to_csv`; see `fedsim.study.store`. Runs that are finished there
        are not run again, and interrupted ones are resumed, with the bits of an uninterrupted study. Several processes
        may run one study in one directory.
    **axes : sequence
        Setting -> values, e.g. ``split=[IID(50), Dirichlet(50, alpha=0.1)]``. Arguments of objects are settings too:
        ``**{"client.lr": [0.01, 0.1]}``.

    Returns
    -------
    Study

    Raises
    ------
    ConfigError
        An argument is not allowed, or the directory cannot be written.
    DivergenceError
        All runs diverged. If some did, the study has the others, and a notice and `Study.notes` name those that did.

    Examples
    --------
    >>> from fedsim import Experiment, compare
    >>> from fedsim.splits import IID, Shards
    >>> study = compare(Experiment(rounds=2), split=[IID(20), Shards(20, per_client=2)], seeds=2)
    >>> [variant.label for variant in study.variants]
    ['IID', 'Shards(2)']
    """
    options = StudyOptions(
        progress=progress, callbacks=callbacks, workers=workers, jobs=jobs, verbose=verbose, engine=engine
    )
    check_instance("tune", tune, Mapping | None, "a dict of settings to lists of values")
    check_instance("tune_metric", tune_metric, str | None, "a column of the history")
    tuning = Tuning(tune, tune_seeds, tune_metric) if tune else None
    return run_plan(Plan(base, axes, seeds, baselines, tuning), options, directory)


def run_plan(plan: Plan, options: StudyOptions, directory: str | os.PathLike[str] | None = None) -> Study:
    """Run the study of a plan; see `compare`."""
    chosen, seeds, tuned = plan.variants(), plan.seed_list(), None
    notes: list[str] = []
    candidates, others = [], []
    if plan.tuning:
        plan.tuning.check(plan.axes)
        candidates = [plan.tuning.candidates(labels, experiment) for labels, experiment in chosen]
        others = list(plan.tuning.seed_list(seeds))
    trials = seeded([one for part in candidates for one in part], others)
    rounds = sum(experiment.rounds for _, experiment in (*trials, *seeded(chosen, seeds)))
    with ProgressBar(rounds, options.progress) as bar:
        if plan.tuning:
            folder = None if directory is None else Path(directory) / TUNING
            tuned = _execute(trials, "", options, folder, bar)
            chosen, notes = plan.tuning.choose(candidates, tuned, len(others))
            how = f"Chosen with seeds {', '.join(map(str, others))}, which are not in this table"
            notes = [f"{how}: {', '.join(plan.tuning.settings)}.", *notes]
        configuration = "" if directory is None else plan.to_toml()
        return replace(_execute(seeded(chosen, seeds), configuration, options, directory, bar, notes), tuning=tuned)


def _execute(
    runs: Sequence[tuple[dict[str, str], Experiment]],
    configuration: str,
    options: StudyOptions,
    directory: str | os.PathLike[str] | None,
    bar: ProgressBar,
    remarks: Sequence[str] = (),
) -> Study:
    """Execute the runs of a study.

    Parameters
    ----------
    runs : sequence of (labels, experiment)
    configuration : str
        The study's file.
    options : StudyOptions
    directory : path, optional
    bar : ProgressBar
    remarks : sequence of str
        Of the study.
    """
    load = cache(data.load)
    planned = [PlannedRun(labels, experiment) for labels, experiment in runs]
    datasets = [_dataset(run.experiment, load) for run in planned]
    store = None
    if directory is not None:
        planned = [run.named(dataset, options.callbacks) for run, dataset in zip(planned, datasets, strict=True)]
        store = StudyStore(directory, planned, configuration)
    folders = [store.folder(run) if store else None for run in planned]
    execution = Execution(planned, datasets, folders, options)
    found: dict[int, Result] = {}
    diverged: dict[int, DivergenceError] = {}

    def study() -> Study:
        """Return the study of the results that there are, in the order of the plan."""
        names = "; ".join(planned[number].title for number in sorted(diverged))
        left_out = (f"Diverged, and not in the means: {names}.",) if names else ()
        results = Study.of(
            [(planned[number].labels, found[number]) for number in sorted(found)],
            [(planned[number].labels, planned[number].experiment.seed) for number in sorted(diverged)],
        )
        return replace(results, remarks=(*left_out, *remarks))

    with ExitStack() as stack:
        if store:
            stack.enter_context(_tables(store, study))
        for number, result in execution.results(bar):
            if isinstance(result, DivergenceError):
                diverged[number] = result
                continue
            found[number] = result
            if result.score != next(iter(found.values())).score:
                raise ConfigError("dataset mixes labels and real-valued targets; compare them in separate studies")
            if store:
                store.add(study)
        if not found:
            raise diverged[min(diverged)]
    if diverged:
        count = f"{len(diverged)} of {len(planned)} runs"
        print_notice(f"{count} diverged and are left out; the first: {diverged[min(diverged)]}")
    return study()


def _dataset(experiment: Experiment, load: Callable[..., data.Dataset]) -> data.Dataset:
    dataset = experiment.dataset
    return load(dataset, experiment.data_dir) if isinstance(dataset, str) else dataset


@contextmanager
def _tables(store: StudyStore, study: Callable[[], Study]) -> Iterator[None]:
    """Write the tables of what is finished at the end, however the study ends; say so if it ends early."""
    try:
        yield
    except BaseException:
        with suppress(ConfigError, OSError):  # the first error says more
            store.write_tables(study())
        print_notice(f"the study ended early; {store.progress}, and the same command continues it")
        raise
    store.write_tables(study())
