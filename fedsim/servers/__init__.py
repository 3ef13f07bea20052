"""Server strategies: seeded subclasses of Flower's `Strategy` that aggregate updates as they arrive."""

from fedsim.servers.agnostic import AgnosticFL
from fedsim.servers.centered_clipping import CenteredClipping
from fedsim.servers.fedavg import FedAvg
from fedsim.servers.fedavgm import FedAvgM
from fedsim.servers.fedexp import FedExP
from fedsim.servers.fedmgda import FedMGDA
from fedsim.servers.fedopt import FedAdagrad, FedAdam, FedYogi
from fedsim.servers.fltrust import FLTrust
from fedsim.servers.foolsgold import FoolsGold
from fedsim.servers.krum import Bulyan, Krum, MultiKrum
from fedsim.servers.median import FedMedian, FedTrimmedAvg
from fedsim.servers.norm_bounding import NormBounding
from fedsim.servers.qfedavg import QFedAvg
from fedsim.servers.rfa import RFA
from fedsim.servers.spectral import SpectralFilter
from fedsim.servers.term import TERM

__all__ = [
    "RFA",
    "TERM",
    "AgnosticFL",
    "Bulyan",
    "CenteredClipping",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedExP",
    "FedMGDA",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "FoolsGold",
    "Krum",
    "MultiKrum",
    "NormBounding",
    "QFedAvg",
    "SpectralFilter",
]
