"""The identity of a run: a text that is equal for runs that give the same bits, and its digest, which names a folder.

It has the experiment's settings, the contents of a dataset that has no lasting name, and the user's own code, because a
run of changed code is another run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim import data
from fedsim.data import Dataset
from fedsim.study.config import to_toml
from fedsim.study.user_code import digest, own_objects

if TYPE_CHECKING:
    from fedsim.study.callbacks import Callback
    from fedsim.study.experiment import Experiment

#: Number of hexadecimal digits of a run's name.
DIGITS = 16


def fingerprint(experiment: Experiment, dataset: Dataset | None = None, state: bool = False) -> str:
    """Return a text that is equal for experiments that give the same bits.

    Parameters
    ----------
    experiment : Experiment
    dataset : Dataset, optional
        Its dataset, if it has been loaded.
    state : bool
        As for `fedsim.study.user_code.digest`.
    """
    name = experiment.dataset
    if not isinstance(name, str) or data.reads_files(name):
        name = (dataset or experiment.load_data()).digest
    plain = replace(experiment, dataset="digits", data_dir=None)
    own = list(own_objects([getattr(plain, field.name) for field in fields(plain)]))
    return f"# {name}\n" + (f"# code {digest(own, state)}\n" if own else "") + to_toml(plain)


def run_name(experiment: Experiment, dataset: Dataset | None = None, callbacks: Sequence[Callback] = ()) -> str:
    """Return the name of a run in a store, of `DIGITS` hexadecimal digits.

    It is that of fedsim's code, because other code may give other bits, and of the callbacks that may end the run.
    """
    active = [callback for callback in callbacks if not callback.passive]
    return digest([_own_code(), fingerprint(experiment, dataset, state=True), *active])[:DIGITS]


@cache
def _own_code() -> str:
    """Return the digest of fedsim's own source."""
    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    return digest([(file.relative_to(package).as_posix(), file.read_bytes()) for file in files])
