"""Client strategies: the local algorithm, written over arrays of shape (clients, parameters)."""

from fedsim.clients.fedprox import FedProx
from fedsim.clients.sgd import SGD, ClientStrategy, Context

__all__ = ["SGD", "ClientStrategy", "Context", "FedProx"]
