"""A SuperLink in this process, to which Flower's own Grid speaks, and which passes on any bytes that SuperNodes send.

Like Flower's, it checks of a reply's objects that they have the ids that it was told and a well-formed head. Who sends
a reply and to which message it knows for itself, and puts it in the metadata beside the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.superlink.grid.http_grid import HttpGrid

from fedsim.flower import internals

#: A reply's objects, children first and the message last, by id.
Objects = dict[str, bytes]
#: What a SuperNode sends in reply to a message.
Answer = Callable[[Message], Sequence[Objects]]


def serialised(message: Message) -> Objects:
    """Return a message's objects as Flower sends them."""
    return {name: each.deflate() for name, each in get_all_nested_objects(message).items()}


def inflated(objects: Mapping[str, bytes]) -> Message:
    """Return the message with these objects, read by Flower."""
    message: Any = inflate_object_from_contents(list(objects)[-1], dict(objects))
    return message


def renamed(objects: Mapping[str, bytes]) -> Objects:
    """Return objects that were changed under the ids and with the lengths that they have now."""
    made: Objects = {}
    names: dict[bytes, bytes] = {}
    for name, content in objects.items():
        for old, new in names.items():
            content = content.replace(old, new)
        head, divider, body = content.partition(b"\x00")
        content = b" ".join([*head.split(b" ")[:-1], str(len(body)).encode()]) + divider + body
        made[new_name := get_object_id(content)] = content
        names[name.encode()] = new_name.encode()
    return made


class SuperLink:
    """The part of a SuperLink that `HttpGrid` calls."""

    def __init__(self, nodes: Sequence[int], answer: Answer) -> None:
        internals.set_default_identity()
        self.nodes, self._answer = list(nodes), answer
        self._objects: Objects = {}
        self._asked: dict[str, Any] = {}
        self._trees: dict[str, ObjectTree] = {}

    def grid(self) -> HttpGrid:
        """Return Flower's Grid of a deployment, connected to this SuperLink."""
        made: Any = HttpGrid(token="none")
        made._client = self
        made.set_run(internals.empty_run())
        return made

    def forget(self) -> None:
        """Delete the objects of all messages, as Flower's SuperLink does once they are received."""
        self._objects.clear()

    def GetNodes(self, request: Any) -> Any:  # noqa: N802
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.nodes])

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        for each, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            self._asked[each.metadata.message_id] = each.metadata
            self._trees[each.metadata.message_id] = tree
        ids = [each.metadata.message_id for each in request.messages_list]
        wanted = {one.object_id for tree in request.message_object_trees for one in iterate_object_tree(tree)}
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=wanted, session_id="s")

    def PushObject(self, request: Any) -> Any:  # noqa: N802
        self._objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> Any:  # noqa: N802
        response = PullAppMessagesResponse()
        for asked_id in request.message_ids:
            if (asked := self._asked.pop(asked_id, None)) is None:
                continue
            tree = self._trees.pop(asked_id)
            order = [each.object_id for each in iterate_object_tree(tree)]
            message = inflated({name: self._objects[name] for name in order})
            internals.set_message_id(message, asked_id)
            for objects in self._answer(message):
                root = list(objects)[-1]
                self._objects |= objects
                true = internals.reply_metadata(asked.dst_node_id, asked_id, asked.message_type, asked.group_id, 0.0)
                internals.set_message_id(sent := internals.make_message(true, RecordDict()), root)
                response.messages_list.append(message_to_proto(sent))
                others = [ObjectTree(object_id=name) for name in objects if name != root]
                response.message_object_trees.append(ObjectTree(object_id=root, children=others))
        return response

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        content = self._objects[request.object_id]
        try:
            validate_object_content(content)
        except UnexpectedObjectContentError:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> Any:  # noqa: N802
        return ConfirmMessageReceivedResponse()
