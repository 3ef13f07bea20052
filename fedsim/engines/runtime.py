"""The client runtime, which trains and evaluates blocks of clients. Every engine has at least one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim import kernels
from fedsim.attacks import Attack
from fedsim.attacks.attackers import Attackers
from fedsim.clients import ClientStrategy
from fedsim.clients.example_noise import ExampleNoise
from fedsim.clients.full_pass import evaluate_shards
from fedsim.clients.local_round import (
    has_client_state,
    new_client_state,
    personalise,
    personalises,
    run_local_round,
)
from fedsim.clients.measures import Measure, measure_shards
from fedsim.clients.metrics import Metrics
from fedsim.clients.private import private_mask
from fedsim.clients.sensitive import Sensitive
from fedsim.clients.sgd import numpy_hooks, overrides
from fedsim.clients.task import Evaluation, Task, Update
from fedsim.engines.isolation import concatenate, isolate_failures
from fedsim.errors import FedsimError
from fedsim.models import Model
from fedsim.models.losses import score
from fedsim.models.metrics import AnyMetric
from fedsim.secure import SecureAggregation
from fedsim.secure.clients import SecureClients
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose
from fedsim.updates.transform import RESIDUAL, Pipeline, UpdateTransform

Array = NDArray[Any]
Indices = NDArray[np.intp]
#: Partition ids -> a copy of their state.
LoadState = Callable[[Indices], dict[str, Array]]
#: Name of the counts in groups of people that clients send with their updates.
GROUP_COUNTS = "group_counts"


class State(Protocol):
    """Client state that the runtime can load."""

    def load(self, clients: Indices, make: Callable[[Indices], Mapping[str, Array]]) -> dict[str, Array]:
        """Return a copy of clients' state; ``make(partition ids)`` provides that of new clients."""


