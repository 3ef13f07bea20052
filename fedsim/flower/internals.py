"""Every touch of Flower's non-public parts, and the records that carry fedsim's weights through Flower.

Flower's `Array` holds serialised bytes; making and reading them costs more than training a small client. The `Array`
here keeps the ndarray and serialises only when somebody asks for `.data`, and is otherwise Flower's own.
"""

from __future__ import annotations

import gc
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
from flwr.app import ArrayRecord, Message, Metadata, RecordDict
from flwr.app.exception import AppExitException as AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedsim.errors import ConfigError
from fedsim.models.mlp import MLP, views

#: Name of the record that carries what goes down besides the weights; and what precedes the names of arrays that go up
#: besides them, in their record, for Flower's strategies want one record in a reply.
DOWN, UP = "fedsim.down", "fedsim.up."
#: Flower's id of the server side (flwr.common.constant.SUPERLINK_NODE_ID).
SERVER_NODE_ID = 1


def take_identity() -> None:
    """Set the identity without which Flower refuses to create a message, unless Flower has set it."""
    defaults = {"_run_id": 0, "_node_id": SERVER_NODE_ID, "_task_id": 0}
    for name, value in defaults.items():
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, value)


def run_id() -> int:
    """Return the id of the run of which this process is a part."""
    return TaskIdentity.run_id


def empty_run() -> Run:
    """Return a Flower run description with nothing in it."""
    return Run.create_empty(0)


def stamp(message: Message, message_id: str) -> None:
    """Give an outgoing message its id, as Flower's own grids do."""
    message.metadata.__dict__["_message_id"] = message_id


def reply_metadata(node_id: int, message_id: str, message_type: str, group_id: str, created_at: float) -> Metadata:
    """Return the metadata of node `node_id`'s reply to message `message_id`."""
    return Metadata(
        run_id=TaskIdentity.run_id,
        message_id=f"{message_id}-reply",
        src_node_id=node_id,
        dst_node_id=SERVER_NODE_ID,
        reply_to_message_id=message_id,
        group_id=group_id,
        created_at=created_at,
        ttl=3600.0,
        message_type=message_type,
    )


def make_message(metadata: Metadata, content: RecordDict | None = None, error: flwr.app.Error | None = None) -> Message:
    """Return a message with given metadata, which Flower's public constructor does not offer."""
    return Message(metadata=metadata, content=content, error=error)  # type: ignore[call-overload, no-any-return]


