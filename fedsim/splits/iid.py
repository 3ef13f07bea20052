"""Independent and identically distributed shards of equal or given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.splits.base import CountedSplit
from fedsim.splits.partition import Partition
from fedsim.splits.sizes import Sizes, check_sizes, client_sizes


@dataclass(frozen=True)
class IID(CountedSplit):
    """Shuffle and cut into `num_clients` parts, whose sizes differ by at most one unless `sizes` is given.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017
    (arXiv:1602.05629), section 3. With `sizes` there is quantity skew only: NIID-Bench's ``iid-diff-quantity`` is
    ``IID(100, sizes=DirichletSizes(0.5, least=10))``.

    Parameters
    ----------
    num_clients : int
    sizes : Sizes or sequence of int, optional
        A size distribution (`LogNormal`, `PowerLaw`, `DirichletSizes`), or the number of examples of each client; the
        remaining examples are not assigned.
    seed : int, optional, keyword
    """

    sizes: Sizes | Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sizes", check_sizes("IID's sizes", self.sizes, self.num_clients))

    def assign(self, labels: NDArray[Any], rng: np.random.Generator) -> Partition:
        """Shuffle and cut."""
        indices = rng.permutation(len(labels))
        sizes = client_sizes(self.sizes, len(labels), self.num_clients, rng)
        return Partition.from_sizes(indices[: sizes.sum()], sizes)
