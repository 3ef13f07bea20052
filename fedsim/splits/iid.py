"""Independent and identically distributed shards: the examples shuffled and cut into equal parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.splits.base import Partition, Split, even_offsets


@dataclass(frozen=True)
class IID(Split):
    """Shuffle and cut into `num_clients` parts whose sizes differ by at most one.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
    (arXiv:1602.05629), section 3.
    """

    def _partition(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        return Partition(rng.permutation(len(labels)), even_offsets(len(labels), self.num_clients))
