"""Checkpoint files, which hold arrays and text and no pickles.

`pack` turns nested values into arrays and a JSON tree, `unpack` reverses it. The file is NumPy's ``.npz`` followed by
its SHA-256, which is checked before anything else is read. `fedsim.study.run_state` says what a run saves.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ConfigError
from fedsim.files import write_whole
from fedsim.text import one_line

#: Version of the format; increased when older files can no longer be read.
VERSION = 7
#: Bytes of the checksum at the end of the file, in hexadecimal digits, which no record of an archive resembles.
CHECKSUM = 64
#: Kinds of array that a checkpoint holds: booleans and numbers.
NUMBERS = "biufc"


def pack(value: Any, arrays: dict[str, NDArray[Any]], where: str) -> Any:
    """Return a JSON tree for a value, its arrays put into `arrays`.

    Parameters
    ----------
    value : None, bool, int, float, str, ndarray, NumPy scalar, Flower ArrayRecord, or a list, tuple or dict of these
        Of exactly these types, because subclasses would not be restored. Keys are None, bool, int, float or str.
    arrays : dict
    where : str
        What the value is, for the error.

    Raises
    ------
    ConfigError
        The value holds something else.
    """
    from flwr.app import ArrayRecord

    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is np.ndarray or isinstance(value, np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in NUMBERS:
            raise ConfigError(f"{where} is an array of {array.dtype}; allowed in a checkpoint: numbers")
        arrays[f"a{len(arrays)}"] = array
        return {"array" if kind is np.ndarray else "scalar": f"a{len(arrays) - 1}"}
    if kind is ArrayRecord:
        return {"record": pack({k: a.numpy() for k, a in value.items()}, arrays, where)}
    if kind in (list, tuple):
        return {kind.__name__: [pack(v, arrays, f"{where}[{k}]") for k, v in enumerate(value)]}
    if kind is dict and all(key is None or type(key) in (bool, int, float, str) for key in value):
        if all(isinstance(key, str) for key in value):
            return {"dict": {k: pack(v, arrays, f"{where}[{k!r}]") for k, v in value.items()}}
        return {"items": [[k, pack(v, arrays, f"{where}[{k!r}]")] for k, v in value.items()]}
    what = "dict with keys that are not numbers or text" if kind is dict else kind.__name__
    raise ConfigError(
        f"{where} is a {what}; allowed in a checkpoint: numbers, text, arrays, and lists and dicts of them"
    )


def unpack(tree: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that was packed.

    Raises
    ------
    ValueError, TypeError, KeyError
        `pack` does not make such a tree.
    """
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise ValueError("a list without its kind")
        return tree
    ((kind, content),) = tree.items()
    if kind in ("array", "scalar"):
        array = arrays[content]
        if array.dtype.kind not in NUMBERS or (kind == "scalar" and array.ndim):
            raise ValueError(f"{content} is no {kind} of numbers")
        return array if kind == "array" else array[()]
    if kind == "record":
        from fedsim.flower import records

        found = unpack(content, arrays)
        if not is_dict_of_arrays(found):
            raise ValueError("a record that holds something other than arrays")
        return records.record(found)
    if kind == "dict":
        return {k: unpack(v, arrays) for k, v in content.items()}
    if kind == "items":
        return {k: unpack(v, arrays) for k, v in content}
    if kind not in ("list", "tuple") or not isinstance(content, list):
        raise ValueError(f"unknown kind {kind!r}")
    values = [unpack(v, arrays) for v in content]
    return tuple(values) if kind == "tuple" else values


def is_dict_of_arrays(value: Any) -> bool:
    """Return whether an unpacked value is a dict whose values are arrays."""
    return isinstance(value, dict) and all(isinstance(array, np.ndarray) for array in value.values())


def save(path: Path, value: Any, durable: bool = True) -> None:
    """Write a value atomically; see `fedsim.files.write_whole`."""
    arrays: dict[str, NDArray[Any]] = {}
    tree = json.dumps({"version": VERSION, "value": pack(value, arrays, "the run")})
    text = np.frombuffer(tree.encode(), dtype=np.uint8)

    def write(stream: IO[bytes]) -> None:
        np.savez(stream, tree=text, **arrays)  # type: ignore[arg-type]
        stream.seek(0)
        stream.write(hashlib.file_digest(stream, "sha256").hexdigest().encode())  # type: ignore[arg-type]

    write_whole(path, write, durable)


def load(path: Path) -> Any:
    """Return a saved value.

    Raises
    ------
    ConfigError
        The file is damaged, or of another version of fedsim.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except Exception as error:  # whatever damaged or hostile bytes cause, also MemoryError and RecursionError
        reason = getattr(error, "strerror", None) or one_line(error) or type(error).__name__
        raise checkpoint_error(path, f"cannot be read: {reason}") from None


def _is_intact(file: IO[bytes]) -> bool:
    """Return whether a file ends in the checksum of what precedes it."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[-CHECKSUM:] == hashlib.sha256(memoryview(content)[:-CHECKSUM]).hexdigest().encode()


def _read(file: IO[bytes]) -> Any:
    """Return the value in a file; raise any exception for a file that `save` has not written."""
    if not _is_intact(file):
        raise ValueError("it is damaged, or of another version of fedsim")
    with np.load(file, allow_pickle=False) as archive:
        if any(entry.compress_type != ZIP_STORED for entry in archive.zip.infolist()):
            raise ValueError("an entry is compressed")
        arrays = {name: archive[name] for name in archive.files}
    tree = json.loads(arrays.pop("tree").tobytes())
    if tree["version"] != VERSION:
        raise ValueError(f"it has version {tree['version']!r}, and this fedsim reads {VERSION}")
    return unpack(tree["value"], arrays)


def checkpoint_error(path: Path, why: str) -> ConfigError:
    """Return the error for a checkpoint that cannot be used, which says what to do."""
    return ConfigError(f"the checkpoint {str(path)!r} {why}; restore a copy, or delete it to start the run again")


def check_fits(fits: bool, name: str) -> None:
    """Raise ConfigError unless a part of a checkpoint fits the run."""
    if not fits:
        raise ConfigError(f"its {name} has other types or shapes")
