"""Anybody's Flower app in this process: ServerApp and ClientApp as they are, without Ray and without serialising.

A SuperNode is a context of Flower's and a place in a queue: messages to it are handled one after another, those to
different SuperNodes on as many threads as there are workers. What a ClientApp puts into its context's state is there in
its next message, mods run as Flower's ClientApp runs them, and an exception in a ClientApp becomes an error reply.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.checks import check_integer, suggest
from fedsim.engines.workers import available_cores
from fedsim.errors import ConfigError
from fedsim.flower import internals, messages, strategies
from fedsim.modules import Modules
from fedsim.text import describe, toml_value

#: Node id of the first SuperNode; Flower keeps 1 for the server.
FIRST = 2


class AppGrid(messages.LocalGrid):
    """Flower's Grid over SuperNodes in this process. Use it as a context manager.

    Parameters
    ----------
    client_app : ClientApp
    num_supernodes : int
    run_config : mapping, optional
        What ClientApps find in their context.
    node_configs : sequence of mapping, optional
        More for each SuperNode's node config than its ``partition-id`` and ``num-partitions``.
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
            Context(
                run_id=internals.run_id(),
                node_id=FIRST + k,
                node_config={
                    "partition-id": k,
                    "num-partitions": num_supernodes,
                    **(node_configs[k] if node_configs else {}),
                },
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for k in range(num_supernodes)
        ]
        self._locks = [threading.Lock() for _ in range(num_supernodes)]
        self._workers = workers or available_cores()
        self._replies: dict[str, Future[Message]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> AppGrid:
        self._pool = ThreadPoolExecutor(self._workers, "supernode")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pool
        self._pool.shutdown(wait=True, cancel_futures=True)

    # Flower's interface.

    def get_node_ids(self) -> Sequence[int]:
        """Return all SuperNodes' ids in the order of their partition ids."""
        return list(range(FIRST, FIRST + len(self._contexts)))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their SuperNodes, which begin at once."""
        assert self._pool, "use the grid as a context manager"
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id - FIRST
            if not 0 <= node < len(self._contexts):
                raise ValueError(f"message for an unknown node; nodes are {FIRST}..{FIRST + len(self._contexts) - 1}")
            message_id = self.next_id()
            internals.stamp(message, message_id)
            received = internals.make_message(message.metadata, _copy(message.content))
            self._replies[message_id] = self._pool.submit(self._handle, node, received)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come to those of the messages; each is returned once."""
        ready = [i for i in message_ids if i in self._replies and self._replies[i].done()]
        return [self._replies.pop(i).result() for i in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that come within `timeout` seconds, in the order of the messages."""
        ids = list(self.push_messages(messages))
        wait([self._replies[i] for i in ids], timeout)
        return self.pull_messages(ids)

    def _handle(self, node: int, message: Message) -> Message:
        """Do what a SuperNode does with a message."""
        with self._locks[node]:
            try:
                reply = self._app(message, self._contexts[node])
                reply = internals.make_message(reply.metadata, _copy(reply.content)) if reply.has_content() else reply
            except Exception as error:
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        internals.stamp(reply, f"{message.metadata.message_id}-reply")
        return reply


def _copy(content: RecordDict) -> RecordDict:
    """Return records of the receiver's own, as if they had been sent; arrays' values are shared and never change."""
    copied = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            mine: Any = ArrayRecord()
            for key, array in record.items():
                mine[key] = array if isinstance(array, internals.Array) else _same(array)
        else:
            mine = MetricRecord() if isinstance(record, MetricRecord) else ConfigRecord()
            for key, value in record.items():
                mine[key] = list(value) if isinstance(value, list) else value
        copied[name] = mine
    return copied


def _same(array: Array) -> Array:
    return Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=array.data)


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
        What both find as ``context.run_config``.
    node_configs : sequence of mapping, optional
        More for each SuperNode's ``context.node_config`` than its ``partition-id`` and ``num-partitions``.
    workers : int, optional
        Threads on which ClientApps run; default one per available core. With 1 they run one after another.
    verbose : bool
        Show Flower's log.

    Returns
    -------
    Context
        The ServerApp's, with whatever it left in its state.

    Raises
    ------
    Exception
        Whatever the ServerApp raises; what a ClientApp raises goes to the ServerApp as an error reply.
    """
    with (
        strategies.quiet(verbose),
        AppGrid(client_app, num_supernodes, run_config=run_config, node_configs=node_configs, workers=workers) as grid,
    ):
        context = Context(
            run_id=internals.run_id(),
            node_id=internals.SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config or {}),
        )
        server_app(grid, context)
    return context


def load_app(folder: str | os.PathLike[str]) -> tuple[ServerApp, ClientApp, dict[str, Any], int | None]:
    """Load a Flower app from its folder.

    Parameters
    ----------
    folder : path
        With a ``pyproject.toml`` that has ``[tool.flwr.app.components]``.

    Returns
    -------
    server_app : ServerApp
    client_app : ClientApp
    run_config : dict
        Its defaults, nested tables joined by dots as Flower does.
    num_supernodes : int or None
        Of the default federation, where the file says.

    Raises
    ------
    ConfigError
        No such file, no such components, or a component that cannot be imported.
    """
    file = Path(folder) / "pyproject.toml"
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
        flwr = settings["tool"]["flwr"]
        components = flwr["app"]["components"]
        paths = components["serverapp"], components["clientapp"]
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r} is not TOML: {error}") from None
    except (KeyError, TypeError):
        raise ConfigError(f"{str(file)!r} has no serverapp and clientapp in [tool.flwr.app.components]") from None
    place = Path(folder).resolve()
    if str(place) not in sys.path[:1]:
        sys.path.insert(0, str(place))
    _forget_other_apps(place, {str(path).partition(":")[0].partition(".")[0] for path in paths})
    server_app, client_app = (_component(path, kind) for path, kind in zip(paths, (ServerApp, ClientApp), strict=True))
    federations = flwr.get("federations", {})
    default = federations.get(federations.get("default", ""), {})
    nodes = default.get("options", {}).get("num-supernodes") if isinstance(default, dict) else None
    return server_app, client_app, _flat(flwr["app"].get("config", {})), nodes


