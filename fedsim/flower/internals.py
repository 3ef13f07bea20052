"""All uses of non-public parts of Flower (flwr 1.42), except those of the SuperLink in `fedsim.apps.superlink`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any

import flwr.app
import numpy as np
from flwr.app import Message, Metadata, RecordDict
from flwr.app.exception import AppExitException as AppExitException
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, get_object_body
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

#: What Flower raises when it reads malformed bytes; a lost connection raises other exceptions.
MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, DecodeError, LookupError, MemoryError, RecursionError, TypeError,
    UnexpectedObjectContentError, ValueError,
)  # fmt: skip
#: Bytes of repeated chunks that are allowed in a received message.
MAX_REPEATED_BYTES = 2**28
#: Flower's id of the server side (flwr.common.constant.SUPERLINK_NODE_ID).
SERVER_NODE_ID = 1
#: Node id of partition 0 on the grids of this package.
FIRST_NODE_ID = 2


def set_default_identity() -> None:
    """Set the identity that Flower needs to create a message, unless Flower has set it."""
    for name, value in {"_run_id": 0, "_node_id": SERVER_NODE_ID, "_task_id": 0}.items():
        if getattr(TaskIdentity, name) is None:
            setattr(TaskIdentity, name, value)


def run_id() -> int:
    """Return the id of the run that this process belongs to."""
    return TaskIdentity.run_id


def empty_run() -> Run:
    """Return an empty description of a run."""
    return Run.create_empty(0)


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of an outgoing message, as Flower's own grids do."""
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
    """Return a message with the given metadata, which Flower's public constructor does not accept."""
    return Message(metadata=metadata, content=content, error=error)  # type: ignore[call-overload]


@contextmanager
def limit_repetition() -> Iterator[None]:
    """Let Flower raise ValueError for a message whose arrays repeat more than `MAX_REPEATED_BYTES` of their chunks.

    A received array is a list of chunks, and may repeat one so often that a small message fills the memory.
    """
    registry: dict[str, Any] = inflatable_utils.inflatable_class_registry
    seen, repeated = set[str](), 0

    class LimitedArray(flwr.app.Array):
        @classmethod
        def inflate(cls, object_content: bytes, children: Any = None) -> flwr.app.Array:
            nonlocal repeated
            sizes = [(name, len(chunk.data)) for name, chunk in children.items()]
            for place in json.loads(get_object_body(object_content, flwr.app.Array))["arraychunk_ids"]:
                name, size = sizes[place]
                repeated += size if name in seen else 0
                seen.add(name)
                if repeated > MAX_REPEATED_BYTES:
                    raise ValueError(f"its arrays repeat more than {MAX_REPEATED_BYTES} bytes")
            return flwr.app.Array.inflate(object_content, children)

    plain = registry[flwr.app.Array.__qualname__]
    registry[flwr.app.Array.__qualname__] = LimitedArray
    try:
        yield
    finally:
        registry[flwr.app.Array.__qualname__] = plain


class Array(flwr.app.Array):
    """An array for Flower's records that is serialised on demand, in the format of Flower's own class.

    Parameters
    ----------
    values : ndarray
        Not copied; must not change afterwards.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self.__dict__.update(
            values=values, dtype=_dtype_name(values.dtype), shape=values.shape, stype="numpy.ndarray", _data=None
        )

    @property
    def data(self) -> bytes:
        """The serialised values."""
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
        """Return a copy of the values, as Flower does; its strategies write into it."""
        return np.array(self.__dict__["values"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, flwr.app.Array):
            return NotImplemented
        return (self.dtype, self.shape, self.stype, self.data) == (other.dtype, other.shape, other.stype, other.data)

    __hash__ = None  # type: ignore[assignment]


@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name; NumPy needs longer for it than to make a small array."""
    return str(dtype)
