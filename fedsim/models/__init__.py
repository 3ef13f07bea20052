"""Models: the protocol, the losses, and the article's multilayer perceptron."""

from fedsim.models.mlp import MLP
from fedsim.models.model import Array, Group, Model, flat_parameters, make_layout, named_arrays

__all__ = ["MLP", "Array", "Group", "Model", "flat_parameters", "make_layout", "named_arrays"]
