"""Splits: how a dataset is divided among clients, one family a file."""

from fedsim.splits.base import Partition, Split
from fedsim.splits.dirichlet import Dirichlet
from fedsim.splits.iid import IID
from fedsim.splits.shards import Shards

__all__ = ["IID", "Dirichlet", "Partition", "Shards", "Split"]
