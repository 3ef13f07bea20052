"""fedsim: what non-IID data does to federated learning, found out in seconds on a laptop."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.data import Dataset
    from fedsim.study.compare import compare
    from fedsim.study.experiment import Experiment
    from fedsim.study.result import Result
    from fedsim.study.study import Study

# Flower reports usage to its makers unless this is set before it is imported; the user's own setting stands.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

__version__ = "0.1.0"
__all__ = ["Dataset", "Experiment", "Result", "Study", "compare"]

_HOME = {
    "Dataset": "fedsim.data",
    "Experiment": "fedsim.study.experiment",
    "Result": "fedsim.study.result",
    "Study": "fedsim.study.study",
    "compare": "fedsim.study.compare",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``import fedsim`` costs nothing."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
