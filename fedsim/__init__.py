"""fedsim: federated learning with Flower, simulated in seconds on a laptop, to study the effects of non-IID data."""

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

# Flower sends usage statistics unless this is set before Flower is imported. A value set by the user is kept.
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
    """Import a public class or function when it is first used, so that ``import fedsim`` is fast."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
