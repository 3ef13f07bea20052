"""Splits by the partitioners of Flower Datasets (extra ``hub``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.checks import check_choice, check_instance
from fedsim.errors import ConfigError, missing_extra
from fedsim.splits.base import Split
from fedsim.splits.partition import Groups, Partition
from fedsim.streams import Purpose


@dataclass(frozen=True)
class FlowerDatasets(Split):
    """Shuffle like Flower's FederatedDataset, then divide with a partitioner of ``flwr_datasets.partitioner``.

    ``FlowerDatasets("DirichletPartitioner", {"num_partitions": 100, "partition_by": "label", "alpha": 0.5})``. The
    labels are in the column ``label``, the dataset's groups in columns with their names.

    Parameters
    ----------
    partitioner : str
        Name of the class.
    options : mapping
        Arguments of the class; its seed is drawn from the split's seed unless given here.
    seed : int, optional, keyword

    Raises
    ------
    ConfigError
        The extra is not installed, the partitioner does not exist, or it refuses the options.
    """

    partitioner: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_instance("FlowerDatasets's partitioner", self.partitioner, str, "a class's name")
        check_instance("FlowerDatasets's options", self.options, Mapping, "a dict of the class's arguments")

    def __str__(self) -> str:
        return self.partitioner

    def partition(self, labels: NDArray[Any], seed: int = 0, groups: Groups | None = None) -> Partition:
        """Divide examples, as `Split.partition` says."""
        try:
            import flwr_datasets.partitioner as partitioners
            from datasets import Dataset, disable_progress_bars
        except ImportError:
            raise missing_extra("the split FlowerDatasets", "hub") from None
        names = [name for name in partitioners.__all__ if name.endswith("Partitioner")]
        check_choice("FlowerDatasets's partitioner", self.partitioner, names)
        disable_progress_bars()
        cls = getattr(partitioners, self.partitioner)
        options = dict(self.options)
        if "seed" in inspect.signature(cls).parameters:
            options.setdefault("seed", int(self.rng(seed).integers(2**31)))
        row = "_row"  # an additional column that identifies the examples
        order = self.rng(seed, Purpose.SPLIT_CHANGE).permutation(len(labels))
        columns = {"label": np.asarray(labels)[order], **{k: v[order] for k, v in (groups or {}).items()}, row: order}
        try:
            partitioner = cls(**options)
            partitioner.dataset = Dataset.from_dict(columns)
            shards = [np.asarray(partitioner.load_partition(k)[row]) for k in range(partitioner.num_partitions)]
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"FlowerDatasets's {self.partitioner} refuses {dict(self.options)}: {error}") from None
        return Partition.from_sizes(np.concatenate(shards), np.array(list(map(len, shards))))
