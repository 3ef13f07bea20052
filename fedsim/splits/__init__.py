"""Splits: how a dataset is divided among clients; one file per family."""

from fedsim.splits.base import CountedSplit, Split
from fedsim.splits.concept import LabelNoise, LabelPermutation
from fedsim.splits.dirichlet import Dirichlet
from fedsim.splits.features import FeatureNoise, FeatureScale, Rotation
from fedsim.splits.federated import FederatedDataset
from fedsim.splits.flower_datasets import FlowerDatasets
from fedsim.splits.iid import IID
from fedsim.splits.label_dirichlet import LabelDirichlet
from fedsim.splits.labels_per_client import LabelsPerClient
from fedsim.splits.measure import skew
from fedsim.splits.mixture import Mixture, Pooled, Shared
from fedsim.splits.natural import Natural
from fedsim.splits.partition import Partition
from fedsim.splits.shards import Shards
from fedsim.splits.sizes import DirichletSizes, LogNormal, PowerLaw, Sizes
from fedsim.splits.time_ordered import TimeOrdered
from fedsim.splits.without import Without

__all__ = [
    "IID",
    "CountedSplit",
    "Dirichlet",
    "DirichletSizes",
    "FeatureNoise",
    "FeatureScale",
    "FederatedDataset",
    "FlowerDatasets",
    "LabelDirichlet",
    "LabelNoise",
    "LabelPermutation",
    "LabelsPerClient",
    "LogNormal",
    "Mixture",
    "Natural",
    "Partition",
    "Pooled",
    "PowerLaw",
    "Rotation",
    "Shards",
    "Shared",
    "Sizes",
    "Split",
    "TimeOrdered",
    "Without",
    "skew",
]
