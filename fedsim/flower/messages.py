"""A round's messages to clients, and the base class of grids in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsim.flower.internals import empty_run, set_default_identity


class Instructions(Sequence[Message]):
    """Messages with the same content to many nodes; each message is made when it is read.

    `RoundGrid` reads `record` and `node_ids`, and no message is made.

    Parameters
    ----------
    record : RecordDict
        The content of all messages.
    node_ids : sequence or ndarray of int
    message_type : str
        Flower's ``MessageType.TRAIN`` or ``EVALUATE``.
    aggregation : Aggregation, optional
        Combines the updates as they arrive, on a `RoundGrid`; by default every update becomes a reply.
    min_clients : int
        Smallest number of updates with which the round is accepted.
    """

    def __init__(
        self,
        record: RecordDict,
        node_ids: Sequence[int] | NDArray[np.integer[Any]],
        message_type: str,
        aggregation: Any = None,
        min_clients: int = 0,
    ) -> None:
        self.record, self.node_ids, self.message_type = record, node_ids, message_type
        self.aggregation, self.min_clients = aggregation, min_clients

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return Message(content=self.record, dst_node_id=int(self.node_ids[index]), message_type=self.message_type)


class LocalGrid(Grid):
    """Base class of grids in this process."""

    def __init__(self) -> None:
        set_default_identity()
        self._run = empty_run()
        self._sent = 0

    def next_id(self) -> str:
        """Return a new message id."""
        self._sent += 1
        return str(self._sent)

    def set_run(self, run: Any) -> None:
        """Set the description of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """The description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message; Flower recommends the constructor of Message instead."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
