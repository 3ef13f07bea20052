"""What trackers log of a run besides its rounds: names, parameters, tags, a summary and files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import ConfigError
from fedsim.objects import short_repr
from fedsim.study import config
from fedsim.study.result_files import git_revision, write_result, write_settings

if TYPE_CHECKING:
    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result

#: The longest text of a parameter; MLflow before version 2.8 takes no more.
MAX_LENGTH = 500

Plain = bool | int | float | str


@dataclass(frozen=True)
class RunDescription:
    """What is known of a run when it starts.

    Attributes
    ----------
    id : str
        16 hexadecimal digits, which a resumed run has again; see `run_id`.
    name : str
        A short label.
    dataset : str
        The name of the dataset.
    labels : dict of str to str
        The axes of a study and the labels of their values in this run; empty for a single run.
    parameters : dict of str to bool, int, float or str
        See `parameters`.
    tags : dict of str to str
        Dataset, seed, labels, version of fedsim, git revision of the current folder.
    """

    id: str
    name: str
    dataset: str
    labels: Mapping[str, str]
    parameters: Mapping[str, Plain]
    tags: Mapping[str, str]


def describe_run(experiment: Experiment, labels: Mapping[str, str], first: Mapping[str, float]) -> RunDescription:
    """Describe a run, given the labels of the study and the first row of its history."""
    from fedsim import __version__

    dataset = experiment.dataset if isinstance(experiment.dataset, str) else experiment.dataset.name
    shown = labels.values() or (str(experiment.split), str(experiment.client))
    tags = {"dataset": dataset, "seed": str(experiment.seed), "fedsim": __version__}
    tags |= {f"study.{axis}": label for axis, label in labels.items()}
    if revision := git_revision():
        tags["git_revision"] = revision
    name = ", ".join([*shown, f"seed {experiment.seed}"])
    return RunDescription(run_id(first), name, dataset, labels, parameters(experiment), tags)


def run_id(first: Mapping[str, float]) -> str:
    """Return the id of a run: a digest of the first row of its history.

    A resumed run has this row from its checkpoint. Other runs of the same experiment have another one, because its
    ``seconds`` are measured.
    """
    row = repr([(name, float(value)) for name, value in first.items()])
    return hashlib.sha256(row.encode()).hexdigest()[:16]


def parameters(experiment: Experiment) -> dict[str, Plain]:
    """Return the settings of an experiment as numbers, booleans and text.

    An object is given as the text of its TOML form, such as ``client = "SGD(lr=0.1, ...)"``, and each of its arguments
    under a name with dots, such as ``client.lr``. Settings that are None are left out, as in TOML.
    """
    found: dict[str, Plain] = {}
    for name, value in config.to_settings(experiment).items():
        if name == "dataset" and not isinstance(value, str):
            value = value.name
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        found[name] = _plain(value)
        found |= _arguments(name, getattr(experiment, name))
    return found


def _arguments(name: str, value: Any) -> dict[str, Plain]:
    """Return the arguments of a setting's object by their names with dots, those of nested objects too."""
    if isinstance(value, partial):
        given = value.keywords
    elif is_dataclass(value) and not isinstance(value, type) and name != "dataset":
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        given = {str(number): part for number, part in enumerate(value)}
    else:
        return {}
    found: dict[str, Plain] = {}
    for inner, part in given.items():
        found[f"{name}.{inner}"] = _plain(part)
        found |= _arguments(f"{name}.{inner}", part)
    return found


def _plain(value: Any) -> Plain:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else short_repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def metrics(row: Mapping[str, float]) -> dict[str, float]:
    """Return the measured values of a row of the history, without NaN."""
    return {name: float(value) for name, value in row.items() if name != "round" and not math.isnan(value)}


def summary(result: Result) -> dict[str, float]:
    """Return figures of a whole run, without NaN.

    Returns
    -------
    dict of str to float
        ``rounds, final_loss, final_accuracy, best_accuracy`` (r2 for regression), ``total_failures, megabytes_sent``
        (both ways), ``total_seconds``.
    """
    history, score = result.history, result.score
    return metrics(
        {
            "rounds": result.rounds,
            "final_loss": history["test_loss"].iloc[-1],
            f"final_{score}": result.final_score,
            f"best_{score}": result.test_scores.max(),
            "total_failures": len(result.failures),
            "megabytes_sent": (history["bytes_up"] + history["bytes_down"]).sum() / 1e6,
            "total_seconds": history["seconds"].sum(),
        }
    )


def notes(result: Result) -> dict[str, str]:
    """Return what is known at the end in words: why a callback ended the run, and the privacy loss."""
    return {name: text for name in ("stop_reason", "privacy") if (text := getattr(result, name))}


def write_artifacts(result: Result, folder: Path) -> list[Path]:
    """Write the files of a result, as `Result.save` does, and return them; `Result.load` reads their folder."""
    with suppress(ConfigError):  # it has a model of the user, which has no TOML form
        write_settings(folder, result.experiment)
    write_result(folder, result, result.card(), "", durable=False)
    return sorted(folder.iterdir())
