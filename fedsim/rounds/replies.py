"""The outcome of a finished round: sums or rows, and the replies that Flower's strategies read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.clients.base import Task, Update
from fedsim.flower import internals as flower
from fedsim.engines.runtime import Evaluation
from fedsim.models.mlp import MLP


class Aggregator(Protocol):
    """Takes a round's updates as they finish, so that no row needs to be kept."""

    def add(self, update: Update) -> None:
        """Add a block of updates; blocks come in cohort order."""

    def mean(self) -> NDArray[Any]:
        """Return the mean of the weights by examples, shape (parameters,); asked once, after at least one update."""


@dataclass(frozen=True)
class Order:
    """One task for some clients, in cohort order.

    Attributes
    ----------
    kind : str
        Flower's ``MessageType.TRAIN`` or ``EVALUATE``.
    task : Task
    ids : ndarray of int, shape (clients,)
        Partition ids.
    messages : list of Message, optional
        The message of each client, where there are any.
    """

    kind: str
    task: Task
    ids: NDArray[np.intp]
    messages: list[Message] | None


class Replies(Sequence[Message]):
    """A round that has been run: what clients sent, which may be read any number of times.

    As a sequence it holds Flower's messages, which are made at the first look. With an aggregator, which has taken the
    weights, there are none to read.

    Parameters
    ----------
    net : MLP
    orders : list of Order
    aggregator : Aggregator, optional
        What takes the updates; default: their rows are kept.
    """

    def __init__(self, net: MLP, orders: list[Order], aggregator: Aggregator | None) -> None:
        self.orders, self.aggregator = orders, aggregator
        #: In cohort order; without weights where an aggregator has taken them.
        self.updates: list[Update] = []
        self.evaluations: list[Evaluation] = []
        #: Partition id -> why there is no reply.
        self.failed: dict[int, str] = {}
        self._net = net
        self._messages: list[Message] | None = None

    def add(self, update: Update) -> None:
        """Take a block of updates, in cohort order."""
        if self.aggregator is not None:
            self.aggregator.add(update)
            update = replace(update, weights=update.weights[:, :0].copy(), up={}, encoded={})
        self.updates.append(update)

    def to_record(self, flat: NDArray[Any]) -> ArrayRecord:
        """Return flat weights as Flower's record."""
        return flower.to_record(self._net, flat)

    def __len__(self) -> int:
        return sum(len(order.ids) for order in self.orders)

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __iter__(self) -> Iterator[Message]:
        return iter(self._all())

    def _all(self) -> list[Message]:
        if self._messages is None:
            assert self.aggregator is None, "these weights have been summed up; there are no replies to read"
            contents = {MessageType.TRAIN: self._trained(), MessageType.EVALUATE: self._evaluated()}
            self._messages = [reply for order in self.orders for reply in self._reply(order, contents[order.kind])]
        return self._messages

    def _trained(self) -> dict[int, RecordDict]:
        contents = {}
        for update in self.updates:
            columns = update.partition_ids, update.num_examples, update.train_loss, update.weights
            for row, (client, examples, loss, weights) in enumerate(zip(*columns, strict=True)):
                metrics = MetricRecord({"num-examples": int(examples), "train_loss": float(loss)})
                record = flower.to_record(self._net, weights)
                record.update(flower.record({flower.UP + name: sent[row] for name, sent in update.up.items()}))
                contents[int(client)] = RecordDict({"arrays": record, "metrics": metrics})
        return contents

    def _evaluated(self) -> dict[int, RecordDict]:
        contents = {}
        for result in self.evaluations:
            rows = zip(result.partition_ids, result.num_examples, result.loss, result.accuracy, strict=True)
            for client, examples, loss, accuracy in rows:
                metrics = MetricRecord(
                    {"num-examples": int(examples), "eval_loss": float(loss), "eval_accuracy": float(accuracy)}
                )
                contents[int(client)] = RecordDict({"metrics": metrics})
        return contents

    def _reply(self, order: Order, contents: dict[int, RecordDict]) -> Iterator[Message]:
        created = time.time()
        for place, client in enumerate(order.ids):
            sent = order.messages[place].metadata if order.messages else None
            metadata = flower.reply_metadata(
                int(client) + 2,
                sent.message_id if sent else f"{order.kind}-{order.task.round}-{client}",
                sent.message_type if sent else order.kind,
                sent.group_id if sent else "",
                created,
            )
            if int(client) in contents:
                yield flower.make_message(metadata, contents[int(client)])
            else:
                yield flower.make_message(metadata, error=Error(0, self.failed[int(client)]))
