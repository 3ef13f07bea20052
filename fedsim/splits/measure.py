"""Measures of how non-IID a split is: sizes, labels and features of each client compared with the population."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arguments import checked_arguments
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.names import insert_names

if TYPE_CHECKING:
    import pandas as pd

#: Number of values that are copied at once, so that temporary arrays are small.
MAX_COPIED = 8_000_000


@checked_arguments
def skew(federated: FederatedDataset) -> pd.DataFrame:
    """Return one row per client that has examples.

    The population's label distribution q and feature means are those of all shards together; p is a client's label
    distribution. For regression, labels are the target's deciles. A small shard differs from the population by chance
    alone; compare with an IID split into as many clients.

    Parameters
    ----------
    federated : FederatedDataset

    Returns
    -------
    DataFrame
        ``client`` (followed by ``client_name`` if clients have names), ``examples``; ``labels``, number of distinct
        labels; ``total_variation``, ``sum |p - q| / 2``, 0 to 1;
        ``emd``, ``sum |p - q|``, the earth mover's distance of Zhao et al. (2018, arXiv:1806.00582, eq. 5), 0 to 2;
        ``jensen_shannon``, the divergence in bits, 0 to 1 (Lin, IEEE Trans. Inf. Theory 1991); ``effective_labels``,
        the exponential of p's entropy (Hill's number of order 1); ``feature_distance``, the root mean square over
        features of ``(mean of the client - mean) / standard deviation``.
    """
    import pandas as pd
    from scipy.special import rel_entr

    counts = federated.label_counts()
    sizes = federated.partition.sizes
    clients = np.flatnonzero(sizes)
    p = counts[clients] / sizes[clients, None]
    q = counts.sum(axis=0) / counts.sum()
    middle = (p + q) / 2
    distance = np.abs(p - q).sum(axis=1)
    entropy = rel_entr(p, 1).sum(axis=1)  # p log p, which is 0 for p = 0
    table = pd.DataFrame(
        {
            "client": clients,
            "examples": sizes[clients],
            "labels": (p > 0).sum(axis=1),
            "total_variation": distance / 2,
            "emd": distance,
            "jensen_shannon": (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2 * np.log(2)),
            "effective_labels": np.exp(-entropy),
            "feature_distance": _feature_distance(federated),
        }
    )
    return insert_names(table, federated.client_names, "client")


def _feature_distance(federated: FederatedDataset) -> NDArray[np.float64]:
    """Return the feature distance of each client that has examples; constant features are ignored."""
    x, part = federated.dataset.x_train.reshape(len(federated.dataset.x_train), -1), federated.partition
    clients, varying = np.flatnonzero(part.sizes), 0
    squares = np.zeros(len(clients))
    width = max(1, MAX_COPIED // len(part.indices))
    for first in range(0, x.shape[1], width):
        values = x[part.indices, first : first + width].astype(np.float64)
        mean = values.mean(axis=0)
        variance = (values * values).mean(axis=0) - mean * mean
        varies = variance > 1e-12 * (1 + mean * mean)
        means = np.add.reduceat(values, part.offsets[clients], axis=0) / part.sizes[clients, None]
        difference = (means - mean)[:, varies] / np.sqrt(variance[varies])
        squares += (difference * difference).sum(axis=1)
        varying += int(varies.sum())
    return np.sqrt(squares / max(varying, 1))


def gini(sizes: NDArray[Any]) -> float:
    """Return the Gini coefficient of sizes: 0 for equal sizes, close to 1 if one client has nearly everything."""
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def summary(federated: FederatedDataset) -> dict[str, float]:
    """Return the sizes of a split and the means over clients of the measures of `skew`.

    Returns
    -------
    dict of str to float
        ``clients, smallest, median, largest, gini``, then `skew`'s columns from ``labels`` on.
    """
    table, sizes = skew(federated), federated.partition.sizes
    means = table.loc[:, "labels":].mean()
    counts = {"clients": len(sizes), "smallest": sizes.min(), "median": np.median(sizes), "largest": sizes.max()}
    return {**counts, "gini": gini(sizes), **means.to_dict()}
