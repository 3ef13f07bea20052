"""What clients receive for a round, and what they return: a task, updates, evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.clients.strategy import ClientStrategy
from fedsim.errors import FedsimError
from fedsim.kernels.fit import RunWork, run_inline
from fedsim.models import Model
from fedsim.splits import Partition
from fedsim.streams import Purpose

Array = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Task:
    """What all clients of a round share.

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
        What the server sent besides the weights.
    kernel : {"numpy", "compiled"}
    purpose : Purpose
        Of the shuffling: a fit for evaluation draws other random numbers than one for training.
    run_on_all_workers : callable
        Runs work on the threads that may share a block of clients.
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


@dataclass(frozen=True)
class Update:
    """What clients send after training, a row each, and their new client state.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    weights : ndarray, shape (clients, parameters)
    train_loss : ndarray of float64, shape (clients,)
        Mean over the examples processed, measured before each step; NaN if anything sent is not finite.
    up, state : dict of str to ndarray, shape (clients, ...)
        Sent besides the weights; kept by the client until its next round.
    encoded : dict of str to ndarray, shape (clients, ...)
        What is sent in place of the weights if transforms encode them; the weights are then what the server decodes.
    update_norm : ndarray of float64, shape (clients,), optional
        Euclidean distance of the weights from the global ones; None if it has not been computed.
    failed : dict of int to FedsimError
        Partition id -> why a client is not among the rows.
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
    """Scores of clients on their own examples, with the weights that each client predicts with.

    Those are the global weights, unless the client strategy personalises.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    loss, accuracy : ndarray of float64, shape (clients,)
    failed : dict of int to FedsimError
        Partition id -> why a client is not among the rows.
    """

    partition_ids: Indices
    num_examples: Indices
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    failed: Mapping[int, FedsimError] = field(default_factory=dict)


def mean_evaluation(parts: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean loss and accuracy over the examples of all clients that evaluated, or NaN."""
    if not parts:
        return float("nan"), float("nan")
    examples, loss, accuracy = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("num_examples", "loss", "accuracy")
    )
    return float(np.average(loss, weights=examples)), float(np.average(accuracy, weights=examples))
