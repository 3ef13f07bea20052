"""State on a SuperNode follows what the server accepts."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.clients.task import Update
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


def test_arrays_keep_their_kind_as_more_clients_come() -> None:
    """Room is made for them; what is there stays, and nobody is known before it has been stored."""
    state = ClientState(9)
    state.store(np.array([3]), {})
    assert not state.known(np.arange(9)).any()
    assert state.state_dict()["clients"].tolist() == []
    assert state.rows(np.array([3])) == {}
    for count, client in enumerate((3, 8, 0, 5, 1, 7, 2, 6, 4), 1):
        state.store(np.array([client]), {"x": np.full((1, 2), client, np.float32), "n": np.array([client], np.int16)})
        assert state.known(np.arange(9)).sum() == count
    found = state.rows(np.arange(9))
    assert [found[name].dtype.name for name in ("x", "n")] == ["float32", "int16"]
    assert found["n"].tolist() == list(range(9))
    assert found["x"][:, 1].tolist() == list(range(9))
    found["n"][:] = -1
    state.store(np.array([4, 2]), {"x": np.zeros((2, 2), np.float32), "n": np.array([40, 20], np.int16)})
    assert state.rows(np.arange(9))["n"].tolist() == [0, 1, 20, 3, 40, 5, 6, 7, 8]


def test_rows_are_made_for_those_that_have_none_and_only_for_them() -> None:
    state = ClientState(9)
    asked: list[list[int]] = []

    def make(clients: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(clients.tolist())
        return {"x": (10 * clients).astype(np.float32)}

    assert state.load(CLIENTS, make)["x"].tolist() == [40, 20, 70]
    state.store(np.array([2]), {"x": np.array([1], np.float32)})
    loaded = state.load(CLIENTS, make)["x"]
    assert loaded.tolist() == [40, 1, 70]
    assert loaded.dtype == np.float32
    assert state.load(np.array([2, 2]), make)["x"].tolist() == [1, 1]
    assert asked == [[4, 2, 7], [4, 7]]
    assert state.known(CLIENTS).tolist() == [False, True, False]  # loading keeps nothing


def test_a_state_that_is_restored_is_all_there_is() -> None:
    """What was there before is gone, the shapes and kinds of its arrays too."""
    state, other = ClientState(9), ClientState(9)
    state.store(CLIENTS, {"x": np.ones((3, 2)), "y": np.ones(3)})
    other.store(np.array([5, 0]), {"x": np.array([7, 6], np.int32)})
    state.load_state_dict(other.state_dict())
    assert np.flatnonzero(state.known(np.arange(9))).tolist() == [0, 5]
    assert state.rows(np.array([5, 0]))["x"].tolist() == [7, 6]
    assert state.rows(np.array([0])).keys() == {"x"}
    state.store(np.array([3]), {"x": np.array([9], np.int32)})
    assert state.rows(np.array([0, 3, 5]))["x"].tolist() == [6, 9, 7]
    state.load_state_dict(ClientState(9).state_dict())
    assert not state.known(np.arange(9)).any()
    with pytest.raises(FedsimError, match=r"^client state was kept on SuperNodes and ended with the interrupted run"):
        state.load_state_dict(None)


def test_an_accepted_round_keeps_the_state_of_the_clients_it_has_aggregated() -> None:
    state = ClientState(9)
    updates = [
        Update(np.array(ids), np.ones(2, int), np.zeros((2, 1)), np.zeros(2), state={"x": np.array(ids) * 1.5})
        for ids in ([4, 2], [7, 1])
    ]
    state.commit(3, updates)
    assert np.flatnonzero(state.known(np.arange(9))).tolist() == [1, 2, 4, 7]
    assert state.rows(np.array([1, 2, 4, 7]))["x"].tolist() == [1.5, 3.0, 6.0, 10.5]
