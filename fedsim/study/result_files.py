"""The files of a result: CSV tables, NumPy arrays, TOML settings and a model card, with the checksums of all of them.

`CHECKSUMS` is written last, in the format of ``sha256sum``: a directory that has it has a complete result, and a file
that was changed or cut off afterwards is found when the result is read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED

import numpy as np

from fedsim.errors import ConfigError
from fedsim.files import write_csv, write_text, write_whole
from fedsim.modules import Modules
from fedsim.study import config
from fedsim.study.identity import DIGITS
from fedsim.text import one_line

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result

CONFIGURATION, SUMMARY, ENVIRONMENT, CARD = "experiment.toml", "result.toml", "environment.json", "model_card.md"
WEIGHTS, CHECKSUMS = "weights.npz", "SHA256SUMS"
#: The index of a study.
INDEX = "runs.csv"
#: The name of a run of a study.
RUN_NAME = re.compile(f"[0-9a-f]{{{DIGITS}}}")
#: The counts of an experiment with a sensitive column, and the measures of fairness between clients that evaluated.
GROUPS, FAIRNESS = "groups.csv", "fairness.csv"
#: The metrics of an experiment that has some besides the loss and the accuracy.
METRICS = "metrics.csv"
#: Files that every complete result has.
RESULTS = (
    "history.csv",
    "clients.csv",
    "failures.csv",
    WEIGHTS,
    CARD,
    CONFIGURATION,
    ENVIRONMENT,
    SUMMARY,
    CHECKSUMS,
)
#: Fields of a `Result` that are tables, and those that are text.
TABLES = ("history", "clients", "failures", "groups", "metrics")
TEXTS = ("kernel", "score", "stop_reason", "privacy")


def result_tables(result: Result) -> dict[str, pd.DataFrame]:
    """Return the tables that are written for a result, by the name of the file."""
    tables = {f"{name}.csv": getattr(result, name) for name in TABLES}
    if not result.experiment.sensitive:
        del tables[GROUPS]
    if not result.experiment.metrics:
        del tables[METRICS]
    if len(result.clients):
        from fedsim.fairness import client_fairness

        tables[FAIRNESS] = client_fairness(result)
    return tables


def write_settings(directory: Path, experiment: Experiment) -> None:
    """Write the configuration, unless it has no TOML form, and the versions with which it runs."""
    if isinstance(experiment.dataset, str):
        write_text(directory / CONFIGURATION, config.to_toml(experiment), durable=False)
    write_text(directory / ENVIRONMENT, json.dumps(environment(), indent=1), durable=False)


def write_result(directory: Path, result: Result, card: str, run: str, durable: bool = True) -> None:
    """Write a result and its checksums into a directory that `write_settings` has prepared.

    Parameters
    ----------
    directory : Path
    result : Result
    card : str
        The model card.
    run : str
        The name of the run (`fedsim.study.identity`); may be empty outside of a study.
    durable : bool
        As for `fedsim.files.write_whole`. Checksums find files that were lost when the machine stopped.
    """
    import tomli_w

    tables = result_tables(result)
    for name, table in tables.items():
        write_csv(directory / name, table, durable)
    write_whole(directory / WEIGHTS, lambda stream: np.savez(stream, **result.weights), durable)  # type: ignore[arg-type]
    write_text(directory / CARD, card, durable)
    dtypes = {name: {column: str(dtype) for column, dtype in getattr(result, name).dtypes.items()} for name in TABLES}
    texts = {name: getattr(result, name) for name in TEXTS}
    write_text(directory / SUMMARY, tomli_w.dumps({"run": run} | texts | {"dtypes": dtypes}), durable)
    others = [name for name in dict.fromkeys([*RESULTS, *tables]) if name not in (SUMMARY, CHECKSUMS)]
    # The summary is the last, so that a list that is cut off lacks it.
    names = [name for name in (*others, SUMMARY) if (directory / name).exists()]
    sums = "".join(f"{_sha256(directory / name)}  {name}\n" for name in names)
    write_text(directory / CHECKSUMS, sums, durable)


def damage(directory: Path) -> str:
    """Return what is wrong with the files of a result, or an empty string if they are as they were written.

    A folder with the name of a run must have the result of that run.
    """
    try:
        lines = (directory / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        return f"its {CHECKSUMS} cannot be read: {getattr(error, 'strerror', None) or one_line(error)}"
    if not wanted.keys() >= {SUMMARY, WEIGHTS}:
        return f"its {CHECKSUMS} is damaged"
    for name, digest in wanted.items():
        if Path(name).name != name:
            return f"its {CHECKSUMS} is damaged"
        if not (directory / name).is_file():
            return f"its {name} is missing"
        if _sha256(directory / name) != digest:
            return f"its {name} is damaged"
    if RUN_NAME.fullmatch(directory.name):
        try:
            run = config.read(directory / SUMMARY).get("run")
        except ConfigError:
            return f"its {SUMMARY} is damaged"
        if run != directory.name:
            return "it is the result of another run"
    return ""


def read_fields(directory: Path, experiment: Experiment | None = None, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of the `Result` in a directory; parameters and errors as for `Result.load`."""
    if reason := damage(directory):
        raise ConfigError(f"{str(directory)!r} has no result that can be read: {reason}")
    if experiment is None:
        experiment = _read_experiment(directory, modules)
    try:
        summary = config.read(directory / SUMMARY)
        with np.load(directory / WEIGHTS, allow_pickle=False) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.zip.infolist()):
                raise ValueError(f"an entry of {WEIGHTS} is compressed")
            weights = {name: archive[name] for name in archive.files}
        tables = {name: _read_table(directory / f"{name}.csv", summary["dtypes"][name]) for name in TABLES}
        return {"experiment": experiment, "weights": weights, **{name: summary[name] for name in TEXTS}, **tables}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        csv.Error,
    ) as error:  # files of another version, whose checksums are right
        raise ConfigError(f"{str(directory)!r} has no result that can be read: {one_line(error)}") from None


def _read_experiment(directory: Path, modules: Sequence[str]) -> Experiment:
    if not (directory / CONFIGURATION).exists():
        raise ConfigError(
            f"{str(directory)!r} has no {CONFIGURATION}, because its dataset was given as arrays; give the experiment"
        )
    return config.experiment(config.read(directory / CONFIGURATION), Modules.here(modules))


def _read_table(file: Path, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Return a table with all its bits; without rows if it was not written."""
    import pandas as pd

    rows: list[list[str]] = []
    if file.exists():
        with file.open(encoding="utf-8", newline="") as stream:
            _, *rows = csv.reader(stream, strict=True)
    columns = zip(*rows, strict=True) if rows else [()] * len(dtypes)
    values = {name: _parse(texts, dtype) for (name, dtype), texts in zip(dtypes.items(), columns, strict=True)}
    return pd.DataFrame({name: pd.Series(values[name], dtype=dtype) for name, dtype in dtypes.items()})


def _parse(texts: Sequence[str], dtype: str) -> Sequence[Any]:
    """Return the values of a column; an empty number is NaN. Python's floats are read as they were written."""
    if dtype.startswith("float"):
        return [float(text or "nan") for text in texts]
    return [int(text) for text in texts] if dtype.startswith(("int", "uint")) else texts


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def environment() -> dict[str, str]:
    """Return the machine, the versions of Python and packages, and the revision of the current folder's repository."""
    packages = ("fedsim", "numpy", "numba", "flwr", "pandas", "scikit-learn")
    machine = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    return machine | {name: version(name) for name in packages} | {"git": git_revision()}


def git_revision() -> str:
    """Return the commit that is checked out, with "+changes" if files differ from it; "" outside of a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
