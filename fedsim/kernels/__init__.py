"""The local training loop, twice: `numpy`, the readable definition, and `compiled`, the fast one."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any

from fedsim.errors import ConfigError
from fedsim.models import MLP, Model

KERNELS = ("auto", "numpy", "compiled")

#: Floating-point operations from which a round is worth compiling for: about 20 ms of the NumPy kernel. Twenty such
#: rounds, an experiment's default, take as long as loading the compiled kernel.
LARGE_ROUND = 2e8


def choose(kernel: str, hooks: str, model: Model, examples: float) -> str:
    """Name the kernel that runs an experiment.

    The choice depends on the configuration, never on timing, because the two kernels agree only to rounding; and on
    the cost of one round, so that the number of rounds changes no bit of the first ones.

    Parameters
    ----------
    kernel : {"auto", "numpy", "compiled"}
        auto is `compiled` if rounds are large and it can run the strategy and the model, and Numba works.
    hooks : str
        The hook of the strategy that needs the NumPy kernel, such as ``"FedSAM's gradient()"``; empty if none.
    model : Model
        The compiled kernel trains the MLP only.
    examples : float
        Examples trained on in a round, by all of its clients, repetitions counted.

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
                f"kernel is 'compiled' but {hooks} is NumPy; "
                "allowed: 'auto', 'numpy', or a strategy that overrides affine() instead"
            )
        if reason := missing():
            raise ConfigError(f"kernel is 'compiled' but {reason}; allowed: 'auto', 'numpy'")
        return kernel
    if hooks or not is_mlp or 3 * model.flops * examples < LARGE_ROUND:
        return "numpy"
    if reason := missing():
        _notice(reason)
        return "numpy"
    return "compiled"


@cache
def _notice(reason: str) -> None:
    """Say once why large rounds are slow."""
    print(f"fedsim: running on the NumPy kernel, which is slower: {reason}", file=sys.stderr)


@cache
def missing() -> str:
    """Say why the compiled kernel cannot run here, or return an empty string."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        load("compiled")
    except Exception as error:  # whatever is wrong with Numba, LLVM or their files, there is another kernel
        return f"Numba does not work here ({type(error).__name__}: {error}); pip install --force-reinstall numba"
    return ""


@cache
def load(kernel: str) -> Any:
    """Return a kernel's module."""
    return import_module(f"fedsim.kernels.{kernel}")
