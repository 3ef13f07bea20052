"""A place where clients run: their data, and what runs a block of them. Every engine has at least one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.clients import SGD
from fedsim.clients.base import (
    Task,
    Update,
    evaluate_shards,
    keeps_state,
    new_state,
    numpy_hooks,
    overrides,
    personalise,
    private_mask,
    run,
)
from fedsim.updates.compression import RESIDUAL, Compression, Transform
from fedsim.engines.supernodes.state import NodeState
from fedsim.engines.client_state import ClientState
from fedsim.errors import ClientError, DivergenceError, FedsimError
from fedsim.models.mlp import MLP
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose
from fedsim.text import describe

#: Partition ids -> a copy of their state.
Load = Callable[[NDArray[np.intp]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Evaluation:
    """What some clients would use themselves (the global model, unless their strategy personalises), on their examples.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    loss, accuracy : ndarray of float64, shape (clients,)
    failed : dict of int to FedsimError
        Partition id -> why a client is not among the rows.
    """

    partition_ids: NDArray[np.intp]
    num_examples: NDArray[np.intp]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    failed: Mapping[int, FedsimError] = field(default_factory=dict)


T = TypeVar("T")
D = TypeVar("D", Update, Evaluation)


def mean_evaluation(parts: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean loss and accuracy over the examples of all clients that evaluated, or NaN."""
    if not parts:
        return float("nan"), float("nan")
    examples, loss, accuracy = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("num_examples", "loss", "accuracy")
    )
    return float(np.average(loss, weights=examples)), float(np.average(accuracy, weights=examples))


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


def _concatenate(parts: Sequence[D]) -> D:
    """Return some clients' updates, or evaluations, as one."""
    if len(parts) == 1:
        return parts[0]

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {name: np.concatenate([rows[name] for rows in values]) for name in values[0]}
        return None if values[0] is None else np.concatenate(values)

    names = [f.name for f in fields(parts[0]) if f.name != "failed"]
    return type(parts[0])(**{name: joined([getattr(part, name) for part in parts]) for name in names})


