"""Isolation of the clients of a block that raise an error, so that the results of the others are kept."""

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
    """Call a function for a block of clients and, if it raises, for each client alone, which gives the same rows.

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
        Partition id -> error.

    Raises
    ------
    FedsimError, MemoryError
        Raised by the function for a reason other than one client.
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
        result, errors = isolate_failures(call, block[k : k + 1], round_number)
        results += result
        failed |= errors
    return results, failed


def concatenate(parts: Sequence[T]) -> T:
    """Return the updates, or the evaluations, of several blocks as those of one."""
    first: Any = parts[0]
    if len(parts) == 1:
        return parts[0]

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {name: np.concatenate([rows[name] for rows in values]) for name in values[0]}
        return None if values[0] is None else np.concatenate(values)

    names = [f.name for f in fields(first) if f.name != "failed"]
    return type(first)(**{name: joined([getattr(part, name) for part in parts]) for name in names})