class ClientRuntime:
    """Trains and evaluates blocks of clients.

    Parameters
    ----------
    model : Model
    federated : FederatedDataset
        The examples of each client.
    client : ClientStrategy
    seed : int
    kernel : {"numpy", "compiled"}
    transforms : sequence of UpdateTransform
        Applied to the updates that clients send.
    example_noise : ExampleNoise, optional
        Clients take the steps of DP-SGD.
    secure : SecureAggregation, optional
    clip : float, optional
        Clipping norm of updates under secure aggregation; see `SecureClients`.
    attack : Attack, optional
        Some clients are malicious; `federated` has their examples already.
    sensitive : tuple of str and int or None, optional
        The arguments of `Sensitive.of`: clients that evaluate count their predictions in groups of people.
    metrics : sequence of str or callable
        As for `Metrics`: clients that evaluate compute them.
    sends_group_counts : bool
        Whether clients that train send these counts too, of the global weights on their training examples.

    Attributes
    ----------
    attackers : Attackers or None
        The malicious clients.
    measures : dict of str to Measure
        What clients that evaluate measure besides the loss and the accuracy: ``"groups"`` and ``"metrics"``, if any.
    secure : SecureClients or None
        The clients' side of secure aggregation.
    """

    def __init__(
        self,
        model: Model,
        federated: FederatedDataset,
        client: ClientStrategy,
        seed: int,
        kernel: str,
        transforms: Sequence[UpdateTransform] = (),
        example_noise: ExampleNoise | None = None,
        secure: SecureAggregation | None = None,
        clip: float | None = None,
        attack: Attack | None = None,
        sensitive: tuple[str, int | None] | None = None,
        metrics: Sequence[AnyMetric] = (),
        sends_group_counts: bool = False,
    ) -> None:
        options = example_noise, secure, clip, attack, sensitive, tuple(metrics), sends_group_counts
        self._arguments = model, federated, client, seed, kernel, tuple(transforms), *options
        self.example_noise = example_noise
        self.model, self.federated, self.client, self.seed, self.kernel_name = model, federated, client, seed, kernel
        self.kernel = kernels.load(kernel)
        data = federated.dataset
        self.x = np.ascontiguousarray(data.x_train, dtype=model.dtype)
        self.y = data.y_train.astype(model.dtype) if data.regression else data.y_train
        #: Variance of the test targets, for regression.
        self.variance = data.test_variance
        self._sensitive = Sensitive.of(data, *sensitive) if sensitive else None
        self.measures: dict[str, Measure] = {}
        if self._sensitive:
            self.measures["groups"] = self._sensitive
        if metrics:
            self.measures["metrics"] = Metrics(metrics, data, model)
        self._sends_group_counts = sends_group_counts
        self.partition, self._window = federated.at(1), 1
        shared = ~private_mask(client, model)  # checks the strategy's private groups
        self.pipeline = Pipeline(transforms, shared, model.dtype) if transforms and shared.any() else None
        self.secure = SecureClients(secure, shared, clip) if secure else None
        self.attackers = Attackers(attack, len(self.partition), seed, shared) if attack else None
        self._has_residual = self.pipeline is not None and self.pipeline.error_feedback

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments, from which another process makes the runtime."""
        return ClientRuntime, self._arguments

    def prepare(self) -> None:
        """Compile the kernel, or load it from the disk."""
        if self.kernel_name == "compiled":
            private = self.example_noise is not None
            self.kernel.prepare(self.model.dtype, targets=self.variance is not None, private=private)

    @property
    def partition_test(self) -> Partition:
        """The examples that each client evaluates on."""
        test = self.federated.partition_test
        return self.partition if test is None else test

    def task(
        self,
        weights: Array,
        round_number: int,
        client: ClientStrategy | None = None,
        down: Mapping[str, Array] | None = None,
        purpose: Purpose = Purpose.SHUFFLE,
        secure: SecureClients | None = None,
    ) -> Task:
        """Return the task of a round's clients, given the global weights of shape (parameters,).

        `secure` holds the clients' keys, if they are to protect their updates.
        """
        window = self.federated.window(round_number)
        if window != self._window:
            self.partition, self._window = self.federated.at(round_number), window
        return Task(
            self.model, client or self.client, self.x, self.y,
            self.federated.poisoned_at(round_number) or self.partition, weights,
            round_number, self.seed, down or {}, self.kernel_name, purpose,
            example_noise=self.example_noise, protect=secure.protect if secure else None,
            groups=self._sensitive.train if self._sensitive else None, client_names=self.federated.client_names,
        )  # fmt: skip

    def exchange(
        self, task: Task, step: str, clients: Indices, sent: Mapping[str, Array]
    ) -> tuple[Indices, dict[str, Array], dict[int, FedsimError]]:
        """Return the answers of clients of this process in a step of secure aggregation; see `Engine.exchange`."""
        assert self.secure
        return clients, self.secure.answer(step, task.round, clients, sent), {}

    def load_state(self, task: Task, state: State, clients: Indices) -> dict[str, Array]:
        """Return a copy of clients' state; new clients get initial state."""
        if not self.keeps_state(task.strategy):
            return {}

        def make(new: Indices) -> dict[str, Array]:
            made = new_client_state(task, new)
            if self._has_residual:
                made[RESIDUAL] = np.zeros((len(new), self.model.num_parameters), self.model.dtype)
            return made

        return state.load(clients, make)

    def keeps_state(self, strategy: ClientStrategy) -> bool:
        """Whether clients have state between rounds."""
        return self._has_residual or has_client_state(strategy, self.model)

    def only_fits(self, strategy: ClientStrategy) -> bool:
        """Whether a round is a single fit of the compiled kernel, so that threads can share a block of clients."""
        plain = not overrides(strategy, "train") and not numpy_hooks(strategy)
        return plain and self.kernel_name == "compiled" and self.pipeline is None and not self.secure

    def train(self, task: Task, clients: Indices, load_state: LoadState) -> Update:
        """Train a block of clients; those that raise an error are in `Update.failed`.

        Parameters
        ----------
        task : Task
        clients : ndarray of int, shape (clients,)
            Partition ids; every client has examples.
        load_state : callable
            Partition ids -> a copy of their state, which training may change.

        Returns
        -------
        Update
            As the server uses it: encoded and decoded by the transforms, if there are any.
        """

        def train_some(some: Indices) -> Update:
            with np.errstate(all="ignore"):  # a client that diverges is reported by name
                update, malicious = run_local_round(task, some, load_state(some)), None
                if self._sensitive and self._sends_group_counts:
                    measures = {GROUP_COUNTS: self._sensitive}
                    counts = measure_shards(measures, task, task.partition, some, task.global_weights)
                    update = replace(update, up={**update.up, **counts})
                if self.attackers:
                    malicious = self.attackers.among(task.round, some)
                    update = self.attackers.corrupt(task, update) if self.attackers.on_client else update
                if self.pipeline:
                    update = self.pipeline.on_client(task, update, malicious)
                return self.with_norms(task, update)

        updates, failed = isolate_failures(train_some, clients, task.round)
        if not updates:
            return Update.without_rows(self.model, failed)
        update = replace(concatenate(updates), failed=failed)
        return task.protect(task, update) if task.protect else update

    def with_norms(self, task: Task, update: Update) -> Update:
        """Return the update with its `update_norm`."""
        if update.update_norm is not None:
            return update
        return replace(update, update_norm=self.kernel.update_norms(update.weights, task.global_weights))

    def evaluate(self, task: Task, clients: Indices, load_state: LoadState) -> Evaluation:
        """Evaluate a block of clients on their own examples; parameters as for `train`."""
        partition = self.partition_test

        def evaluate_some(some: Indices) -> Evaluation:
            weights = task.global_weights[None]
            with np.errstate(all="ignore"):
                if personalises(task.strategy, self.model):
                    weights = personalise(task, some, load_state(some))
                loss, accuracy = evaluate_shards(task, partition, some, weights)
                measured = measure_shards(self.measures, task, partition, some, weights)
            return Evaluation(some, partition.sizes[some], loss, self.score(loss, accuracy), measured=measured)

        results, failed = isolate_failures(evaluate_some, clients, task.round)
        if not results:
            return Evaluation(clients[:0], clients[:0], np.empty(0), np.empty(0), failed)
        return replace(concatenate(results), failed=failed)

    def score(self, loss: Any, accuracy: Any) -> Any:
        """Return the accuracy or, for regression, R squared; see `fedsim.models.losses.score`."""
        return score(loss, accuracy, self.variance)
