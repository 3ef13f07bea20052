"""Client strategies: the local algorithm, written over arrays of shape (clients, parameters)."""

from fedsim.clients.apfl import APFL
from fedsim.clients.clipped import ClippedSGD
from fedsim.clients.context import Array, Context
from fedsim.clients.ditto import Ditto
from fedsim.clients.fedala import FedALA
from fedsim.clients.feddyn import FedDyn
from fedsim.clients.fedlc import FedLC
from fedsim.clients.fednova import FedNova
from fedsim.clients.fedper import FedPer
from fedsim.clients.fedprox import FedProx
from fedsim.clients.fedrep import FedRep
from fedsim.clients.fedrs import FedRS
from fedsim.clients.fedsam import FedSAM
from fedsim.clients.fedsgd import FedSGD
from fedsim.clients.finetune import FineTune
from fedsim.clients.ifca import IFCA
from fedsim.clients.lgfedavg import LGFedAvg
from fedsim.clients.local_only import LocalOnly
from fedsim.clients.mimelite import MimeLite
from fedsim.clients.moon import MOON
from fedsim.clients.perfedavg import PerFedAvg
from fedsim.clients.pfedme import PFedMe
from fedsim.clients.scaffold import SCAFFOLD
from fedsim.clients.server_hooks import ServerContext, ServerHooks
from fedsim.clients.sgd import SGD, Affine
from fedsim.clients.strategy import ClientStrategy

__all__ = [
    "APFL",
    "IFCA",
    "MOON",
    "SCAFFOLD",
    "SGD",
    "Affine",
    "Array",
    "ClientStrategy",
    "ClippedSGD",
    "Context",
    "Ditto",
    "FedALA",
    "FedDyn",
    "FedLC",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRS",
    "FedRep",
    "FedSAM",
    "FedSGD",
    "FineTune",
    "LGFedAvg",
    "LocalOnly",
    "MimeLite",
    "PFedMe",
    "PerFedAvg",
    "ServerContext",
    "ServerHooks",
]
