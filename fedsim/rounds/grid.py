"""Flower's `Grid` over simulated clients: `send_and_receive` runs the round.

Any Flower `Strategy` runs on it by ``strategy.start(grid, ...)``. The model that a round's messages share is decoded
once. Replies are made only for a strategy that reads them; fedsim's own strategies pass an aggregation to the round
instead, so that memory does not grow with the cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from fedsim.checks import check_choice
from fedsim.clients import ClientStrategy
from fedsim.clients.example_noise import ExampleNoise
from fedsim.clients.private import private_groups
from fedsim.engines.engine import Engine, make_engine
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError
from fedsim.flower import internals, records
from fedsim.flower.internals import FIRST_NODE_ID
from fedsim.flower.messages import Instructions, LocalGrid
from fedsim.models import Model
from fedsim.rounds.outcome import Cohort, RoundOutcome
from fedsim.rounds.round import run_round
from fedsim.rounds.statistics import RoundStatistics
from fedsim.rounds.validity import ValidityChecks
from fedsim.splits import FederatedDataset
from fedsim.streams import Purpose
from fedsim.updates.aggregation import Aggregation
from fedsim.updates.aggregators import Mean
from fedsim.updates.transform import UpdateTransform

#: Number of test examples evaluated together; a constant, so that sums do not depend on the number of workers.
EVALUATE_ROWS = 1_000


class RoundGrid(LocalGrid):
    """Flower's Grid over the clients of an engine. Use it as a context manager.

    Parameters
    ----------
    engine : Engine
    on_failure : {"raise", "exclude"}
        How a client that fails or diverges is handled: the run ends with an error, or the client is excluded from the
        round and recorded.
    """

    def __init__(self, engine: Engine, on_failure: str = "raise") -> None:
        super().__init__()
        runtime = engine.runtime
        self.engine, self.runtime = engine, runtime
        attack = runtime.attackers.attack if runtime.attackers else None
        self.checks = ValidityChecks(runtime.model.dtype, on_failure, attack, runtime.federated.client_names)
        self.statistics = RoundStatistics()
        data = runtime.federated.dataset
        self._x_test = np.ascontiguousarray(data.x_test, dtype=runtime.model.dtype)
        self._y_test = data.y_test.astype(runtime.model.dtype) if data.regression else data.y_test
        private = private_groups(runtime.client, runtime.model)
        self._model_bytes = records.payload_bytes(runtime.model, (g for g in runtime.model.groups if g not in private))
        self._train_calls = 0
        self._waiting: dict[str, Message] = {}

    def __enter__(self) -> Self:
        self.engine.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.engine.__exit__(*details)

    def get_node_ids(self) -> Sequence[int]:
        """Return all node ids in the order of the partition ids."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + len(self.runtime.partition))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; `pull_messages` runs them."""
        ids = []
        for message in messages:
            internals.set_message_id(message, self.next_id())
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the messages that have not been run yet and return the replies."""
        return list(self.send_and_receive([self._waiting.pop(i) for i in message_ids if i in self._waiting]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> RoundOutcome:
        """Run a round of training or of evaluation, and return its outcome.

        `timeout` is ignored: the method returns when all clients have finished.
        """
        cohorts, aggregation, min_clients = self._cohorts_of(messages), None, 0
        if isinstance(messages, Instructions):
            aggregation, min_clients = messages.aggregation, messages.min_clients
        outcome = RoundOutcome(
            self.runtime.model,
            cohorts,
            aggregation or Aggregation(Mean(self.add_weighted)),
            keeps_rows=aggregation is None,
            min_clients=min_clients,
        )
        _check_once(cohorts)
        run_round(self.engine, outcome, self.checks, self.statistics, self._model_bytes)
        return outcome

    @property
    def add_weighted(self) -> Callable[..., None]:
        """The kernel's function that adds up weights."""
        add: Callable[..., None] = self.runtime.kernel.add_weighted
        return add

    def _cohorts_of(self, messages: Iterable[Message]) -> list[Cohort]:
        """Group messages that share a content, so that each model is decoded once."""
        if isinstance(messages, Instructions):
            nodes = np.asarray(messages.node_ids, dtype=np.int64)
            return [self._cohort(messages.record, messages.message_type, nodes, None)] if len(nodes) else []
        groups: dict[tuple[int, str], list[Message]] = {}
        for message in messages:
            if not message.metadata.message_id:
                internals.set_message_id(message, self.next_id())
            groups.setdefault((id(message.content), message.metadata.message_type), []).append(message)
        cohorts = []
        for group in groups.values():
            nodes = np.array([m.metadata.dst_node_id for m in group], dtype=np.int64)
            cohorts.append(self._cohort(group[0].content, group[0].metadata.message_type, nodes, group))
        return cohorts

    def _cohort(
        self, content: RecordDict, message_type: str, nodes: NDArray[np.int64], messages: list[Message] | None
    ) -> Cohort:
        kind = message_type.partition(".")[0]
        check_choice("message_type", kind, (MessageType.TRAIN, MessageType.EVALUATE))
        ids = (nodes - FIRST_NODE_ID).astype(np.intp)
        if ids.min() < 0 or ids.max() >= len(self.runtime.partition):
            known = self.get_node_ids()
            raise ValueError(f"message for an unknown node; nodes are {known[0]}..{known[-1]}")
        # Not content.array_records: it refers to itself, which keeps the model alive until garbage is collected.
        parts: Mapping[str, Any] = content
        arrays = next(r for name, r in parts.items() if isinstance(r, ArrayRecord) and name != records.DOWN)
        config = next((r for r in parts.values() if isinstance(r, ConfigRecord)), ConfigRecord())
        down = {name: array.numpy() for name, array in parts.get(records.DOWN, {}).items()}
        if kind == MessageType.TRAIN:
            self._train_calls += 1
        round_number = int(config.get("server-round", self._train_calls))  # type: ignore[arg-type]
        weights = records.to_flat(self.runtime.model, arrays)
        client = self.runtime.client.configured(config)
        purpose = Purpose.SHUFFLE if kind == MessageType.TRAIN else Purpose.SHUFFLE_PERSONAL
        task = self.runtime.task(weights, round_number, client, down, purpose)
        order = np.lexsort((ids, -task.partition.sizes[ids]))
        return Cohort(kind, task, ids[order], [messages[k] for k in order] if messages else None)

    def evaluate_test(self, weights: NDArray[Any]) -> tuple[float, float]:
        """Return the loss and accuracy (for regression R squared) of flat weights on the test set."""
        return self.evaluate_examples(weights, self._x_test, self._y_test)

    def evaluate_examples(self, weights: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
        """Return the loss and accuracy of flat weights on examples of the model's dtype, at least one."""

        def evaluate_rows(start: int) -> tuple[float, int]:
            rows = slice(start, start + EVALUATE_ROWS)
            with np.errstate(all="ignore"):
                loss, correct = self.runtime.model.evaluate(weights[None], x[None, rows], y[None, rows])
            return float(loss[0]), int(correct[0])

        parts = self.engine.workers.map(evaluate_rows, range(0, len(y), EVALUATE_ROWS))
        loss, accuracy = (sum(values) / len(y) for values in zip(*parts, strict=True))
        return loss, float(self.runtime.score(loss, accuracy))

    def measure_test(self, weights: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the experiment's measures of flat weights on the test set, each of shape (1, ...)."""
        measures = self.runtime.measures
        if not measures:
            return {}

        def score_rows(start: int) -> NDArray[Any]:
            with np.errstate(all="ignore"):
                return self.runtime.model.scores(weights[None], self._x_test[None, start : start + EVALUATE_ROWS])[0]

        parts = self.engine.workers.map(score_rows, range(0, len(self._y_test), EVALUATE_ROWS))
        scores = np.concatenate(list(parts))
        return {name: measure.measure(self._y_test[None], scores[None], None) for name, measure in measures.items()}

    def take_statistics(self) -> RoundStatistics:
        """Return the statistics since the last call."""
        taken, self.statistics = self.statistics, RoundStatistics()
        return taken


def make_grid(
    model: Model,
    federated: FederatedDataset,
    client: ClientStrategy,
    seed: int = 0,
    *,
    kernel: str = "numpy",
    transforms: Sequence[UpdateTransform] = (),
    on_failure: str = "raise",
    engine: Callable[..., Engine] = ThreadEngine,
    workers: int | None = None,
    block_size: int | None = None,
    example_noise: ExampleNoise | None = None,
) -> RoundGrid:
    """Return a grid over simulated clients.

    Parameters
    ----------
    model : Model
    federated : FederatedDataset
        The examples of each client; the node id is the partition id + 2.
    client : ClientStrategy
    seed : int
    kernel : {"numpy", "compiled"}
        See `fedsim.kernels`.
    transforms : sequence of UpdateTransform
        Applied to clients' updates; see `fedsim.updates`.
    on_failure : {"raise", "exclude"}
        As for `RoundGrid`.
    engine : callable
        The class of an engine, or a partial of one.
    workers, block_size : int, optional
        As for the engine. Neither changes results.
    example_noise : ExampleNoise, optional
        Clients take the steps of DP-SGD.
    """
    runtime = ClientRuntime(model, federated, client, seed, kernel, transforms, example_noise)
    return RoundGrid(make_engine(engine, runtime, workers, block_size), on_failure)


def _check_once(cohorts: Sequence[Cohort]) -> None:
    """Raise ConfigError if a client is to train, or to evaluate, twice: its state and reply would be ambiguous."""
    for kind in {cohort.kind for cohort in cohorts}:
        ids, counts = np.unique(np.concatenate([c.clients for c in cohorts if c.kind == kind]), return_counts=True)
        first = int(counts.argmax())
        if counts[first] > 1:
            raise ConfigError(
                f"the server strategy asks client {ids[first]} {counts[first]} times in a round to {kind}; "
                "allowed: once"
            )
