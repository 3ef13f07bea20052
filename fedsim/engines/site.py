"""A place where clients run: their data, and what runs a block of them. Every engine has at least one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from fedsim.compression import RESIDUAL, Compression, Transform
from fedsim.engines.state import ClientState
from fedsim.mlp import MLP
from fedsim.splits import FederatedDataset, Partition
from fedsim.streams import Purpose


@dataclass(frozen=True)
class Evaluation:
    """What some clients would use themselves (the global model, unless their strategy personalises), on their examples.

    Attributes
    ----------
    partition_ids, num_examples : ndarray of int, shape (clients,)
    loss, accuracy : ndarray of float64, shape (clients,)
    """

    partition_ids: NDArray[np.intp]
    num_examples: NDArray[np.intp]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def mean_evaluation(parts: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the mean loss and accuracy over the examples of all clients that evaluated, or NaN."""
    if not parts:
        return float("nan"), float("nan")
    examples, loss, accuracy = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("num_examples", "loss", "accuracy")
    )
    return float(np.average(loss, weights=examples)), float(np.average(accuracy, weights=examples))


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

    def load_state(self, task: Task, block: NDArray[np.intp], state: ClientState) -> dict[str, NDArray[Any]]:
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

    def train(self, task: Task, block: NDArray[np.intp], state: dict[str, NDArray[Any]]) -> Update:
        """Train a block of clients."""
        with np.errstate(all="ignore"):  # divergence is reported by name
            update = run(task, block, state)
            if self.compression:
                update = self._compressed(self.compression, task, update)
            return self.measured(task, update)

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

    def evaluate(self, task: Task, block: NDArray[np.intp], state: dict[str, NDArray[Any]]) -> Evaluation:
        """Evaluate what a block of clients would use, on their own examples."""
        weights, held = task.global_weights[None], self.partition_test
        with np.errstate(all="ignore"):
            if self.personalises(task.strategy):
                weights = personalise(task, block, state)
            loss, accuracy = evaluate_shards(task, held, block, weights)
        return Evaluation(block, held.sizes[block], loss, self.score(loss, accuracy))

    def personalises(self, strategy: SGD) -> bool:
        """Whether clients use anything but the global weights."""
        return overrides(strategy, "personalise") or bool(strategy.private_layers(self.net))

    def score(self, loss: Any, accuracy: Any) -> Any:
        """Return the accuracy, or for regression R squared: what of the test targets' variance the errors leave."""
        if self.variance is None:
            return accuracy
        return 1 - loss / self.variance if self.variance else loss * np.nan
