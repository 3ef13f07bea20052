"""Finds the clients of a block that raise an error, so that the others' results count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import ClientError, DivergenceError, FedsimError
from fedsim.text import describe

T = TypeVar("T")


def isolate_failures(
    call: Callable[[NDArray[np.intp]], T], block: NDArray[np.intp], round_number: int
) -> tuple[list[T], dict[int, FedsimError]]:
    """Call a function of a block of clients; where it raises, of each client alone, which gives the same rows.

    Parameters
    ----------
    call : callable
        Partition ids, shape (clients,) -> the result for them.
    block : ndarray of int, shape (clients,)
    round_number : int

    Returns
    -------
    results : list
        In the order of the clients.
    failed : dict of int to FedsimError
        Partition id -> what went wrong.

    Raises
    ------
    FedsimError, MemoryError
        Raised by the call: not the fault of one client.
    """
    client = int(block[0])
    try:
        return [call(block)], {}
    except DivergenceError as error:
        if len(block) == 1:
            return [], {client: error}
    except (FedsimError, MemoryError):
        raise
    except Exception as error:
        if len(block) == 1:
            failure = ClientError(client, round_number, describe(error))
            failure.__cause__ = error
            return [], {client: failure}
    results, failed = list[T](), dict[int, FedsimError]()
    for k in range(len(block)):
        found, lost = isolate_failures(call, block[k : k + 1], round_number)
        results += found
        failed |= lost
    return results, failed


def concatenate(parts: Sequence[T]) -> T:
    """Return some clients' updates, or evaluations, as one."""
    first: Any = parts[0]
    if len(parts) == 1:
        return parts[0]

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {name: np.concatenate([rows[name] for rows in values]) for name in values[0]}
        return None if values[0] is None else np.concatenate(values)

    names = [f.name for f in fields(first) if f.name != "failed"]
    made: T = type(first)(**{name: joined([getattr(part, name) for part in parts]) for name in names})
    return made
