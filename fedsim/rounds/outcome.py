"""The outcome of a round, from which Flower's strategies read replies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.clients.task import Evaluation, Task, Update
from fedsim.flower import internals, records
from fedsim.models import Model
from fedsim.updates.aggregation import Aggregation


@dataclass(frozen=True)
class Cohort:
    """The clients of a round that share a task, in cohort order: by descending shard size, then partition id.

    Attributes
    ----------
    kind : str
        Flower's ``MessageType.TRAIN`` or ``EVALUATE``.
    task : Task
    clients : ndarray of int, shape (clients,)
        Partition ids.
    messages : list of Message, optional
        The message to each client, if the server strategy made messages.
    """

    kind: str
    task: Task
    clients: NDArray[np.intp]
    messages: list[Message] | None


class RoundOutcome(Sequence[Message]):
    """The result of a finished round; reading it starts no training.

    As a sequence it holds the clients' replies as Flower's messages, which are made when the first one is read. There
    are no replies if updates were only added to the aggregation.

    Parameters
    ----------
    model : Model
    cohorts : list of Cohort
    aggregation : Aggregation
        Combines the updates.
    keeps_rows : bool
        Whether the weights of each client are kept too, for a strategy that reads replies.
    min_clients : int
        Smallest number of updates with which the round is accepted.

    Attributes
    ----------
    updates : list of Update
        In cohort order; without weights if they were only added to the aggregation.
    evaluations : list of Evaluation
    failed : dict of int to str
        Partition id -> reason for which there is no reply.
    not_recovered : int
        Number of updates that the server received masked, and whose sum could not be recovered.
    """

    def __init__(
        self, model: Model, cohorts: list[Cohort], aggregation: Aggregation, *, keeps_rows: bool, min_clients: int = 0
    ) -> None:
        self.cohorts, self.aggregation = cohorts, aggregation
        self.keeps_rows, self.min_clients = keeps_rows, min_clients
        self.updates: list[Update] = []
        self.evaluations: list[Evaluation] = []
        self.failed: dict[int, str] = {}
        self.not_recovered = 0
        self._model = model
        self._messages: list[Message] | None = None

    def add(self, update: Update) -> None:
        """Add a block of updates; blocks are added in cohort order."""
        self.aggregation.add(update)
        if not self.keeps_rows:
            update = replace(update, weights=update.weights[:, :0].copy(), up={}, encoded={})
        self.updates.append(update)

    @property
    def clients(self) -> int:
        """Number of updates."""
        return self.aggregation.clients

    @property
    def accepted(self) -> bool:
        """Whether there are enough updates for a new model."""
        return self.clients >= self.min_clients

    def to_record(self, flat: NDArray[Any]) -> ArrayRecord:
        """Return flat weights as Flower's record."""
        return records.to_record(self._model, flat)

    def __len__(self) -> int:
        return sum(len(cohort.clients) for cohort in self.cohorts)

    def __getitem__(self, index: Any) -> Any:
        return self._replies()[index]

    def __iter__(self) -> Iterator[Message]:
        return iter(self._replies())

    def _replies(self) -> list[Message]:
        if self._messages is None:
            assert self.keeps_rows, "the updates of this round have been aggregated; there are no replies to read"
            contents = {MessageType.TRAIN: self._train_contents(), MessageType.EVALUATE: self._evaluate_contents()}
            self._messages = [m for cohort in self.cohorts for m in self._messages_of(cohort, contents[cohort.kind])]
        return self._messages

    def _train_contents(self) -> dict[int, RecordDict]:
        contents = {}
        for update in self.updates:
            columns = update.partition_ids, update.num_examples, update.train_loss, update.weights
            for row, (client, examples, loss, weights) in enumerate(zip(*columns, strict=True)):
                metrics = MetricRecord({"num-examples": int(examples), "train_loss": float(loss)})
                arrays = records.to_record(self._model, weights)
                arrays.update(records.record({records.UP + name: sent[row] for name, sent in update.up.items()}))
                contents[int(client)] = RecordDict({"arrays": arrays, "metrics": metrics})
        return contents

    def _evaluate_contents(self) -> dict[int, RecordDict]:
        contents = {}
        for result in self.evaluations:
            columns = result.partition_ids, result.num_examples, result.loss, result.accuracy
            for client, examples, loss, accuracy in zip(*columns, strict=True):
                metrics = MetricRecord(
                    {"num-examples": int(examples), "eval_loss": float(loss), "eval_accuracy": float(accuracy)}
                )
                contents[int(client)] = RecordDict({"metrics": metrics})
        return contents

    def _messages_of(self, cohort: Cohort, contents: dict[int, RecordDict]) -> Iterator[Message]:
        created = time.time()
        for place, client in enumerate(map(int, cohort.clients)):
            sent = cohort.messages[place].metadata if cohort.messages else None
            metadata = internals.reply_metadata(
                internals.FIRST_NODE_ID + client,
                sent.message_id if sent else f"{cohort.kind}-{cohort.task.round}-{client}",
                sent.message_type if sent else cohort.kind,
                sent.group_id if sent else "",
                created,
            )
            if client in contents:
                yield internals.make_message(metadata, contents[client])
            else:
                yield internals.make_message(metadata, error=Error(0, self.failed[client]))
