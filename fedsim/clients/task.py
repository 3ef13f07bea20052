"""The inputs and results of clients in a round: tasks, updates and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.example_noise import ExampleNoise
from fedsim.clients.strategy import ClientStrategy
from fedsim.errors import FedsimError
from fedsim.kernels.fit import RunWork, run_inline
from fedsim.models import Array, Model
from fedsim.splits.partition import Indices, Partition
from fedsim.streams import Purpose


@dataclass(frozen=True)
class Task:
    """The inputs that all clients of a round share.

    Attributes
    ----------
    model : Model
    strategy : ClientStrategy
    x : ndarray, shape (examples, ...)
        The examples of all clients, of the model's dtype.
    y : ndarray, shape (examples,)
        Labels, or targets of the model's dtype.
    partition : Partition
        The examples that each client trains on.
    global_weights : ndarray, shape (parameters,)
        The weights that the server sent; read-only.
    round, seed : int
    down : dict of str to ndarray
        The arrays that the server sent besides the weights.
    kernel : {"numpy", "compiled"}
    purpose : Purpose
        Purpose of the shuffles' random numbers, which differ between training and evaluation.
    run_on_all_workers : callable
        Calls a function on all threads that may share a block of clients.
    protect : callable, optional
        ``protect(task, update)`` returns updates as the server sees them under secure aggregation.
    example_noise : ExampleNoise, optional
        Clients take the steps of DP-SGD.
    groups : ndarray of int, shape (examples,), optional
        The group of people of each example, from 0; see `fedsim.clients.sensitive`.
    client_names : sequence of str
        By partition id; empty if clients have numbers only.
    """

    model: Model
    strategy: ClientStrategy
    x: Array
    y: Array
    partition: Partition
    global_weights: Array
    round: int
    seed: int
    down: Mapping[str, Array] = field(default_factory=dict)
    kernel: str = "numpy"
    purpose: Purpose = Purpose.SHUFFLE
    run_on_all_workers: RunWork = run_inline
    protect: Callable[[Task, Update], Update] | None = None
    example_noise: ExampleNoise | None = None
    groups: Indices | None = None
    client_names: Sequence[str] = ()


@dataclass(frozen=True)
class Update:
    """The results of clients after training, one row each, and their new client state.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    weights : ndarray, shape (clients, parameters)
    train_loss : ndarray of float64, shape (clients,)
        Mean over the examples processed, measured before each step; NaN if an array that is sent is not finite.
    up : dict of str to ndarray, shape (clients, ...)
        The arrays that are sent besides the weights.
    state : dict of str to ndarray, shape (clients, ...)
        The new client state.
    encoded : dict of str to ndarray, shape (clients, ...)
        The arrays that are sent instead of the weights if transforms encode them; `weights` are then decoded from them.
        Under secure aggregation all that is sent, masked; the other arrays are then empty, or 0.
    update_norm : ndarray of float64, shape (clients,), optional
        Euclidean distance of the weights from the global ones; None if it has not been computed.
    failed : dict of int to FedsimError
        Partition id -> the error of a client that is not among the rows.
    """

    partition_ids: Indices
    num_examples: Indices
    weights: Array
    train_loss: NDArray[np.float64]
    up: Mapping[str, Array] = field(default_factory=dict)
    state: Mapping[str, Array] = field(default_factory=dict)
    encoded: Mapping[str, Array] = field(default_factory=dict)
    update_norm: NDArray[np.float64] | None = None
    failed: Mapping[int, FedsimError] = field(default_factory=dict)

    @classmethod
    def without_rows(cls, model: Model, failed: Mapping[int, FedsimError]) -> Update:
        """Return the update of a block in which every client has failed."""
        none, nothing = np.empty(0, np.intp), np.empty(0)
        weights = np.empty((0, model.num_parameters), model.dtype)
        return cls(none, none, weights, nothing, update_norm=nothing, failed=failed)

    def rows(self, select: NDArray[np.bool_]) -> Update:
        """Return some of the rows."""

        def some(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: rows[select] for name, rows in value.items()}
            return value if value is None else value[select]

        return Update(**{f.name: some(getattr(self, f.name)) for f in fields(self) if f.name != "failed"})


@dataclass(frozen=True)
class Evaluation:
    """The clients' loss and accuracy on their own examples.

    Clients evaluate the weights of `ClientStrategy.personalise`, by default the global ones.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    loss, accuracy : ndarray of float64, shape (clients,)
    failed : dict of int to FedsimError
        Partition id -> the error of a client that is not among the rows.
    measured : dict of str to ndarray, shape (clients, ...)
        The values of the experiment's measures; see `fedsim.clients.measures`.
    """

    partition_ids: Indices
    num_examples: Indices
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    failed: Mapping[int, FedsimError] = field(default_factory=dict)
    measured: Mapping[str, Array] = field(default_factory=dict)


def mean_evaluation(parts: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean loss and accuracy over the examples of all clients, NaN if `parts` is empty."""
    if not parts:
        return float("nan"), float("nan")
    examples, loss, accuracy = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("num_examples", "loss", "accuracy")
    )
    return float(np.average(loss, weights=examples)), float(np.average(accuracy, weights=examples))
