"""Data that processes share: arrays in files, mapped into memory read-only, so that there is one copy on a machine.

A shared dataset travels as the name of its folder: pickled to another process, or to a Ray worker of the same machine,
it is a few hundred bytes, and the operating system keeps one copy of the pages for all.
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

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_DESCRIPTION = "dataset.json"


@dataclass(frozen=True, eq=False)
class SharedDataset(Dataset):
    """A dataset whose arrays are memory maps; made by `share`, opened by `open_shared`."""

    folder: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        """Check nothing: that would read it all, and it was checked when it was shared."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_shared, (self.folder,)


def share(dataset: Dataset, folder: str | Path | None = None) -> SharedDataset:
    """Write a dataset's arrays to files and return it on top of them.

    Parameters
    ----------
    dataset : Dataset
    folder : path, optional
        Where; made if need be, and never one that holds a dataset already. Default a new temporary folder, which is
        the caller's to delete: processes may outlive this one.

    Raises
    ------
    DataError
        The folder holds a dataset already.
    """
    from fedsim.files import writable_directory, write_whole

    place = writable_directory(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="fedsim-data-"))
    if (place / _DESCRIPTION).exists():
        raise DataError(f"{str(place)!r} holds a shared dataset already; give another folder")
    names = {name: getattr(dataset, name) for name in _ARRAYS}
    names |= {f"group{k}": dataset.groups[name] for k, name in enumerate(dataset.groups)}
    for name, values in names.items():
        write_whole(place / f"{name}.npy", partial(np.save, arr=values, allow_pickle=False))
    settings = {f.name: getattr(dataset, f.name) for f in fields(Dataset) if f.name not in (*_ARRAYS, "groups")}
    text = json.dumps(settings | {"groups": list(dataset.groups)}).encode()
    write_whole(place / _DESCRIPTION, lambda stream: stream.write(text))
    return open_shared(place)


def open_shared(folder: str | Path) -> SharedDataset:
    """Return the dataset that `share` wrote into a folder.

    Raises
    ------
    DataError
        There is none, or it is damaged.
    """
    place = Path(folder).resolve()
    try:
        settings = json.loads((place / _DESCRIPTION).read_text())
        names = settings.pop("groups")
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        groups = {
            name: np.load(place / f"group{k}.npy", mmap_mode="r", allow_pickle=False) for k, name in enumerate(names)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(place)!r} holds no shared dataset that can be read: {error}") from None
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return SharedDataset(**arrays, **settings, groups=groups, folder=str(place))