def _forget_other_apps(folder: Path, packages: set[str]) -> None:
    """Unload modules of these names that were imported from another folder, such as another app's."""
    own = {name for name in packages if Modules(folder=folder).has(name)}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in own and file and not Path(file).is_relative_to(folder):
            del sys.modules[name]


def _component(path: str, kind: type) -> Any:
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name or "app", None)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the component {path!r} cannot be imported: {describe(error)}") from None
    if not isinstance(found, kind):
        raise ConfigError(f"the component {path!r} is {type(found).__name__}; allowed: a {kind.__name__}")
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def overridden(config: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return run configuration with ``key=value`` changes, values in TOML.

    Raises
    ------
    ConfigError
        A key that the app does not have, or a value that is not TOML.
    """
    changed = dict(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or key not in config:
            known = ", ".join(config) or "nothing"
            raise ConfigError(f"--run-config is {assignment!r}; the app takes {known}{suggest(key, config)}")
        changed[key] = toml_value(f"--run-config {key}", text)
    return changed


def run_app(
    folder: str | os.PathLike[str],
    num_supernodes: int | None = None,
    assignments: Sequence[str] = (),
    workers: int | None = None,
    verbose: bool = False,
) -> float:
    """Run the Flower app in a folder; return the seconds it took. See `load_app` and `run_flower`."""
    server_app, client_app, config, nodes = load_app(folder)
    started = time.perf_counter()
    run_flower(
        server_app,
        client_app,
        num_supernodes or nodes or 10,  # ten is Flower's own default
        run_config=overridden(config, assignments),
        workers=workers,
        verbose=verbose,
    )
    return time.perf_counter() - started
