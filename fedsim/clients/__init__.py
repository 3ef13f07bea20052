"""Client strategies: the local algorithm, written over arrays of shape (clients, parameters)."""

from fedsim.clients.base import Affine, Context, ServerContext
from fedsim.clients.fedprox import FedProx
from fedsim.clients.sgd import SGD, ClientStrategy

__all__ = ["SGD", "Affine", "ClientStrategy", "Context", "FedProx", "ServerContext"]
