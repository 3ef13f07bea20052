"""A fingerprint of the data, which must be the same on the server and its SuperNodes.

Labels and the examples of each client are compared exactly. Features are compared to rounding, because machines of
different types round the same preprocessing differently. The comparison uses random projections: one changed example,
another order of rows or columns, or standardisation by other statistics changes them far more than rounding does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.splits import FederatedDataset

#: Number of projections, and of the rows that are projected at a time.
PROJECTIONS, ROWS = 8, 4096
#: Largest difference due to rounding, as a share of the features' norm.
TOLERANCE = 1e-5


def fingerprint(federated: FederatedDataset) -> dict[str, int | str | list[float]]:
    """Return what identifies a federated dataset, as values that Flower's ConfigRecord holds.

    Parameters
    ----------
    federated : FederatedDataset
        After all preprocessing.

    Returns
    -------
    dict
        ``examples``, ``features``, ``classes`` and ``clients`` are counts; ``held`` is a hash of the labels and of the
        examples of each client; ``sketch`` holds the norm of the features (and of the targets for regression), each
        followed by the projections.
    """
    data, partition = federated.dataset, federated.partition
    others = [part for part in (federated.partition_test, federated.poisoned) if part is not None]
    digest = hashlib.sha256()
    for part in (partition, *others):
        digest.update(part.offsets.astype("<i8").tobytes())
        digest.update(part.indices.astype("<i8").tobytes())
    digest.update(repr((federated.windows, federated.rounds_per_window)).encode())
    for name, values in sorted(data.groups.items()):
        digest.update(repr((name, values.tolist())).encode())
    columns = [data.x_train]
    if data.regression:
        columns.append(np.append(data.y_train, data.y_test.var())[:, None])
    else:
        digest.update(data.y_train.astype("<i8").tobytes())
    return {
        "examples": len(data.x_train),
        "features": data.x_train.shape[1],
        "classes": data.num_classes,
        "clients": len(partition),
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
    """Return how another fingerprint differs from the server's own one, or an empty string.

    Parameters
    ----------
    own, other : mapping
        As `fingerprint` returns them; the other one was received and may hold anything.
    """
    for name in ("examples", "features", "classes", "clients"):
        if other.get(name) != own[name] or isinstance(other.get(name), bool):
            text = repr(other.get(name))
            text = text if len(text) <= 40 else f"{text[:40]}..."
            return f"its data have {text} {name}, the server's {own[name]}"
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
