"""Two implementations of local training: `numpy`, the readable definition, and `compiled`, the fast one."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any

from fedsim.errors import ConfigError
from fedsim.models import MLP, Model

KERNELS = ("auto", "numpy", "compiled")

#: Smallest number of floating-point operations per round for the compiled kernel, about 20 ms of the NumPy kernel. An
#: experiment's default of twenty such rounds takes as long as loading the compiled kernel.
LARGE_ROUND = 2e8


def choose(kernel: str, hooks: str, model: Model, examples: float) -> str:
    """Return the name of the kernel for an experiment.

    The kernels agree only up to rounding, so the choice depends on the configuration and not on timing. It depends on
    the cost of one round, so that a longer run starts with the same bits.

    Parameters
    ----------
    kernel : {"auto", "numpy", "compiled"}
        ``auto`` is ``compiled`` if rounds are large, the kernel supports the strategy and the model, and Numba works.
    hooks : str
        The hook of the strategy that requires the NumPy kernel, such as ``"FedSAM's gradient()"``; empty if none.
    model : Model
        The compiled kernel trains the MLP only.
    examples : float
        Number of examples on which all clients of a round train, including repetitions.

    Raises
    ------
    ConfigError
        ``compiled`` is requested and not available.
    """
    if kernel == "numpy":
        return kernel
    is_mlp = type(model) is MLP
    if kernel == "compiled":
        if not is_mlp:
            raise ConfigError(
                f"kernel is 'compiled', which trains the MLP only, and the model is a {type(model).__name__}; "
                "allowed: 'auto', 'numpy'"
            )
        if hooks:
            raise ConfigError(
                f"kernel is 'compiled' but {hooks} runs in the NumPy kernel only; "
                "allowed: 'auto', 'numpy', or a strategy that overrides affine() instead"
            )
        if reason := missing():
            raise ConfigError(f"kernel is 'compiled' but {reason}; allowed: 'auto', 'numpy'")
        return kernel
    if hooks or not is_mlp or round_flops(model, examples) < LARGE_ROUND:
        return "numpy"
    if reason := missing():
        _notice(reason)
        return "numpy"
    return "compiled"


def round_flops(model: Model, examples: float) -> float:
    """Return the number of floating-point operations of training on some examples."""
    return 3 * model.flops * examples


@cache
def _notice(reason: str) -> None:
    """Print once why large rounds run on the NumPy kernel."""
    print(f"fedsim: running on the NumPy kernel, which is slower: {reason}", file=sys.stderr)


@cache
def missing() -> str:
    """Return the reason why the compiled kernel is not available, or an empty string."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        load("compiled")
    except Exception as error:  # any error of Numba, LLVM or their files
        return f"Numba does not work here ({type(error).__name__}: {error}); pip install --force-reinstall numba"
    return ""


@cache
def load(kernel: str) -> Any:
    """Return a kernel's module."""
    return import_module(f"fedsim.kernels.{kernel}")
