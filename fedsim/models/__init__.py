"""Models: the protocol, the losses, and the article's multilayer perceptron."""

from fedsim.models.mlp import MLP
from fedsim.models.model import Group, Model, make_layout, named_arrays

__all__ = ["MLP", "Group", "Model", "make_layout", "named_arrays"]
