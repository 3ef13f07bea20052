"""Processing of clients' updates between local training and the new global model: transforms and aggregators."""

from fedsim.updates.compression import Float16, Int8, RandomMask, TopK
from fedsim.updates.transform import TransformContext, UpdateTransform

__all__ = ["Float16", "Int8", "RandomMask", "TopK", "TransformContext", "UpdateTransform"]
