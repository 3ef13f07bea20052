"""The roster of SuperNodes: which one serves each partition, and which ones are refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engines.supernodes.arrays import ReplyError, first_line
from fedsim.engines.supernodes.delivery import send_and_receive
from fedsim.engines.supernodes.replies import ORDER, Hello, read_hello
from fedsim.errors import FedsimError

#: Type of the message that asks a SuperNode for its partition.
HELLO = "query"


class Roster:
    """The SuperNodes of a run.

    Parameters
    ----------
    grid : Grid
        Flower's.
    nodes : int
        Number of SuperNodes to wait for before the first round.
    wait : float
        Seconds to wait for them; the run then starts with those that have answered, if any.
    on_failure : {"raise", "exclude"}
        Whether a SuperNode that is refused before the first round ends the run.
    fingerprint : dict
        Of the server's data.
    max_partitions : int
        Largest valid number of partitions.

    Attributes
    ----------
    hosts : dict of int to int
        Partition -> node id of the SuperNode that serves it.
    num_partitions : int
    """

    def __init__(
        self, grid: Grid, nodes: int, wait: float, on_failure: str, fingerprint: dict[str, Any], max_partitions: int
    ) -> None:
        self._grid, self._nodes, self._wait, self._on_failure = grid, nodes, wait, on_failure
        self._fingerprint, self._max_partitions = fingerprint, max_partitions
        self._hellos: dict[int, Hello] = {}  # by node id, in order of arrival
        self._refused: dict[int, str] = {}  # node id -> reason; until it leaves
        self._failing: dict[int, str] = {}  # node id -> its error; it is asked again every round
        self._spare: dict[int, str] = {}  # node id -> the other SuperNode that serves its partition
        self._served_by: dict[int, int] = {}  # partition -> the last node id that served it
        self._started = False
        self.hosts: dict[int, int] = {}
        self.num_partitions = 0

    def wait(self) -> None:
        """Wait for the SuperNodes; FedsimError if none can be used."""
        until = time.monotonic() + self._wait
        self.update()
        while len(self._hellos | self._refused | self._failing) < self._nodes and time.monotonic() < until:
            time.sleep(0.2)
            self.update()
        if not self.hosts:
            reasons = "; ".join(self._refusals())
            raise FedsimError(reasons or f"no SuperNode has answered within {self._wait:g} seconds")
        self._started = True

    def update(self) -> None:
        """Ask new SuperNodes for their partition, and decide which SuperNode serves each partition."""
        connected = set(self._grid.get_node_ids())
        for known in (self._hellos, self._refused, self._failing):
            for node in known.keys() - connected:  # a SuperNode that returns may serve another partition
                del known[node]
        known_nodes = self._hellos.keys() | self._refused.keys() | (set() if self._started else self._failing.keys())
        self._ask(sorted(connected - known_nodes))
        if not self._started and self._hellos:
            counts = Counter(hello.num_partitions for hello in self._hellos.values())
            self.num_partitions = max(counts, key=lambda number: (counts[number], number == self._nodes, number))
        self.hosts, self._spare = {}, {}
        for node, hello in list(self._hellos.items()):
            if hello.num_partitions != self.num_partitions:
                reason = f"its num-partitions is {hello.num_partitions}, and that of others is {self.num_partitions}"
                self._refuse(node, reason)
            elif (first := self.hosts.setdefault(hello.partition, node)) != node:
                self._spare[node] = f"SuperNode {first} is partition {hello.partition} too"
                self._raise_at_start(f"SuperNode {node} is refused: {self._spare[node]}")
        self._served_by |= self.hosts

    def _ask(self, nodes: Sequence[int]) -> None:
        """Ask SuperNodes for their partition."""
        if not nodes:
            return
        content = RecordDict({ORDER: ConfigRecord()})
        messages = [Message(content, dst_node_id=node, message_type=HELLO) for node in nodes]
        silent = set(nodes)
        for reply in send_and_receive(self._grid, messages, self._wait):
            node = reply.metadata.src_node_id
            if node not in silent:  # another one, or a second reply
                continue
            silent.remove(node)
            self._failing.pop(node, None)
            if not reply.has_content():
                self._failing[node] = first_line(reply.error.reason)
                self._raise_at_start(f"SuperNode {node} cannot start: {self._failing[node]}")
                continue
            try:
                self._hellos[node] = read_hello(reply.content, self._fingerprint, self._max_partitions)
            except ReplyError as reason:
                self._refuse(node, str(reason))
        if self._started:  # otherwise every round would wait for it
            self._refused |= dict.fromkeys(silent, f"it did not answer within {self._wait:g} s")

    def _refuse(self, node: int, reason: str) -> None:
        self._raise_at_start(f"SuperNode {node} is refused: {reason}")
        self._hellos.pop(node, None)
        self._refused[node] = reason

    def _raise_at_start(self, message: str) -> None:
        """Raise FedsimError before the first round, unless failures are excluded."""
        if self._on_failure == "raise" and not self._started:
            raise FedsimError(message)

    def _refusals(self) -> list[str]:
        """Return which SuperNodes are not used, and why."""
        return [
            *(f"SuperNode {node} cannot start: {reason}" for node, reason in self._failing.items()),
            *(f"SuperNode {node} is refused: {reason}" for node, reason in self._refused.items()),
            *(f"SuperNode {node} is a spare: {reason}" for node, reason in self._spare.items()),
        ]

    def missing(self, partition: int) -> str:
        """Return why no SuperNode serves a partition."""
        if partition in self._served_by:
            return f"SuperNode {self._served_by[partition]} has disconnected"
        return "; ".join([f"no SuperNode is partition {partition} of {self.num_partitions}", *self._refusals()])
