"""A fingerprint of the data that a server and its SuperNodes must have in common.

Labels and who holds which examples are compared exactly. Features are compared to rounding, because machines of
different types round the same preprocessing differently: by random projections, which a single changed example, another
order of the rows or columns, or a standardisation by other statistics moves by far more than rounding does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.splits import FederatedDataset

#: How many projections, and the rows that are projected at a time.
PROJECTIONS, ROWS = 8, 4096
#: Differences above this share of the features' norm are no rounding.
TOLERANCE = 1e-5


def fingerprint(federated: FederatedDataset) -> dict[str, int | str | list[float]]:
    """Return what identifies a divided dataset, as values that Flower's ConfigRecord holds.

    Parameters
    ----------
    federated : FederatedDataset
        As clients hold it, after all preprocessing.

    Returns
    -------
    dict
        ``examples``, ``features``, ``classes`` and ``clients`` are counts; ``held`` is a hash of the labels and of the
        examples of each client; ``sketch`` holds projections of the features (and of the targets for regression),
        preceded by their norm.
    """
    data, held = federated.dataset, federated.partition
    tests = federated.partition_test
    digest = hashlib.sha256()
    for part in (held.offsets, held.indices, *((tests.offsets, tests.indices) if tests else ())):
        digest.update(part.astype("<i8").tobytes())
    digest.update(repr((federated.windows, federated.rounds_per_window)).encode())
    columns = [data.x_train]
    if data.regression:
        columns.append(np.append(data.y_train, data.y_test.var())[:, None])
    else:
        digest.update(data.y_train.astype("<i8").tobytes())
    return {
        "examples": len(data.x_train),
        "features": data.x_train.shape[1],
        "classes": data.num_classes,
        "clients": len(held),
        "held": digest.hexdigest(),
        "sketch": [number for values in columns for number in _sketch(values)],
    }


def _sketch(values: NDArray[Any]) -> list[float]:
    """Return the norm of a matrix and its projections on random signs."""
    rows, columns = values.shape
    left, right = _signs(0, rows), _signs(1, columns)
    square, sums = 0.0, np.zeros(PROJECTIONS)
    for start in range(0, rows, ROWS):
        part = values[start : start + ROWS].astype(np.float64)
        square += float((part * part).sum())
        sums += (left[:, start : start + ROWS] @ part * right).sum(axis=1)
    return [float(np.sqrt(square)), *map(float, sums)]


def _signs(key: int, length: int) -> NDArray[np.float64]:
    """Return random signs, shape (PROJECTIONS, length), the same on every machine."""
    bits = np.random.Philox(key=key).random_raw(PROJECTIONS * length) & np.uint64(1)
    return bits.reshape(PROJECTIONS, length).astype(np.float64) * 2 - 1


def difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how another fingerprint differs from the own one, or an empty string.

    Parameters
    ----------
    own, other : mapping
        As `fingerprint` returns them; the other one has come by message and may hold anything.
    """
    for name in ("examples", "features", "classes", "clients"):
        if other.get(name) != own[name] or isinstance(other.get(name), bool):
            return f"its data have {_short(other.get(name))} {name}, the server's {own[name]}"
    if other.get("held") != own["held"]:
        return "its labels, or the examples of its clients, are not the server's"
    sketch = other.get("sketch")
    if not isinstance(sketch, list) or len(sketch) != len(own["sketch"]):
        return "it sent no sketch of its features"
    mine = np.reshape(own["sketch"], (-1, 1 + PROJECTIONS))
    theirs = np.reshape(np.array(sketch, dtype=np.float64), mine.shape)
    if not (np.abs(mine - theirs) <= TOLERANCE * mine[:, :1]).all():
        return "its features are not the server's; they may be other examples, or preprocessed by other statistics"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
