"""Compiling functions with Numba, and the cache of machine code on disk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock
from numba.core import event
from numba.extending import intrinsic as numba_intrinsic
from tqdm import tqdm

from fedsim import streams

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_HELPER = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
#: Decorator of a function that only compiled functions call.
helper: Callable[[Any], Any] = numba.njit(**_HELPER)
#: The same, inlined by Numba: for parts of a long function, which compile faster than functions of their own.
inlined: Callable[[Any], Any] = numba.njit(**_HELPER, inline="always")
#: The same for a sum that may be split over the lanes of a vector.
sum_helper: Callable[[Any], Any] = numba.njit(**_HELPER, fastmath={"reassoc"})
intrinsic: Callable[[Any], Any] = numba_intrinsic


def named_helper(name: str) -> Callable[[Any], Any]:
    """Return `helper` for a nested function, which is given a unique name.

    Numba distinguishes functions with equal names and signatures by a number that it counts in each process. Machine
    code that two processes stored on disk can contain different functions under the same number, and a third process
    that loads both would call one instead of the other.
    """

    def decorate(function: Any) -> Any:
        function.__qualname__ = name
        return helper(function)

    return decorate


def _source_digest() -> str:
    """Return a digest of all source files that end up in the machine code."""
    digest = hashlib.sha256()
    root = Path(streams.__file__).parent
    for path in (*root.glob("streams.py"), *sorted(root.glob("kernels/compiled/*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_DIGEST = _source_digest()


def cached(function: Any) -> Any:
    """Compile on demand, and store the machine code on disk where Numba finds a writable folder.

    Numba discards stored machine code when the file of `function` has changed, but not when that of a helper has. The
    name, under which Numba stores it, therefore contains a digest of all files.
    """
    function.__qualname__ += f"_{_DIGEST}"
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no writable folder
        return numba.njit(**_OPTIONS)(function)


class _Announcement(event.Listener):  # type: ignore[misc]
    """Prints one line when the first compilation starts."""

    printed = False

    def on_start(self, event: Any) -> None:
        if not self.printed:
            self.printed = True
            tqdm.write("fedsim: compiling the fast kernel for this machine, once; a few seconds", file=sys.stderr)

    def on_end(self, event: Any) -> None:
        pass


def compile_all(wanted: list[tuple[Any, Any]]) -> None:
    """Compile `cached` functions, or load their machine code, for a signature each."""
    missing = [(function, signature) for function, signature in wanted if signature.args not in function.overloads]
    if not missing:
        return
    with _single_process(missing[0][0].stats.cache_path), event.install_listener("numba:compile", _Announcement()):
        for function, signature in missing:
            try:
                function.compile(signature)
            except OSError:  # the machine code could not be stored, but is in memory
                if signature.args not in function.overloads:
                    raise


@contextmanager
def _single_process(folder: str | None) -> Iterator[None]:
    """Let one process at a time compile and write to a folder: Numba's index on disk allows only one writer."""
    with ExitStack() as stack:
        if folder:
            with suppress(OSError):  # no process can write to a read-only folder
                stack.enter_context(FileLock(Path(folder) / "fedsim-kernels.lock"))
        yield
