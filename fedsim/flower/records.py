"""Weights as Flower's records, and the bytes that records take when they are sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedsim.errors import ConfigError
from fedsim.flower.internals import Array
from fedsim.models import Group, Model, named_arrays

#: Name of the record of arrays that the server sends beside the weights.
DOWN = "fedsim.down"
#: Prefix of the arrays that a client sends beside the weights, in the same record: Flower's strategies expect one.
UP = "fedsim.up."


def to_record(model: Model, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat weights, shape (parameters,), as Flower's record of the model's named arrays."""
    return record(named_arrays(model, flat))


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return named arrays as Flower's record, which keeps them uncopied."""
    made = ArrayRecord()
    for name, values in arrays.items():
        made[name] = Array(values)
    return made


def _values(array: flwr.app.Array) -> NDArray[Any]:
    """Return an array's values, uncopied where they are at hand."""
    values: NDArray[Any] = array.__dict__["values"] if isinstance(array, Array) else array.numpy()
    return values


def to_flat(model: Model, record: ArrayRecord) -> NDArray[Any]:
    """Return a record's arrays as flat weights of the model's dtype, shape (parameters,), read-only.

    Raises
    ------
    ConfigError
        The record has other names or shapes than the model.
    """
    expected = {name: shape for name, (_, shape) in model.layout.items()}
    found = {name: tuple(array.shape) for name, array in record.items()}
    if found != expected:
        raise ConfigError(f"the server strategy sent the arrays {found}; the model has {expected}")
    flat = np.empty(model.num_parameters, dtype=model.dtype)
    for name, target in named_arrays(model, flat).items():
        array = record[name]
        target[...] = _values(array)
    flat.flags.writeable = False
    return flat


def split_reply(reply: ArrayRecord) -> tuple[ArrayRecord, dict[str, NDArray[Any]]]:
    """Return a reply's weights, and what was sent besides them."""
    weights, up = ArrayRecord(), {}
    for name, array in reply.items():
        if name.startswith(UP):
            up[name.removeprefix(UP)] = array.numpy()
        else:
            weights[name] = array
    return weights, up


def flatten(record: ArrayRecord) -> NDArray[Any]:
    """Return any record's arrays as one flat array, read-only; mixed dtypes become one that holds them all."""
    arrays = [_values(array) for array in record.values()]
    flat = np.concatenate([values.ravel() for values in arrays])
    flat.flags.writeable = False
    return flat


def unflatten(like: ArrayRecord, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat values as a record with the names, shapes and dtypes of another."""
    arrays, start = {}, 0
    for name, array in like.items():
        stop = start + math.prod(array.shape)
        arrays[name] = flat[start:stop].astype(array.dtype).reshape(array.shape)
        start = stop
    return record(arrays)


def payload_bytes(model: Model, groups: Iterable[Group]) -> int:
    """Return the bytes of the serialised arrays of groups of parameters: what Flower sends, less its envelope."""
    arrays = named_arrays(model, np.zeros(model.num_parameters, dtype=model.dtype))
    return sum(array_bytes(arrays[name]) for group in groups for name in group)


def array_bytes(values: NDArray[Any]) -> int:
    """Return how many bytes an array has, serialised."""
    return _header_bytes(values.shape, values.dtype.str) + values.nbytes


@lru_cache(maxsize=1024)
def _header_bytes(shape: tuple[int, ...], dtype: str) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.tell()
