"""Delivery of messages to SuperNodes, which attributes each reply to the SuperNode that was asked.

A reply's metadata, its sender included, is what the sender wrote. Flower's SuperLink checks who answers which message,
but on a copy of the metadata beside the reply. And Flower's Grid reads all available replies at once: a single one with
malformed bytes raises an exception, and the others are lost. This module therefore asks Flower for the reply to one
message at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedsim.flower import internals
from fedsim.flower.messages import LocalGrid

#: Shortest and longest time between two requests for replies, in seconds, and the time as a share of the time so far.
MIN_PAUSE, MAX_PAUSE, PAUSE_SHARE = 0.05, 3.0, 0.1


def send_and_receive(grid: Grid, messages: Sequence[Message], timeout: float | None) -> Iterable[Message]:
    """Send messages and return the replies within `timeout` seconds; no bytes of a reply raise an exception.

    Parameters
    ----------
    grid : Grid
        Flower's; a grid in this process delivers its messages itself.
    messages : sequence of Message
    timeout : float, optional
        Default: no limit.

    Returns
    -------
    iterable of Message
        The sender is a SuperNode that was asked, or the SuperLink for one that has disconnected. A reply that cannot be
        read, or is in another's name, has become an error of the SuperNode that was asked.
    """
    if isinstance(grid, LocalGrid):
        return grid.send_and_receive(messages, timeout=timeout)
    sent = set(grid.push_messages(messages))
    waiting = [message for message in messages if message.metadata.message_id in sent]
    replies, start = list[Message](), time.monotonic()
    while True:
        found = [_pull(grid, message) for message in waiting]
        replies += [reply for reply in found if reply]
        waiting = [message for message, reply in zip(waiting, found, strict=True) if not reply]
        elapsed = time.monotonic() - start
        left = float("inf") if timeout is None else timeout - elapsed
        if not waiting or left <= 0:
            return replies
        time.sleep(min(max(PAUSE_SHARE * elapsed, MIN_PAUSE), MAX_PAUSE, left))


def _pull(grid: Grid, message: Message) -> Message | None:
    """Return the reply to a message if there is one."""
    sent = message.metadata
    try:
        with internals.limit_repetition():
            pulled = list(grid.pull_messages([sent.message_id]))
    except internals.MALFORMED as error:
        return _error(message, f"its reply cannot be read: {type(error).__name__}")
    found = [reply for reply in pulled if reply.metadata.reply_to_message_id == sent.message_id]
    if not found:
        return None
    sender = found[0].metadata.src_node_id
    if sender == sent.dst_node_id or (sender == internals.SERVER_NODE_ID and found[0].has_error()):
        return found[0]
    return _error(message, f"its reply is in the name of {sender}")


def _error(message: Message, reason: str) -> Message:
    """Return an error as the reply of the SuperNode that was asked."""
    sent = message.metadata
    made = internals.reply_metadata(sent.dst_node_id, sent.message_id, sent.message_type, sent.group_id, time.time())
    return internals.make_message(made, error=Error(0, reason))
