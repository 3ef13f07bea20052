"""The directory of a study: its file, the index of its runs, a folder per run, and the tables made of them.

    study.toml           the study's configuration, as ``fedsim compare`` reads it
    environment.json     versions, machine and git revision
    runs.csv             the labels, the seed and the name of each run
    runs/NAME/           a run: see `fedsim.study.result_files` and `fedsim.study.checkpoint`
    rounds.csv, ...      the tables of `Study.to_csv`
    remarks.txt          `Study.remarks`, a line each
    tuning/              a study with which settings were chosen (`fedsim.study.tuning`)

A run's name is the digest of its identity (`fedsim.study.identity`), so that studies in one directory share runs. Each
run is locked while a process works on it, and several processes may work on one study.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from fedsim.errors import ConfigError
from fedsim.files import keep_earlier, remove_temporary, writable_directory, write_text
from fedsim.study.directory import CHECKPOINT, DIVERGED, LOCK, PREVIOUS, divergence, save_result
from fedsim.study.identity import DIGITS, run_name
from fedsim.study.result import Result
from fedsim.study.result_files import CHECKSUMS, ENVIRONMENT, INDEX, damage, environment
from fedsim.study.significance import titled
from fedsim.study.tables import TABLES
from fedsim.study.user_code import digest
from fedsim.text import escape, print_notice

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.study.callbacks import Callback
    from fedsim.study.experiment import Experiment
    from fedsim.study.study import Study

CONFIGURATION, RUNS, REMARKS = "study.toml", "runs", "remarks.txt"
#: The directory, inside that of a study, of the study with which settings are chosen.
TUNING = "tuning"
#: The last columns of the index.
COLUMNS = ("seed", "run")
#: The pictures that ``fedsim compare`` draws.
PICTURES = ("accuracy.png", "drift.png", "splits.png", "local_accuracy.png", "accuracy_by_skew.png")
#: All files of a study's directory.
STUDY_FILES = (*TABLES, *PICTURES, CONFIGURATION, INDEX, ENVIRONMENT, REMARKS)
#: The states of a run.
FINISHED, INTERRUPTED, HAS_DIVERGED, NOT_STARTED = "finished", "interrupted", "diverged", "not started"
#: The largest share of a study's time that is spent on writing tables while it runs.
WRITING_SHARE = 0.05


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes
    ----------
    labels : dict of str to str
        Axis -> label of its value.
    experiment : Experiment
    name : str
        The name of its folder, if the study has a directory.
    """

    labels: Mapping[str, str]
    experiment: Experiment
    name: str = ""

    @property
    def title(self) -> str:
        """The labels and the seed, for progress and errors."""
        labels = [titled(axis, label) for axis, label in self.labels.items()]
        return ", ".join([*labels, f"seed {self.experiment.seed}"])

    def named(self, dataset: Dataset, callbacks: Sequence[Callback]) -> PlannedRun:
        """Return the run with its name, given its dataset and its callbacks."""
        return replace(self, name=run_name(self.experiment, dataset, callbacks))


class StudyStore:
    """The directory of a study that runs.

    Parameters
    ----------
    path : path
        Created if it does not exist. The tables of another study, with runs that this one does not have, are moved to a
        numbered folder beside it; the runs stay.
    runs : sequence of PlannedRun
    configuration : str
        The study's file; empty if it has no TOML form.

    Raises
    ------
    ConfigError
        The directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], runs: Sequence[PlannedRun], configuration: str) -> None:
        self.path = writable_directory(path)
        if any((self.path / name).exists() for name in (CHECKSUMS, CHECKPOINT, PREVIOUS)):
            raise ConfigError(f"{str(self.path)!r} has a run; choose another directory for a study")
        self._runs, self._index = runs, _format_index(runs)
        self._written: object = None
        self._finished = 0
        self._started, self._writing = time.perf_counter(), 0.0
        with self._lock():
            remove_temporary(self.path, STUDY_FILES)
            held = None  # of a damaged index too, which is kept
            if (self.path / INDEX).exists():
                with suppress(ConfigError):
                    held = {name for _, name in read_index(self.path)}
            is_part = held is not None and held <= {run.name for run in runs}
            if not is_part and (kept := keep_earlier(self.path, STUDY_FILES)):
                print_notice(f"kept the earlier tables in {kept}")
            if configuration:
                write_text(self.path / CONFIGURATION, configuration)
            write_text(self.path / ENVIRONMENT, json.dumps(environment(), indent=1))
            write_text(self.path / INDEX, self._index)

    def folder(self, run: PlannedRun) -> Path:
        """Return the folder of a run."""
        return self.path / RUNS / run.name

    @property
    def progress(self) -> str:
        """How many runs are finished, for notices."""
        return f"{self._finished} of {len(self._runs)} runs are finished in {self.path}"

    def add(self, study: Callable[[], Study]) -> None:
        """Take note of a finished run; write the tables, unless that has taken too large a share of the time.

        Parameters
        ----------
        study : callable
            Returns the study of the finished runs.
        """
        self._finished += 1
        if self._writing <= WRITING_SHARE * (time.perf_counter() - self._started):
            self.write_tables(study())

    def write_tables(self, study: Study) -> None:
        """Write the tables of the finished runs, unless they have been written.

        Raises
        ------
        ConfigError
            The directory was deleted, or holds another study now.
        """
        content = self._finished, study.remarks
        if self._written == content or not study.variants:
            return
        begun = time.perf_counter()
        with self._lock():
            self.check()
            study.to_csv(self.path)
            for name in TABLES.keys() - set(study.files):  # those of a part of the study
                (self.path / name).unlink(missing_ok=True)
            write_text(self.path / REMARKS, "".join(f"{remark}\n" for remark in study.remarks))
        self._written = content
        self._writing += time.perf_counter() - begun

    def check(self) -> None:
        """Raise ConfigError if the directory was deleted, or holds another study now."""
        try:
            if (self.path / INDEX).read_bytes() == self._index.encode():
                return
        except OSError:
            raise ConfigError(f"the results folder {str(self.path)!r} was deleted during the study") from None
        raise ConfigError(f"the results folder {str(self.path)!r} holds another study now; the finished runs are kept")

    def _lock(self) -> FileLock:
        return FileLock(self.path / LOCK)


def _format_index(runs: Sequence[PlannedRun]) -> str:
    """Return the text of the index."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*runs[0].labels, *COLUMNS])
    writer.writerows([*run.labels.values(), run.experiment.seed, run.name] for run in runs)
    return text.getvalue()


