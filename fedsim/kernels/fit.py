"""The inputs and the result of a fit, the local training of a block of clients, for both kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.models import Array, Model
from fedsim.splits.partition import Indices, Partition

#: ``run(work)`` calls ``work()`` on every worker thread that is available, and returns when all calls have returned.
RunWork = Callable[[Callable[[], None]], None]


def run_inline(work: Callable[[], None]) -> None:
    """Call ``work()`` on this thread only."""
    work()


@dataclass(frozen=True)
class PrivateSteps:
    """The steps of DP-SGD: a batch drawn at random in each step, clipped gradients of its examples, and noise.

    A step's gradient is ``(sum of the clipped gradients + noise * normal numbers) / expected``. A clipped gradient is
    an example's, over all trained parameters, scaled down to the norm `clip` if it is longer.

    Attributes
    ----------
    clip, noise : float
    counts : ndarray of int, shape (steps, clients)
        Size of the batch, from 0 to the client's number of examples.
    batches, normals : ndarray of uint64, shape (steps, clients)
        The stream keys of the choice of the batch, by `streams.choose` from the order that the step before left, and of
        the noise, `streams.normals` in the order of the parameters.
    expected : ndarray of float64, shape (clients,)
        Expected size of the batch.
    """

    clip: float
    noise: float
    counts: Indices
    batches: NDArray[np.uint64]
    normals: NDArray[np.uint64]
    expected: NDArray[np.float64]


@dataclass
class FitJob:
    """The local training of a block of clients.

    Attributes
    ----------
    model : Model
    x : ndarray, shape (examples, ...)
        The examples of all clients, of the model's dtype.
    y : ndarray, shape (examples,)
    partition : Partition
        The examples of each client.
    clients : ndarray of int, shape (clients,)
        Partition ids, none of an empty client, in order of falling size.
    start : ndarray, shape (clients, parameters) or (1, parameters)
    steps : ndarray of int, shape (clients,)
        Number of steps of each client.
    shuffles : ndarray of uint64, shape (epochs, clients)
        The stream key of each client's shuffle in each epoch.
    batch_size : int
        0 for the whole shard.
    lr : ndarray of float64, shape (clients,)
    momentum, weight_decay, mu : float
    center : ndarray, shape (clients, parameters) or (1, parameters)
    correction : ndarray, shape (clients, parameters) or (1, parameters), optional
    trained : tuple of bool
        Whether each of the model's groups of parameters is trained.
    run_on_all_workers : callable
        Calls a function on all threads that may share this block.
    gradient, direction : callable, optional
        The strategy's hooks, as ``gradient(rows, weights, x, y, examples)``, used instead of the model's gradient, and
        ``direction(rows, grad, weights)``. Only the NumPy kernel calls them.
    private : PrivateSteps, optional
        Take the steps of DP-SGD, without `shuffles`, `batch_size` and `gradient`.
    """

    model: Model
    x: Array
    y: Array
    partition: Partition
    clients: Indices
    start: Array
    steps: Indices
    shuffles: NDArray[np.uint64]
    batch_size: int
    lr: NDArray[np.float64]
    momentum: float
    weight_decay: float
    mu: float
    center: Array
    correction: Array | None
    trained: tuple[bool, ...]
    run_on_all_workers: RunWork = run_inline
    gradient: Callable[[slice | Indices, Array, Array, Array, Indices], tuple[Array, Array]] | None = None
    direction: Callable[[slice | Indices, Array, Array], Array] | None = None
    private: PrivateSteps | None = None


class FitResult(NamedTuple):
    """The result of a fit, one row per client.

    Attributes
    ----------
    weights : ndarray, shape (clients, parameters)
    loss : ndarray of float64, shape (clients,)
        Sum over the examples processed, measured before each step; NaN if a weight is not finite.
    update_norm : ndarray of float64, shape (clients,)
        Euclidean distance of each client's weights from its start.
    """

    weights: Array
    loss: NDArray[np.float64]
    update_norm: NDArray[np.float64]
