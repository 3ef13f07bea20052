"""Running any Flower app in this process, without Ray and without serialisation.

ServerApp and ClientApp run unmodified. Each SuperNode has a Flower context, whose state lasts between messages, and
handles its messages one after another; different SuperNodes run on different threads. Mods run as usual, and an
exception in a ClientApp becomes an error reply.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.checks import check_integer
from fedsim.engines.workers import available_cores
from fedsim.errors import ConfigError
from fedsim.flower import internals, messages, strategies
from fedsim.flower.internals import FIRST_NODE_ID


class AppGrid(messages.LocalGrid):
    """Flower's Grid over SuperNodes in this process. Use it as a context manager.

    Parameters
    ----------
    client_app : ClientApp
    num_supernodes : int
    run_config : mapping, optional
        Run configuration of the ClientApps' contexts.
    node_configs : sequence of mapping, optional
        Additional node config of each SuperNode, besides ``partition-id`` and ``num-partitions``.
    workers : int, optional
        Threads; default one per available core.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        node_configs: Sequence[Mapping[str, Any]] | None = None,
        workers: int | None = None,
    ) -> None:
        check_integer("num_supernodes", num_supernodes, 1)
        if workers is not None:
            check_integer("workers", workers, 1)
        if node_configs is not None and len(node_configs) != num_supernodes:
            raise ConfigError(f"node_configs has {len(node_configs)} entries; allowed: {num_supernodes}, one each")
        super().__init__()
        self._app = client_app
        self._contexts = [
            _context(FIRST_NODE_ID + k, {"partition-id": k, "num-partitions": num_supernodes, **config}, run_config)
            for k, config in enumerate(node_configs or [{}] * num_supernodes)
        ]
        self._locks = [threading.Lock() for _ in range(num_supernodes)]
        self._replies: dict[str, Future[Message]] = {}
        self._pool = ThreadPoolExecutor(workers or available_cores(), "supernode")

    def __enter__(self) -> AppGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get_node_ids(self) -> Sequence[int]:
        """Return the ids of all SuperNodes in the order of their partition ids."""
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + len(self._contexts)))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their SuperNodes, which start to handle them."""
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id - FIRST_NODE_ID
            if not 0 <= node < len(self._contexts):
                known = self.get_node_ids()
                raise ValueError(f"message for an unknown node; nodes are {known[0]}..{known[-1]}")
            ids.append(self.next_id())
            internals.set_message_id(message, ids[-1])
            received = internals.make_message(message.metadata, _copy_records(message.content))
            self._replies[ids[-1]] = self._pool.submit(self._handle, node, received)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the available replies to these messages; each reply is returned once."""
        ready = [i for i in message_ids if i in self._replies and self._replies[i].done()]
        return [self._replies.pop(i).result() for i in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies within `timeout` seconds, in the order of the messages."""
        ids = list(self.push_messages(messages))
        wait([self._replies[i] for i in ids], timeout)
        return self.pull_messages(ids)

    def _handle(self, node: int, message: Message) -> Message:
        """Handle a message as a SuperNode does."""
        with self._locks[node]:
            try:
                reply = self._app(message, self._contexts[node])
                if reply.has_content():
                    reply = internals.make_message(reply.metadata, _copy_records(reply.content))
            except Exception as error:
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        internals.set_message_id(reply, f"{message.metadata.message_id}-reply")
        return reply


def _context(node_id: int, node_config: dict[str, Any], run_config: Mapping[str, Any] | None) -> Context:
    return Context(internals.run_id(), node_id, node_config, RecordDict(), dict(run_config or {}))


def _copy_records(content: RecordDict) -> RecordDict:
    """Return a copy for the receiver, which shares the immutable values of arrays."""
    copied = RecordDict()
    for name, record in content.items():
        copy: Any = next(kind for kind in (ArrayRecord, MetricRecord, ConfigRecord) if isinstance(record, kind))()
        for key, value in record.items():
            if isinstance(value, Array) and not isinstance(value, internals.Array):
                value = Array(dtype=value.dtype, shape=tuple(value.shape), stype=value.stype, data=value.data)
            copy[key] = list(value) if isinstance(value, list) else value
        copied[name] = copy
    return copied


def run_flower(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    *,
    run_config: Mapping[str, Any] | None = None,
    node_configs: Sequence[Mapping[str, Any]] | None = None,
    workers: int | None = None,
    verbose: bool = False,
) -> Context:
    """Run a Flower app in this process; a drop-in for ``flwr.simulation.run_simulation``.

    Parameters
    ----------
    server_app : ServerApp
    client_app : ClientApp
    num_supernodes : int
        At least 1.
    run_config : mapping, optional
        Run configuration of all contexts.
    node_configs : sequence of mapping, optional
        Additional node config of each SuperNode, besides ``partition-id`` and ``num-partitions``.
    workers : int, optional
        Threads on which ClientApps run; default one per available core. With 1 they run one after another.
    verbose : bool
        Show Flower's log.

    Returns
    -------
    Context
        The ServerApp's context, with its state.

    Raises
    ------
    Exception
        Raised by the ServerApp; an exception in a ClientApp reaches the ServerApp as an error reply.
    """
    with (
        strategies.quiet(verbose),
        AppGrid(client_app, num_supernodes, run_config=run_config, node_configs=node_configs, workers=workers) as grid,
    ):
        context = _context(internals.SERVER_NODE_ID, {}, run_config)
        server_app(grid, context)
    return context
