"""The client runtime: it trains and evaluates blocks of clients. Every engine has at least one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.clients import ClientStrategy
from fedsim.clients.full_pass import evaluate_shards
from fedsim.clients.local_round import has_client_state, new_client_state, personalise, run_local_round
from fedsim.clients.private import private_groups, private_mask
from fedsim.clients.sgd import numpy_hooks, overrides
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.isolation import concatenate, isolate_failures
from fedsim.models import Model
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose
from fedsim.updates.transform import RESIDUAL, Pipeline, UpdateTransform

Array = NDArray[Any]
Indices = NDArray[np.intp]
#: Partition ids -> a copy of their state.
LoadState = Callable[[Indices], dict[str, Array]]


class State(Protocol):
    """Client state that the runtime can load."""

    def load(self, clients: Indices, make: Callable[[Indices], Mapping[str, Array]]) -> dict[str, Array]:
        """Return a copy of clients' state, made new by ``make(partition ids)`` for those that have none."""


class ClientRuntime:
    """Trains and evaluates blocks of clients.

    Parameters
    ----------
    model : Model
    federated : FederatedDataset
        The examples of each client.
    client : ClientStrategy
        The client strategy.
    seed : int
    kernel : {"numpy", "compiled"}
    transforms : sequence of UpdateTransform
        Applied to the updates that clients send.
    """

    def __init__(
        self,
        model: Model,
        federated: FederatedDataset,
        client: ClientStrategy,
        seed: int,
        kernel: str,
        transforms: Sequence[UpdateTransform] = (),
    ) -> None:
        self._arguments = model, federated, client, seed, kernel, tuple(transforms)
        self.model, self.federated, self.client, self.seed, self.kernel_name = model, federated, client, seed, kernel
        self.kernel = kernels.load(kernel)
        data = federated.dataset
        self.x = np.ascontiguousarray(data.x_train, dtype=model.dtype)
        self.y = data.y_train.astype(model.dtype) if data.regression else data.y_train
        #: Of the test targets, for regression.
        self.variance = float(data.y_test.var()) if data.regression else None
        self.partition, self._window = federated.at(1), 1
        shared = ~private_mask(client, model)  # a mistake in the strategy is found here
        self.pipeline = Pipeline(transforms, shared, model.dtype) if transforms else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Make the runtime anew in another process, from the arguments that made it here."""
        return ClientRuntime, self._arguments

    def prepare(self) -> None:
        """Compile the kernel, or load what was compiled."""
        if self.kernel_name == "compiled":
            self.kernel.prepare(self.model.dtype, targets=self.variance is not None)

    def at(self, round_number: int) -> None:
        """Load the examples that clients train on in a round."""
        window = self.federated.window(round_number)
        if window != self._window:
            self.partition, self._window = self.federated.at(round_number), window

    @property
    def partition_test(self) -> Partition:
        """The examples that each client evaluates on."""
        own = self.federated.partition_test
        return self.partition if own is None else own

    def task(
        self,
        weights: Array,
        round_number: int,
        client: ClientStrategy | None = None,
        down: Mapping[str, Array] | None = None,
        purpose: Purpose = Purpose.SHUFFLE,
    ) -> Task:
        """Return what all clients of a round share, given the global weights of shape (parameters,)."""
        self.at(round_number)
        return Task(
            self.model, client or self.client, self.x, self.y, self.partition, weights,
            round_number, self.seed, down or {}, self.kernel_name, purpose,
        )  # fmt: skip

    def load_state(self, task: Task, state: State, clients: Indices) -> dict[str, Array]:
        """Return a copy of clients' state, made new for those that take part for the first time."""
        if not self.keeps_state(task.strategy):
            return {}

        def make(new: Indices) -> dict[str, Array]:
            made = new_client_state(task, new)
            if self.pipeline and self.pipeline.error_feedback:
                made[RESIDUAL] = np.zeros((len(new), self.model.num_parameters), self.model.dtype)
            return made

        return state.load(clients, make)

    def keeps_state(self, strategy: ClientStrategy) -> bool:
        """Whether clients have state between rounds."""
        has_residual = self.pipeline is not None and self.pipeline.error_feedback
        return has_residual or has_client_state(strategy, self.model)

    def only_fits(self, strategy: ClientStrategy) -> bool:
        """Whether a round is nothing but one fit of the compiled kernel, which threads can share."""
        plain = not overrides(strategy, "train") and not numpy_hooks(strategy)
        return plain and self.kernel_name == "compiled" and self.pipeline is None

    def train(self, task: Task, clients: Indices, load_state: LoadState) -> Update:
        """Train a block of clients; those that raise an error are left out, with the reason.

        Parameters
        ----------
        task : Task
        clients : ndarray of int, shape (clients,)
            Partition ids, none of an empty client.
        load_state : callable
            Partition ids -> a copy of their state, which training may change.

        Returns
        -------
        Update
            As the server works with it: encoded and decoded by the transforms, if there are any.
        """

        def train_some(some: Indices) -> Update:
            with np.errstate(all="ignore"):  # a client that diverges is reported by name
                update = run_local_round(task, some, load_state(some))
                if self.pipeline:
                    update = self.pipeline.on_client(task, update)
                return self.with_norms(task, update)

        updates, failed = isolate_failures(train_some, clients, task.round)
        if not updates:
            return Update.without_rows(self.model, failed)
        return replace(concatenate(updates), failed=failed)

    def with_norms(self, task: Task, update: Update) -> Update:
        """Return an update whose `update_norm` is known."""
        if update.update_norm is not None:
            return update
        return replace(update, update_norm=self.kernel.update_norms(update.weights, task.global_weights))

    def evaluate(self, task: Task, clients: Indices, load_state: LoadState) -> Evaluation:
        """Score the weights that a block of clients use, on their own examples; parameters as for `train`."""
        held = self.partition_test

        def evaluate_some(some: Indices) -> Evaluation:
            weights = task.global_weights[None]
            with np.errstate(all="ignore"):
                if self.personalises(task.strategy):
                    weights = personalise(task, some, load_state(some))
                loss, accuracy = evaluate_shards(task, held, some, weights)
            return Evaluation(some, held.sizes[some], loss, self.score(loss, accuracy))

        results, failed = isolate_failures(evaluate_some, clients, task.round)
        if not results:
            return Evaluation(clients[:0], clients[:0], np.empty(0), np.empty(0), failed)
        return replace(concatenate(results), failed=failed)

    def personalises(self, strategy: ClientStrategy) -> bool:
        """Whether clients use other weights than the global ones."""
        return overrides(strategy, "personalise") or bool(private_groups(strategy, self.model))

    def score(self, loss: Any, accuracy: Any) -> Any:
        """Return the accuracy; for regression R squared, ``1 - loss / variance of the test targets``."""
        if self.variance is None:
            return accuracy
        return 1 - loss / self.variance if self.variance else loss * np.nan