class Array(flwr.app.Array):
    """Flower's Array around an ndarray, serialised on demand; on the wire it is Flower's own class by name.

    Parameters
    ----------
    values : ndarray
        Kept, not copied; must not change afterwards.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self.__dict__.update(
            values=values, dtype=_name(values.dtype), shape=values.shape, stype="numpy.ndarray", _data=None
        )

    @property
    def data(self) -> bytes:
        """The bytes Flower would have made at once."""
        if self.__dict__["_data"] is None:
            buffer = BytesIO()
            np.save(buffer, self.__dict__["values"], allow_pickle=False)
            self.__dict__["_data"] = buffer.getvalue()
        data: bytes = self.__dict__["_data"]
        return data

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__.update(_data=value, values=np.load(BytesIO(value), allow_pickle=False))

    def numpy(self) -> NDArray[Any]:
        """Return the values in an array of the caller's own, as Flower does (its strategies write into it)."""
        return np.array(self.__dict__["values"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, flwr.app.Array):
            return NotImplemented
        return (self.dtype, self.shape, self.stype, self.data) == (other.dtype, other.shape, other.stype, other.data)

    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy takes longer to put together than a small array to be made."""
    return str(dtype)


def to_record(net: MLP, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat weights, shape (parameters,), as Flower's record of ``W1, b1, W2, b2, ...``."""
    return record(views(net, flat))


def record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return named arrays as Flower's record, which keeps them uncopied."""
    made = ArrayRecord()
    for name, values in arrays.items():
        made[name] = Array(values)
    return made


def _values(array: flwr.app.Array) -> NDArray[Any]:
    """Return an array's values, uncopied where they are at hand."""
    values: NDArray[Any] = array.__dict__["values"] if isinstance(array, Array) else array.numpy()
    return values


def to_flat(net: MLP, record: ArrayRecord) -> NDArray[Any]:
    """Return a record's arrays as flat weights of the network's dtype, shape (parameters,), read-only.

    Raises
    ------
    ConfigError
        The record is not this network's: other names or shapes.
    """
    expected = {name: shape for name, (_, shape) in net.layout.items()}
    found = {name: tuple(array.shape) for name, array in record.items()}
    if found != expected:
        raise ConfigError(f"the server strategy sent the arrays {found}; the network has {expected}")
    flat = np.empty(net.num_parameters, dtype=net.dtype)
    for name, target in views(net, flat).items():
        array = record[name]
        target[...] = _values(array)
    flat.flags.writeable = False
    return flat


def parts(reply: ArrayRecord) -> tuple[ArrayRecord, dict[str, NDArray[Any]]]:
    """Return a reply's weights, and what was sent besides them."""
    weights, up = ArrayRecord(), {}
    for name, array in reply.items():
        if name.startswith(UP):
            up[name.removeprefix(UP)] = array.numpy()
        else:
            weights[name] = array
    return weights, up


def flatten(record: ArrayRecord) -> NDArray[Any]:
    """Return any record's arrays as one flat array, read-only; mixed dtypes become one that holds them all."""
    arrays = [_values(array) for array in record.values()]
    flat = np.concatenate([values.ravel() for values in arrays])
    flat.flags.writeable = False
    return flat


def unflatten(like: ArrayRecord, flat: NDArray[Any]) -> ArrayRecord:
    """Return flat values as a record with the names, shapes and dtypes of another."""
    arrays, start = {}, 0
    for name, array in like.items():
        stop = start + math.prod(array.shape)
        arrays[name] = flat[start:stop].astype(array.dtype).reshape(array.shape)
        start = stop
    return record(arrays)


def payload_bytes(net: MLP, layers: Iterable[int]) -> int:
    """Return how many bytes some layers' serialised arrays have: what Flower sends, less its envelope."""
    zeros = views(net, np.zeros(net.num_parameters, dtype=net.dtype))
    return sum(array_bytes(zeros[f"{kind}{layer}"]) for layer in layers for kind in "Wb")


def array_bytes(values: NDArray[Any]) -> int:
    """Return how many bytes an array has, serialised."""
    return _header_bytes(values.shape, values.dtype.str) + values.nbytes


@lru_cache(maxsize=1024)
def _header_bytes(shape: tuple[int, ...], dtype: str) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.tell()


class LocalGrid(Grid):
    """What a Grid in this process has in any case."""

    def __init__(self) -> None:
        take_identity()
        self._run = empty_run()
        self._sent = 0

    def next_id(self) -> str:
        """Return a message id that has not been given."""
        self._sent += 1
        return f"{self._sent}"

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
        """Create a message (Flower prefers the Message constructor)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Hold Flower's own log to errors while fedsim runs it, unless `verbose`."""
    logger = logging.getLogger("flwr")
    before = logger.level
    if not verbose:
        logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def cheap_collection() -> Iterator[None]:
    """Spare garbage collection what exists by now: some of Flower's strategies collect per array and client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Instructions(Sequence[Message]):
    """One instruction for many nodes: a sequence of messages that makes each only when asked for it.

    The in-process engine reads `record` and `node_ids` and makes none.

    Parameters
    ----------
    record : RecordDict
        The content that all of them share.
    node_ids : sequence or ndarray of int
    message_type : str
        Flower's ``MessageType.TRAIN`` or ``EVALUATE``.
    aggregator : Aggregator, optional
        What takes the updates as they finish, on a grid that can do so; default: every update is a reply.
    min_clients : int
        Fewest updates with which a round is accepted.
    """

    def __init__(
        self,
        record: RecordDict,
        node_ids: Sequence[int] | NDArray[np.integer[Any]],
        message_type: str,
        aggregator: Any = None,
        min_clients: int = 0,
    ) -> None:
        self.record, self.node_ids, self.message_type = record, node_ids, message_type
        self.aggregator, self.min_clients = aggregator, min_clients

    def __len__(self) -> int:
        return len(self.node_ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return Message(content=self.record, dst_node_id=int(self.node_ids[index]), message_type=self.message_type)


@contextmanager
def seeded_sampling(seed: int) -> Iterator[None]:
    """Seed the global `random`, from which Flower's own strategies sample, and put it back afterwards."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


class Later(Strategy):
    """Another strategy, whose rounds go on counting after those that an interrupted run has done.

    Parameters
    ----------
    strategy : Strategy
    done : int
        Rounds done; with 0 the strategy runs as it is.
    """

    def __init__(self, strategy: Strategy, done: int) -> None:
        self._strategy, self._done = strategy, done

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Run the strategy's own loop where nothing has been done, else Flower's."""
        return self._strategy.start(*args, **kwargs) if not self._done else super().start(*args, **kwargs)

    def summary(self) -> None:
        """Log what the strategy logs."""
        self._strategy.summary()

    def configure_train(self, server_round: int, *args: Any) -> Any:
        """As the strategy does."""
        return self._strategy.configure_train(server_round + self._done, *args)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """As the strategy does."""
        return self._strategy.aggregate_train(server_round + self._done, replies)

    def configure_evaluate(self, server_round: int, *args: Any) -> Any:
        """As the strategy does."""
        return self._strategy.configure_evaluate(server_round + self._done, *args)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        """As the strategy does."""
        return self._strategy.aggregate_evaluate(server_round + self._done, replies)
