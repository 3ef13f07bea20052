"""The local training loop, twice: `numpy`, the readable definition, and `compiled`, the fast one."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from fedsim.models.mlp import MLP

KERNELS = ("auto", "numpy", "compiled")

#: Floating-point operations from which a round is worth compiling for: about 20 ms of the NumPy kernel. Twenty such
#: rounds, an experiment's default, take as long as loading the compiled kernel.
LARGE_ROUND = 2e8


def choose(kernel: str, hooks: str, net: MLP, examples: float) -> str:
    """Name the kernel that runs an experiment.

    Decided by the configuration alone, never by timing, for the two agree only to rounding; and by what one round
    costs, so that the number of rounds changes no bit of the first ones.

    Parameters
    ----------
    kernel : {"auto", "numpy", "compiled"}
        auto is `compiled` where rounds are large and it can run the strategy, on machines where Numba works.
    hooks : str
        What the strategy does in a step that is NumPy, such as ``"FedSAM's gradient()"``; empty if nothing.
    net : MLP
    examples : float
        Examples trained on in a round, by all of its clients, repetitions counted.

    Raises
    ------
    ConfigError
        ``compiled`` is asked for and cannot be had.
    """
    if kernel == "numpy":
        return kernel
    if kernel == "compiled":
        if hooks:
            raise ConfigError(
                f"kernel is 'compiled' but {hooks} is NumPy; "
                "allowed: 'auto', 'numpy', or a strategy that overrides affine() instead"
            )
        if reason := missing():
            raise ConfigError(f"kernel is 'compiled' but {reason}; allowed: 'auto', 'numpy'")
        return kernel
    if hooks or 6 * net.num_parameters * examples < LARGE_ROUND:
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
