"""Datasets in memory-mapped files, of which all processes of a machine share one copy.

A shared dataset is pickled as the path of its folder, a few hundred bytes; the process that loads it, such as a Ray
worker on the same machine, maps the files read-only.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import DataError
from fedsim.files import writable_directory, write_text, write_whole

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_GROUPS = ("groups", "groups_test")
_DESCRIPTION = "dataset.json"


@dataclass(frozen=True, eq=False)
class SharedDataset(Dataset):
    """A dataset whose arrays are memory maps; made by `share`, opened by `open_shared`."""

    folder: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        """Skip the checks, which would read all arrays; `share` was given a checked dataset."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_shared, (self.folder,)


def share(dataset: Dataset, folder: str | Path | None = None) -> SharedDataset:
    """Write a dataset's arrays to files and return a dataset that maps them into memory.

    Parameters
    ----------
    dataset : Dataset
    folder : path, optional
        Created if it does not exist; it must not contain a shared dataset. Default: a new temporary folder, which the
        caller should delete after all processes that use it have ended.

    Raises
    ------
    DataError
        The folder contains a shared dataset already.
    """
    path = writable_directory(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="fedsim-data-"))
    if (path / _DESCRIPTION).exists():
        raise DataError(f"{str(path)!r} contains a shared dataset already; give another folder")
    names = {name: getattr(dataset, name) for name in _ARRAYS}
    for mapping in _GROUPS:
        names |= {f"{mapping}{k}": values for k, values in enumerate(getattr(dataset, mapping).values())}
    for name, values in names.items():
        write_whole(path / f"{name}.npy", partial(np.save, arr=values, allow_pickle=False))
    settings = {f.name: getattr(dataset, f.name) for f in fields(Dataset) if f.name not in (*_ARRAYS, *_GROUPS)}
    text = json.dumps(settings | {mapping: list(getattr(dataset, mapping)) for mapping in _GROUPS})
    write_text(path / _DESCRIPTION, text)
    return open_shared(path)


def open_shared(folder: str | Path) -> SharedDataset:
    """Return the dataset that `share` wrote into a folder.

    Raises
    ------
    DataError
        The folder contains no shared dataset, or a damaged one.
    """
    path = Path(folder).resolve()
    try:
        settings = json.loads((path / _DESCRIPTION).read_text())
        names = {mapping: settings.pop(mapping) for mapping in _GROUPS}
        load = partial(np.load, mmap_mode="r", allow_pickle=False)
        arrays = {name: load(path / f"{name}.npy") for name in _ARRAYS}
        groups: dict[str, Any] = {
            mapping: {name: load(path / f"{mapping}{k}.npy") for k, name in enumerate(columns)}
            for mapping, columns in names.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} contains no shared dataset that can be read: {error}") from None
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return SharedDataset(**arrays, **settings, **groups, folder=str(path))
