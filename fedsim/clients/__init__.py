"""Client strategies: the local algorithm, written over arrays of shape (clients, parameters)."""

from fedsim.clients.fedprox import FedProx
from fedsim.clients.sgd import SGD, Affine, ClientStrategy, Context

__all__ = ["SGD", "Affine", "ClientStrategy", "Context", "FedProx"]
