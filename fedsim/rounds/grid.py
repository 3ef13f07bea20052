"""Flower's `Grid` over simulated clients: `send_and_receive` runs the round.

Any Flower `Strategy` runs on it by ``strategy.start(grid, ...)``. A round's messages carry one model, which is decoded
once. Replies become messages only for a strategy that reads messages; fedsim's own strategies give the round an
aggregation, so that its memory does not grow with its cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from fedsim.checks import check_choice
from fedsim.clients import ClientStrategy
from fedsim.clients.private import private_groups
from fedsim.clients.task import Evaluation
from fedsim.engines.engine import Engine
from fedsim.engines.runtime import ClientRuntime
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError
from fedsim.flower import internals, records
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

#: Node id of the client with partition id 0; Flower keeps 1 for the server.
FIRST_NODE = 2
#: Test examples scored at a time; a constant, so that sums do not depend on workers.
EVALUATE_ROWS = 1_000


class RoundGrid(LocalGrid):
    """Flower's Grid over the clients of an engine. Use it as a context manager.

    Parameters
    ----------
    engine : Engine
    on_failure : {"raise", "exclude"}
        How a client is handled that fails or diverges: the run ends with an error, or the client is left out of the
        round and recorded.
    """

    def __init__(self, engine: Engine, on_failure: str = "raise") -> None:
        super().__init__()
        runtime = engine.runtime
        self.engine, self.runtime = engine, runtime
        self.checks = ValidityChecks(runtime.model.dtype, on_failure)
        self.statistics = RoundStatistics()
        self.evaluations: list[Evaluation] = []
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

    # Flower's interface.

    def get_node_ids(self) -> Sequence[int]:
        """Return all nodes' ids in the order of their partition ids."""
        return range(FIRST_NODE, len(self.runtime.partition) + FIRST_NODE)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; `pull_messages` runs them."""
        ids = []
        for message in messages:
            internals.set_message_id(message, self.next_id())
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run those of the messages that have not been run and return their replies."""
        return list(self.send_and_receive([self._waiting.pop(i) for i in message_ids if i in self._waiting]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> RoundOutcome:
        """Run a round of training or of evaluation, and return its outcome.

        `timeout` has no meaning here: every reply is waited for.
        """
        told = messages if isinstance(messages, Instructions) else None
        cohorts = self._cohort_of(told) if told else self._cohorts_of(messages)
        outcome = RoundOutcome(
            self.runtime.model,
            cohorts,
            told.aggregation if told and told.aggregation else Aggregation(Mean(self.add_weighted)),
            keeps_rows=told is None or told.aggregation is None,
            min_clients=told.min_clients if told else 0,
        )
        _check_once(cohorts)
        run_round(self.engine, outcome, self.checks, self.statistics, self._model_bytes)
        self.evaluations += outcome.evaluations
        return outcome

    @property
    def add_weighted(self) -> Callable[..., None]:
        """How the kernel that trains adds up weights."""
        add: Callable[..., None] = self.runtime.kernel.add_weighted
        return add

    def _cohort_of(self, instructions: Instructions) -> list[Cohort]:
        """Return the cohort of instructions, which share one content."""
        if not len(instructions):
            return []
        nodes = np.asarray(instructions.node_ids, dtype=np.int64)
        return [self._cohort(instructions.record, instructions.message_type, nodes, None)]

    def _cohorts_of(self, messages: Iterable[Message]) -> list[Cohort]:
        """Gather messages that share a content, so that each model is decoded once."""
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
        ids = (nodes - FIRST_NODE).astype(np.intp)
        if ids.min() < 0 or ids.max() >= len(self.runtime.partition):
            raise ValueError(
                f"message for an unknown node; nodes are {FIRST_NODE}..{len(self.runtime.partition) + FIRST_NODE - 1}"
            )
        # Not content.array_records: that object refers to itself, which keeps the model until garbage is collected.
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

    # What a run asks for.

    def evaluate_test(self, weights: NDArray[Any]) -> tuple[float, float]:
        """Return the loss and accuracy (for regression R squared) of flat weights on the test set."""

        def work(start: int) -> tuple[float, int]:
            rows = slice(start, start + EVALUATE_ROWS)
            with np.errstate(all="ignore"):
                loss, correct = self.runtime.model.evaluate(
                    weights[None], self._x_test[None, rows], self._y_test[None, rows]
                )
            return float(loss[0]), int(correct[0])

        parts = list(self.engine.workers.map(work, range(0, len(self._y_test), EVALUATE_ROWS)))
        examples = len(self._y_test)
        loss, accuracy = (sum(values) / examples for values in zip(*parts, strict=True))
        return loss, float(self.runtime.score(loss, accuracy))

    def take_statistics(self) -> tuple[RoundStatistics, list[Evaluation]]:
        """Return the statistics and evaluations since the last call."""
        taken = self.statistics, self.evaluations
        self.statistics, self.evaluations = RoundStatistics(), []
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
) -> RoundGrid:
    """Return a grid over simulated clients.

    Parameters
    ----------
    model : Model
    federated : FederatedDataset
        The examples of each client; node id = partition id + 2.
    client : ClientStrategy
        The client strategy.
    seed : int
    kernel : {"numpy", "compiled"}
        What trains; see `fedsim.kernels`.
    transforms : sequence of UpdateTransform
        Applied to clients' updates; see `fedsim.updates`.
    on_failure : {"raise", "exclude"}
        As for `RoundGrid`.
    engine : callable
        An engine's class, or a partial of one.
    workers, block_size : int, optional
        As for the engine. Neither changes a result.
    """
    runtime = ClientRuntime(model, federated, client, seed, kernel, transforms)
    return RoundGrid(engine(runtime, workers=workers, block_size=block_size), on_failure)


def _check_once(cohorts: Sequence[Cohort]) -> None:
    """Raise ConfigError if a client is asked twice for the same: its state and its reply would be ambiguous."""
    for kind in {cohort.kind for cohort in cohorts}:
        ids, asked = np.unique(np.concatenate([c.clients for c in cohorts if c.kind == kind]), return_counts=True)
        if (asked > 1).any():
            first = int(asked.argmax())
            raise ConfigError(
                f"the server strategy asks client {ids[first]} {asked[first]} times in a round to {kind}; allowed: once"
            )
