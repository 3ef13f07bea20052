"""Runs and studies in directories: lists of them, comparisons between any of them, and their removal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.checks import shorten
from fedsim.errors import ConfigError
from fedsim.files import EARLIER
from fedsim.study import config
from fedsim.study.directory import LOCK, RUN_FILES, ResultsDirectory, finished_rounds
from fedsim.study.grid import distinct_labels
from fedsim.study.result import Result
from fedsim.study.result_files import CONFIGURATION, ENVIRONMENT, INDEX, SUMMARY, damage
from fedsim.study.store import FINISHED, INTERRUPTED, NOT_STARTED, RUNS, STUDY_FILES, TUNING, read_index, state_of
from fedsim.study.study import Study
from fedsim.text import print_notice

if TYPE_CHECKING:
    import pandas as pd

#: The state of a run whose files are not as they were written.
DAMAGED = "damaged"
#: How deep directories are searched for studies and runs.
DEPTH = 3


def is_study(directory: Path) -> bool:
    """Return whether a directory has the index of a study."""
    return (directory / INDEX).is_file()


def is_run(directory: Path) -> bool:
    """Return whether a directory has a run, in whatever state."""
    return state_of(directory) != NOT_STARTED or (directory / CONFIGURATION).is_file()


def find(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the studies and the single runs in a directory and its subdirectories, in order of their names."""
    if is_study(directory) or is_run(directory):
        yield directory
    elif depth and directory.is_dir():
        for inner in sorted(directory.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and inner.name != EARLIER:
                yield from find(inner, depth - 1)


def list_all(directory: Path) -> pd.DataFrame:
    """Return a row for each study and single run in a directory.

    Returns
    -------
    DataFrame
        ``directory, kind`` ("study" or "run"), ``finished, runs`` (numbers), ``megabytes, changed`` (the date).

    Raises
    ------
    ConfigError
        There is no such directory.
    """
    import pandas as pd

    if not directory.is_dir():
        raise ConfigError(f"{str(directory)!r} is no directory")
    rows = []
    for place in find(directory):
        try:
            folders = [place / RUNS / name for _, name in read_index(place)] if is_study(place) else [place]
        except ConfigError as error:
            print_notice(str(error))
            continue
        files = list(_files(place))
        changed = max((file.st_mtime for file in files), default=math.nan)
        rows.append(
            {
                "directory": str(place),
                "kind": "study" if is_study(place) else "run",
                "finished": sum(state_of(folder) == FINISHED for folder in folders),
                "runs": len(folders),
                "megabytes": sum(file.st_size for file in files) / 1e6,
                "changed": pd.Timestamp(changed, unit="s").floor("s"),
            }
        )
    return pd.DataFrame(rows, columns=["directory", "kind", "finished", "runs", "megabytes", "changed"])


def _files(directory: Path) -> Iterator[os.stat_result]:
    """Yield the state of each file in a directory, in which other processes may write."""
    for file in directory.rglob("*"):
        with suppress(OSError):  # it has been deleted
            if file.is_file():
                yield file.stat()


def list_study(directory: Path) -> pd.DataFrame:
    """Return a row for each run of a study: its labels, its seed, ``state, rounds, score`` (the final one), ``run``.

    The state is that of `fedsim.study.store.state_of`, or `DAMAGED`.
    """
    import pandas as pd

    rows = []
    for labels, name in read_index(directory):
        folder = directory / RUNS / name
        state, rounds, score = state_of(folder), 0, math.nan
        if state == FINISHED and damage(folder):
            state = DAMAGED
        elif state == FINISHED:
            history = pd.read_csv(folder / "history.csv")
            rounds = len(history) - 1
            score = float(history.filter(["test_accuracy", "test_r2"]).iloc[-1].max())
        elif state == INTERRUPTED:
            rounds = finished_rounds(folder)
        rows.append({**labels, "state": state, "rounds": rounds, "score": score, "run": name})
    return pd.DataFrame(rows)


def combine(paths: Sequence[Path], modules: Sequence[str] = ()) -> Study:
    """Return one study of finished runs and studies, whose labels are the settings in which the experiments differ.

    Parameters
    ----------
    paths : sequence of Path
        Directories of runs and studies.
    modules : sequence of str
        As for `Result.load`.

    Raises
    ------
    ConfigError
        A directory has no finished run, or a file is damaged.
    """
    places = [(str(path), result) for path in paths for result in _results(path, modules)]
    results = [result for _, result in places]
    settings = [config.to_settings(result.experiment) for result in results]
    names = dict.fromkeys(name for part in settings for name in part if name not in ("seed", "data_dir", "metrics"))
    varying = [name for name in names if len({repr(part.get(name)) for part in settings}) > 1]
    labels: list[dict[str, str]] = [{} for _ in results]
    for name in varying:
        values = [getattr(result.experiment, name) for result in results]
        different = {repr(value): value for value in values}
        texts = dict(zip(different, distinct_labels(list(different.values())), strict=True))
        for row, value in zip(labels, values, strict=True):
            row[name] = texts[repr(value)]
    once: dict[tuple[object, ...], tuple[dict[str, str], Result]] = {}
    for row, result in zip(labels, results, strict=True):
        _, before = once.setdefault((*row.values(), result.experiment.seed), (row, result))
        if not _are_equal(before, result):  # because of other code or data
            for directory, (place, _) in zip(labels, places, strict=True):
                directory["directory"] = place
            return Study.of(zip(labels, results, strict=True))
    return Study.of(once.values())


def _are_equal(a: Result, b: Result) -> bool:
    """Return whether two runs have the same weights."""
    return a.weights.keys() == b.weights.keys() and all(np.array_equal(a.weights[k], b.weights[k]) for k in a.weights)


def _results(path: Path, modules: Sequence[str]) -> list[Result]:
    if is_study(path):
        return [result for variant in Study.load(path, modules).variants for result in variant.results]
    return [Result.load(path, modules=modules)]


def remove(path: Path) -> None:
    """Delete the files of a run or a study; files that fedsim has not written stay.

    Raises
    ------
    ConfigError
        There is no run or study in the directory, or a process is working on it.
    """
    if is_study(path):
        folders = [path / RUNS / name for _, name in read_index(path)]
        for folder in folders:
            if folder.is_symlink() or folder.parent.is_symlink():
                raise ConfigError(f"{str(folder)!r} is, or is in, a link to another place; delete it yourself")
            if folder.is_dir():
                with ResultsDirectory(folder, RUN_FILES):
                    pass  # no process is working on it
        if is_study(path / TUNING):
            remove(path / TUNING)
        for folder in folders:
            if folder.is_dir():
                _remove_files(folder)
        _remove_empty(path / RUNS)
        for name in (*STUDY_FILES, LOCK):
            (path / name).unlink(missing_ok=True)
        _remove_empty(path)
    elif is_run(path):
        _remove_files(path)
    else:
        raise ConfigError(f"{str(path)!r} has neither a run nor a study; allowed: a directory that fedsim wrote")


def _remove_files(folder: Path) -> None:
    with ResultsDirectory(folder, RUN_FILES):
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def describe(path: Path) -> dict[str, Any]:
    """Return what is known of a run: its state, its settings, and the environment in which it ran."""
    if not is_run(path):
        raise ConfigError(f"{shorten(str(path))} has no run")
    found: dict[str, Any] = {"state": state_of(path)}
    if (path / CONFIGURATION).exists():
        found |= config.read(path / CONFIGURATION)
    if (path / SUMMARY).exists():
        found |= {k: v for k, v in config.read(path / SUMMARY).items() if k != "dtypes" and v}
    if (path / ENVIRONMENT).exists():
        try:
            found |= json.loads((path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (ValueError, TypeError):
            found["environment"] = "damaged"
    return found
