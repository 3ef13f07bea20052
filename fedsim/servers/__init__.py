"""Server strategies: subclasses of Flower's `Strategy` that aggregate as replies stream in."""

from fedsim.servers.fedavg import FedAvg

__all__ = ["FedAvg"]
