"""A run's state in one file, from which it goes on with the same bits: arrays and text, never a pickle.

`pack` takes nested values apart into arrays and a JSON tree, `unpack` puts them together. What a checkpoint of a run
holds is the business of `run`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError

#: Of the file; raised when older files can no longer be read.
VERSION = 2


def pack(value: Any, arrays: dict[str, NDArray[Any]], where: str) -> Any:
    """Return a JSON tree for a value, its arrays put into `arrays`.

    Parameters
    ----------
    value : None, bool, int, float, str, ndarray, Flower ArrayRecord, or a list, tuple or dict (keyed by str) of these
    arrays : dict
    where : str
        What the value is, for the error.

    Raises
    ------
    ConfigError
        It holds something else.
    """
    from flwr.app import ArrayRecord

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            raise ConfigError(f"{where} is an array of {array.dtype}, which a checkpoint cannot hold; allowed: numbers")
        arrays[f"a{len(arrays)}"] = array
        return {"array": f"a{len(arrays) - 1}"}
    if isinstance(value, ArrayRecord):
        return {"record": pack({k: a.numpy() for k, a in value.items()}, arrays, where)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [pack(v, arrays, f"{where}[{k}]") for k, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {k: pack(v, arrays, f"{where}[{k!r}]") for k, v in value.items()}}
    raise ConfigError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "allowed: numbers, text, arrays, and lists and dicts of them"
    )


def unpack(tree: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that `pack` took apart."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "array":
        return arrays[content][()]  # a scalar as a scalar
    if kind == "record":
        from fedsim.engines import flower

        return flower.record(unpack(content, arrays))
    if kind == "dict":
        return {k: unpack(v, arrays) for k, v in content.items()}
    values = [unpack(v, arrays) for v in content]
    return tuple(values) if kind == "tuple" else values


def save(path: Path, value: Any) -> None:
    """Write a value whole: the file is the old or the new, whatever happens."""
    from fedsim.report.files import write_whole

    arrays: dict[str, NDArray[Any]] = {}
    tree = json.dumps({"version": VERSION, "value": pack(value, arrays, "the run")})
    text = np.frombuffer(tree.encode(), dtype=np.uint8)
    write_whole(path, lambda stream: np.savez(stream, tree=text, **arrays))  # type: ignore[arg-type]


def load(path: Path) -> Any:
    """Return a saved value.

    Raises
    ------
    ConfigError
        The file is damaged, or of another version of fedsim.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tree = json.loads(arrays.pop("tree").tobytes())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"the checkpoint {str(path)!r} cannot be read: {error}") from None
    if tree["version"] != VERSION:
        raise ConfigError(f"the checkpoint {str(path)!r} has version {tree['version']}; this fedsim reads {VERSION}")
    return unpack(tree["value"], arrays)
