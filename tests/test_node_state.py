"""State on a SuperNode follows what the server accepts."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.engines.client_state import ClientState
from fedsim.engines.supernodes.state import NodeState
from fedsim.errors import FedsimError

CLIENTS = np.array([4, 2, 7])


def new(clients: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": np.zeros((len(clients), 2))}


def again(state: NodeState) -> NodeState:
    """As Flower's context gives it back."""
    return NodeState(9, state.state_dict())


def test_what_was_not_accepted_is_not_used() -> None:
    state = NodeState(9)
    state.accept(CLIENTS, np.zeros(3, np.intp))
    assert not state.load(CLIENTS, new)["x"].any()
    state.store(CLIENTS, {"x": np.ones((3, 2))}, 1)
    state = again(state)
    assert not state.load(CLIENTS, new)["x"].any()  # sent, but nothing has been said of it
    state.accept(CLIENTS, np.array([1, 0, 1]))  # client 2 was left out
    np.testing.assert_array_equal(state.load(CLIENTS, new)["x"][:, 0], [1, 0, 1])
    state.store(CLIENTS, {"x": np.full((3, 2), 2.0)}, 2)
    state = again(state)
    state.accept(CLIENTS, np.array([1, 2, 2]))  # client 4's second update came too late
    np.testing.assert_array_equal(state.load(CLIENTS, new)["x"][:, 0], [1, 2, 2])
    state.accept(CLIENTS[:1], np.array([1]))  # asked again in the same round
    np.testing.assert_array_equal(state.load(CLIENTS[:1], new)["x"], [[1, 1]])


def test_state_that_is_lost_is_missed() -> None:
    with pytest.raises(FedsimError, match="client 2 has no state after round 3 on this SuperNode"):
        NodeState(9).accept(CLIENTS, np.array([0, 3, 0]))


def test_client_state_is_dumped_and_restored_by_client() -> None:
    """Clients that first took part in another order than that of their ids."""
    state = ClientState(9)
    state.store(np.array([7, 2]), {"x": np.array([7.0, 2.0])})
    state.store(np.array([4, 0]), {"x": np.array([4.0, 0.0])})
    dumped = state.state_dict()
    assert dumped["clients"].tolist() == [0, 2, 4, 7]
    assert dumped["state x"].tolist() == [0, 2, 4, 7]
    restored = ClientState(9)
    restored.load_state_dict(dumped)
    assert restored.rows(CLIENTS)["x"].tolist() == [4, 2, 7]
