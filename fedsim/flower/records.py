"""Conversion between weights and Flower's records, and the serialised size of arrays."""

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

#: Name of the record of arrays that the server sends in addition to the weights.
DOWN = "fedsim.down"
#: Prefix of the arrays that a client sends in addition to the weights; Flower's strategies expect a single record.
UP = "fedsim.up."


def to_record(model: Model, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat weights, shape (parameters,), as Flower's record of the model's named arrays."""
    return record(named_arrays(model, flat))


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return named arrays as Flower's record, without copying them."""
    made = ArrayRecord()
    for name, values in arrays.items():
        made[name] = Array(values)
    return made


def _values(array: flwr.app.Array) -> NDArray[Any]:
    """Return an array's values, without copying them if possible."""
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
        target[...] = _values(record[name])
    flat.flags.writeable = False
    return flat


def split_reply(reply: ArrayRecord) -> tuple[ArrayRecord, dict[str, NDArray[Any]]]:
    """Return a reply's weights, and the arrays that were sent in addition."""
    weights, up = ArrayRecord(), {}
    for name, array in reply.items():
        if name.startswith(UP):
            up[name.removeprefix(UP)] = array.numpy()
        else:
            weights[name] = array
    return weights, up


def flatten(record: ArrayRecord) -> NDArray[Any]:
    """Return a record's arrays as one flat array, read-only, of the common dtype."""
    flat = np.concatenate([_values(array).ravel() for array in record.values()])
    flat.flags.writeable = False
    return flat


def unflatten(like: ArrayRecord, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat values as a record with the names, shapes and dtypes of another."""
    ends = np.cumsum([math.prod(array.shape) for array in like.values()])
    arrays = zip(like.items(), np.split(flat, ends[:-1]), strict=True)
    return record({name: part.astype(array.dtype).reshape(array.shape) for (name, array), part in arrays})


def payload_bytes(model: Model, groups: Iterable[Group]) -> int:
    """Return the bytes of the serialised arrays of groups of parameters, without Flower's overhead of a message."""
    arrays = named_arrays(model, np.zeros(model.num_parameters, dtype=model.dtype))
    return sum(array_bytes(arrays[name]) for group in groups for name in group)


def array_bytes(values: NDArray[Any]) -> int:
    """Return the bytes of a serialised array."""
    return _header_bytes(values.shape, values.dtype.str) + values.nbytes


@lru_cache(maxsize=1024)
def _header_bytes(shape: tuple[int, ...], dtype: str) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.tell()