def read_index(path: Path) -> list[tuple[dict[str, str], str]]:
    """Return the labels and the name of each run of a study, with the seed as the last label.

    Raises
    ------
    ConfigError
        There is no index, or it is not one.
    """
    file = path / INDEX
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged; the study's command writes it anew"
        raise ConfigError(f"{str(file)!r} cannot be read: {reason}") from None
    sound = all(len(row) == len(header) and row[-2].isdecimal() and _is_name(row[-1]) for row in rows)
    if tuple(header[-2:]) != COLUMNS or not sound:
        raise ConfigError(f"{str(file)!r} is damaged; the study's command writes it anew")
    return [(dict(zip(header[:-1], row, strict=False)), row[-1]) for row in rows]


def _is_name(name: str) -> bool:
    """Return whether a text is the name of a run, and not a path to elsewhere."""
    return name.isalnum() and name.isascii()


def state_of(folder: Path) -> str:
    """Return the state of the run in a folder."""
    if divergence(folder):
        return HAS_DIVERGED
    if any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS)):
        return INTERRUPTED
    return FINISHED if (folder / CHECKSUMS).exists() else NOT_STARTED


def save_study(study: Study, directory: str | os.PathLike[str]) -> None:
    """Write a study into a directory; see `Study.save`."""
    runs: list[tuple[PlannedRun, Result | None]] = []
    for variant in study.variants:
        for result in variant.results:
            runs.append((PlannedRun(variant.labels, result.experiment, _name_of_result(result)), result))
        for seed in variant.diverged:
            failed = replace(variant.results[0].experiment, seed=seed)
            name = digest([DIVERGED, *variant.labels.values(), seed])[:DIGITS]
            runs.append((PlannedRun(variant.labels, failed, name), None))
    store = StudyStore(directory, [planned for planned, _ in runs], "")
    for planned, made in runs:
        folder = store.folder(planned)
        if made is None:
            write_text(writable_directory(folder) / DIVERGED, "training diverged")
        elif damage(folder):
            save_result(made, folder)
    store.add(lambda: study)
    if study.tuning:
        save_study(study.tuning, store.path / TUNING)


def _name_of_result(result: Result) -> str:
    """Return a name for the folder of a result of which it is not known how it was made: it is no `run_name`."""
    content = [result.history.to_csv(), *result.weights.items()]
    return digest([run_name(result.experiment), *content])[:DIGITS]


def load_runs(
    directory: Path, modules: Sequence[str] = ()
) -> tuple[list[tuple[dict[str, str], Result]], list[tuple[dict[str, str], int]]]:
    """Return the labelled results of the finished runs of a study, and the labelled seeds of those that diverged.

    Parameters and errors as for `Study.load`.
    """
    finished, diverged, index = [], [], read_index(directory)
    for labels, name in index:
        folder, seed = directory / RUNS / name, int(labels.pop(COLUMNS[0]))
        state = state_of(folder)
        if state == FINISHED:
            finished.append((labels, folder))
        elif state == HAS_DIVERGED:
            diverged.append((labels, seed))
    if not finished:
        raise ConfigError(f"no run of the study in {str(directory)!r} is finished")
    if missing := len(index) - len(finished) - len(diverged):
        print_notice(f"{missing} of the {len(index)} runs in {directory} are not finished, and are left out")
    return [(labels, Result.load(folder, modules=modules)) for labels, folder in finished], diverged


def read_remarks(directory: Path) -> tuple[str, ...]:
    """Return `Study.remarks` of a study; empty if there are none."""
    file = directory / REMARKS
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return tuple(map(escape, lines))
