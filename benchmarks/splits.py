"""The time that each split needs to divide ten million labels among a hundred thousand clients."""

from __future__ import annotations

import numpy as np

from benchmarks.measure import median, take_turns
from fedsim.splits import (
    IID,
    Dirichlet,
    LabelDirichlet,
    LabelsPerClient,
    LogNormal,
    Mixture,
    Natural,
    Shards,
    Split,
)

EXAMPLES, CLIENTS, CLASSES = 10_000_000, 100_000, 10
SPLITS: list[Split] = [
    IID(CLIENTS),
    IID(CLIENTS, sizes=LogNormal(1.0)),
    Shards(CLIENTS, per_client=2),
    Dirichlet(CLIENTS, alpha=0.3),
    LabelDirichlet(CLIENTS, alpha=0.5),
    LabelsPerClient(CLIENTS, k=2),
    Natural("who"),
    Mixture(IID(CLIENTS), Shards(CLIENTS, per_client=1), share=0.1),
]


def measure(samples: int) -> dict[str, float]:
    """Return the median seconds by split."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, EXAMPLES)
    groups = {"who": rng.integers(0, CLIENTS, EXAMPLES)}
    peers = {str(split): lambda split=split: split.partition(labels, 0, groups) for split in SPLITS}
    return {name: median(seconds) for name, seconds in take_turns(peers, min(samples, 3)).items()}