class Site:
    """A place where clients run.

    Parameters
    ----------
    net : MLP
    federated : FederatedDataset
        Who holds which examples.
    client : SGD
        The client strategy.
    seed : int
    kernel : {"numpy", "compiled"}
    compress : sequence of Transform
        What clients do to what they send.
    """

    def __init__(
        self,
        net: MLP,
        federated: FederatedDataset,
        client: SGD,
        seed: int,
        kernel: str,
        compress: Sequence[Transform] = (),
    ) -> None:
        self.net, self.federated, self.client, self.seed, self.kernel_name = net, federated, client, seed, kernel
        self.kernel = kernels.load(kernel)
        data = federated.dataset
        self.x = np.ascontiguousarray(data.x_train, dtype=net.dtype)
        self.y = data.y_train.astype(net.dtype) if data.regression else data.y_train
        #: Of the test targets, for regression.
        self.variance = float(data.y_test.var()) if data.regression else None
        self.partition, self._window = federated.at(1), 1
        shared = ~private_mask(client, net)
        self.compression = Compression(compress, shared, net.dtype) if compress else None

    def prepare(self) -> None:
        """Compile, or load what was compiled."""
        if self.kernel_name == "compiled":
            self.kernel.prepare(self.net.dtype, targets=self.variance is not None)

    def at(self, round_number: int) -> None:
        """Take up what clients train on in a round."""
        window = self.federated.window(round_number)
        if window != self._window:
            self.partition, self._window = self.federated.at(round_number), window

    @property
    def partition_test(self) -> Partition:
        """What each client evaluates on."""
        own = self.federated.partition_test
        return self.partition if own is None else own

    def task(
        self,
        weights: NDArray[Any],
        round_number: int,
        client: SGD | None = None,
        down: Mapping[str, NDArray[Any]] | None = None,
        purpose: Purpose = Purpose.SHUFFLE,
    ) -> Task:
        """Return what clients are to do in a round, from global weights of shape (parameters,)."""
        self.at(round_number)
        return Task(
            self.net, client or self.client, self.x, self.y, self.partition, weights,
            round_number, self.seed, down or {}, self.kernel_name, purpose,
        )  # fmt: skip

    def load_state(
        self, task: Task, block: NDArray[np.intp], state: ClientState | NodeState
    ) -> dict[str, NDArray[Any]]:
        """Return a copy of what clients kept, new for those that are here for the first time."""
        if not self.keeps_state(task.strategy):
            return {}

        def make(new: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
            made = new_state(task, new)
            if self.compression and self.compression.feeds_back:
                made[RESIDUAL] = np.zeros((len(new), self.net.num_parameters), self.net.dtype)
            return made

        return state.load(block, make)

    def keeps_state(self, strategy: SGD) -> bool:
        """Whether clients keep anything between rounds."""
        feeds_back = self.compression is not None and self.compression.feeds_back
        return feeds_back or keeps_state(strategy, self.net)

    def only_fits(self, strategy: SGD) -> bool:
        """Whether a round is nothing but one fit of the compiled kernel, which threads can share."""
        plain = not overrides(strategy, "train") and not numpy_hooks(strategy)
        return plain and self.kernel_name == "compiled" and self.compression is None

    def train(self, task: Task, block: NDArray[np.intp], load: Load) -> Update:
        """Train a block of clients; those that raise an error are left out, with the reason.

        Parameters
        ----------
        task : Task
        block : ndarray of int, shape (clients,)
            Partition ids, none of an empty client.
        load : callable
            Partition ids -> a copy of their state, which training may change.
        """

        def run_some(clients: NDArray[np.intp]) -> Update:
            with np.errstate(all="ignore"):  # divergence is reported by name
                update = run(task, clients, load(clients))
                if self.compression:
                    update = self._compressed(self.compression, task, update)
                return self.measured(task, update)

        updates, failed = isolate_failures(run_some, block, task.round)
        if not updates:
            weights = np.empty((0, self.net.num_parameters), self.net.dtype)
            return Update(block[:0], block[:0], weights, np.empty(0), moved=np.empty(0), failed=failed)
        return replace(_concatenate(updates), failed=failed)

    def measured(self, task: Task, update: Update) -> Update:
        """Return an update that says how far clients moved."""
        if update.moved is not None:
            return update
        return replace(update, moved=self.kernel.movement(update.weights, task.global_weights))

    def _compressed(self, compression: Compression, task: Task, update: Update) -> Update:
        """Return what the server makes of an update that is compressed on its way."""
        change = update.weights - task.global_weights
        kept = update.state
        if compression.feeds_back:
            change += kept[RESIDUAL]
        who = (task.seed, task.round, update.partition_ids)
        encoded = compression.encode(change, *who)
        arrived = compression.decode(encoded, *who)
        if compression.feeds_back:
            kept = {**kept, RESIDUAL: change - arrived}
        return replace(update, weights=task.global_weights + arrived, state=kept, encoded=encoded, moved=None)

    def evaluate(self, task: Task, block: NDArray[np.intp], load: Load) -> Evaluation:
        """Evaluate what a block of clients would use, on their own examples; parameters as for `train`."""
        held = self.partition_test

        def evaluate_some(clients: NDArray[np.intp]) -> Evaluation:
            weights = task.global_weights[None]
            with np.errstate(all="ignore"):
                if self.personalises(task.strategy):
                    weights = personalise(task, clients, load(clients))
                loss, accuracy = evaluate_shards(task, held, clients, weights)
            return Evaluation(clients, held.sizes[clients], loss, self.score(loss, accuracy))

        results, failed = isolate_failures(evaluate_some, block, task.round)
        if not results:
            return Evaluation(block[:0], block[:0], np.empty(0), np.empty(0), failed)
        return replace(_concatenate(results), failed=failed)

    def personalises(self, strategy: SGD) -> bool:
        """Whether clients use anything but the global weights."""
        return overrides(strategy, "personalise") or bool(strategy.private_layers(self.net))

    def score(self, loss: Any, accuracy: Any) -> Any:
        """Return the accuracy, or for regression R squared: what of the test targets' variance the errors leave."""
        if self.variance is None:
            return accuracy
        return 1 - loss / self.variance if self.variance else loss * np.nan
