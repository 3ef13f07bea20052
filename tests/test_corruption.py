"""A corrupted checkpoint is refused in one sentence and stays; a forged one never ends in anything but a sentence.

Two hundred corruptions are in the tests; ``python tests/test_corruption.py 10000`` tries as many as it says.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import OnRound, same

from fedsim import Experiment, clients, data, servers
from fedsim.engines.threads import ThreadEngine
from fedsim.errors import ConfigError, FedsimError
from fedsim.flower.strategies import load_sampling_state, sampling_state
from fedsim.rounds.grid import RoundGrid
from fedsim.splits import Dirichlet
from fedsim.study import checkpoint
from fedsim.study import directory as rundir
from fedsim.study import saving as run
from fedsim.study.build import build_runtime
from fedsim.study.checkpoint import CHECKSUM
from fedsim.study.run_state import RunState

Entries = dict[str, Any]


def experiment() -> Experiment:
    """All that a checkpoint can hold: state of clients, of both halves of the server, failures, central weights."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 2, 60)
    return Experiment(
        dataset=data.Dataset("own", x[:40], y[:40], x[40:], y[40:], 2),
        split=Dirichlet(4, alpha=5.0),
        hidden=(2,),
        rounds=2,
        client=clients.SCAFFOLD(),
        server=partial(servers.FedAdam, eta=0.1),
        fraction_evaluate=1.0,
        weight_divergence=True,
        kernel="numpy",
    )


class _StopError(Exception):
    pass


def stop(row: Mapping[str, float]) -> None:
    if row["round"] == 2:
        raise _StopError


def checkpoint_of(made: Experiment, folder: Path) -> bytes:
    """Return the checkpoint that an interrupted run leaves after round 1."""
    before = run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE
    run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = 0.0, 1e9
    try:
        made.run(directory=folder, callbacks=[OnRound(stop)])
    except _StopError:
        (folder / rundir.PREVIOUS).unlink()  # it would replace a damaged one
        return (folder / rundir.CHECKPOINT).read_bytes()
    finally:
        run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = before
    raise AssertionError("the run was not interrupted")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return other bytes: flipped, cut, swapped, overwritten, added."""
    made = bytearray(content)
    at, length = rng.randrange(len(made)), rng.randint(1, 200)
    kind = rng.choice(["flip", "cut", "swap", "zero", "insert", "remove", "append"])
    if kind == "flip":
        for _ in range(rng.randint(1, 4)):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del made[at:]
    elif kind == "swap":
        to = rng.randrange(len(made))
        made[at : at + 8], made[to : to + 8] = made[to : to + 8], made[at : at + 8]
    elif kind == "zero":
        made[at : at + length] = bytes(len(made[at : at + length]))
    elif kind == "insert":
        made[at:at] = rng.randbytes(length)
    elif kind == "remove":
        del made[at : at + length]
    else:
        made += rng.randbytes(length)
    return bytes(made)


def entries_of(content: bytes) -> Entries:
    """Return the arrays of a checkpoint, and its tree."""
    with np.load(BytesIO(content[:-CHECKSUM])) as archive:
        entries: Entries = {name: archive[name] for name in archive.files}
    return entries | {"tree": json.loads(entries["tree"].tobytes())}


def written(entries: Entries, compressed: bool = False) -> bytes:
    """Return a file with the right checksum."""
    stream = BytesIO()
    text = entries["tree"] if isinstance(entries["tree"], str) else json.dumps(entries["tree"])
    arrays = entries | {"tree": np.frombuffer(text.encode(), dtype=np.uint8)}
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue() + hashlib.sha256(stream.getvalue()).hexdigest().encode()


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Return every place in a tree as (container, key)."""
    if isinstance(tree, dict | list):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        return [place for key in keys for place in [(tree, key), *nodes(tree[key])]]
    return []


HOSTILE: list[Any] = [
    None, True, 0, -1, 2**80, 1.5, float("nan"), float("inf"), "", "text", "a0", [], {}, [[]], [1, 2],
    {"dict": {}}, {"list": []}, {"tuple": []}, {"items": [[1, 2]]}, {"items": 3}, {"array": "a0"}, {"array": "none"},
    {"scalar": "a0"}, {"record": {"dict": {}}}, {"record": {"array": "a0"}}, {"pickle": "cos\nsystem\n"},
    {"dict": {"a": 1}, "list": []}, {"dict": {"__class__": 1}}, {"dict": {"step": 1, "fraction_train": "x"}},
]  # fmt: skip


def forged(content: bytes, rng: random.Random) -> bytes:
    """Return another checkpoint with the right checksum."""
    entries = copy.deepcopy(entries_of(content))
    arrays = [name for name in entries if name != "tree"]
    name = rng.choice(arrays)
    kind = rng.choice(
        ["node", "node", "node", "key", "swap", "drop", "dtype", "shape", "version", "deep", "compressed"]
    )
    tree = entries["tree"]
    if kind == "node":
        container, key = rng.choice(nodes(tree))
        container[key] = rng.choice(HOSTILE)
    elif kind == "key":
        container, key = rng.choice([place for place in nodes(tree) if isinstance(place[0], dict)])
        container[rng.choice(["x", "state", "dict", "seed"])] = container.pop(key)
    elif kind == "swap":
        other = rng.choice(arrays)
        entries[name], entries[other] = entries[other], entries[name]
    elif kind == "drop":
        del entries[name]
    elif kind == "dtype":
        kinds = ["f2", ">f8", "i1", "u8", "c16", "?", "U4", "M8[s]"]
        with np.errstate(all="ignore"):
            entries[name] = np.zeros(entries[name].shape, rng.choice(kinds))
    elif kind == "shape":
        entries[name] = rng.choice([entries[name].ravel()[:1], np.zeros((3, 0)), np.zeros(7), entries[name][..., None]])
    elif kind == "version":
        tree["version"] = rng.choice([2, 4, "3", None, 3.5, [3]])
    elif kind == "deep":
        depth = rng.choice([200, 2_000, 200_000])
        entries["tree"] = '{"version": 3, "value": ' + '{"list": [' * depth + "]}" * depth + "}"
    return written(entries, compressed=kind == "compressed")


def attempts(folder: Path, number: int, seed: int = 0) -> dict[str, int]:
    """Try half as many damaged as forged checkpoints each; return how many ended how."""
    made, rng = experiment(), random.Random(seed)
    whole, content = made.run(), checkpoint_of(made, folder)
    file, counted = folder / rundir.CHECKPOINT, {"refused": 0, "ran": 0}
    for turn in range(number):
        tried = damaged(content, rng) if turn % 2 else forged(content, rng)
        if tried == content:
            continue
        for old in folder.glob("*.csv"):
            old.unlink()
        file.write_bytes(tried)
        sentence = ""
        try:
            result = made.run(directory=folder)
        except FedsimError as error:
            sentence = str(error)
        if sentence:
            assert len(sentence.splitlines()) == 1, sentence
            assert file.read_bytes() == tried or "checkpoint" not in sentence
        else:
            assert turn % 2 == 0, f"damaged bytes were accepted in turn {turn}"
            assert len(result.history) == 3 or result.stop_reason  # which may be forged, too
        counted["refused" if sentence else "ran"] += 1
    file.write_bytes(content)
    assert same(made.run(directory=folder), whole)
    return counted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_corrupted_checkpoints_are_refused(tmp_path: Path) -> None:
    counted = attempts(tmp_path, 200)
    assert counted["refused"] > 150


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    made = experiment()
    content = checkpoint_of(made, tmp_path)
    for place in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (tmp_path / rundir.CHECKPOINT).write_bytes(flipped)
        with pytest.raises(FedsimError, match=r"the checkpoint .* cannot be read.*delete it to start the run"):
            made.run(directory=tmp_path)


def change_checkpoint(made: Experiment, folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Interrupt a run, and change parts of its checkpoint under a right checksum."""
    entries = entries_of(checkpoint_of(made, folder))
    change(entries["tree"]["value"]["dict"])
    (folder / rundir.CHECKPOINT).write_bytes(written(entries))


def test_a_checkpoint_without_the_weights_of_central_training_is_refused(tmp_path: Path) -> None:
    made = experiment()
    change_checkpoint(made, tmp_path, lambda parts: parts.update(centralised=None))
    with pytest.raises(FedsimError, match="does not fit this experiment: its centralised has other types or shapes"):
        made.run(directory=tmp_path)


@pytest.mark.parametrize("part", ["stop_reason", "sampling", "failures", "server"])
def test_a_checkpoint_without_a_part_is_refused(part: str, tmp_path: Path) -> None:
    made = experiment()
    change_checkpoint(made, tmp_path, lambda parts: parts.pop(part))
    with pytest.raises(ConfigError, match=f"does not fit this experiment: '{part}'"):
        made.run(directory=tmp_path)


def test_a_run_whose_client_state_was_elsewhere_is_not_blamed_on_its_checkpoint(tmp_path: Path) -> None:
    made = experiment()
    change_checkpoint(made, tmp_path, lambda parts: parts.update(client_state=None))
    with pytest.raises(FedsimError, match="client state was kept on SuperNodes") as caught:
        made.run(directory=tmp_path)
    assert "checkpoint" not in str(caught.value)


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A small file could become more than memory holds; those of runs are not compressed."""
    file = tmp_path / "c.npz"
    checkpoint.save(file, {"zeros": np.zeros(9)})
    file.write_bytes(written(entries_of(file.read_bytes()), compressed=True))
    with pytest.raises(FedsimError, match="an entry is compressed"):
        checkpoint.load(file)


def test_what_a_reader_says_in_several_lines_is_one(tmp_path: Path) -> None:
    """NumPy refuses a header that long in two sentences, each on a line of its own."""
    made = experiment()
    entries = entries_of(checkpoint_of(made, tmp_path))
    entries["a0"] = np.zeros(1, [(f"field{number}", np.float64) for number in range(1000)])
    (tmp_path / rundir.CHECKPOINT).write_bytes(written(entries))
    with pytest.raises(FedsimError, match=r"cannot be read: Header info length") as caught:
        made.run(directory=tmp_path)
    assert len(str(caught.value).splitlines()) == 1


# What a checkpoint holds, part by part.


@pytest.fixture
def _same_sampling() -> Iterator[None]:
    """A checkpoint brings the state of Python's generator along."""
    before = sampling_state()
    yield
    load_sampling_state(before)


def state_of(made: Experiment) -> RunState:
    """The state of a run that has not begun."""
    return RunState(made, RoundGrid(ThreadEngine(build_runtime(made), workers=1)))


def put(*keys: Any, by: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value, or what a function makes of the old one, in a place of what was saved."""

    def change(saved: dict[str, Any]) -> None:
        place: Any = saved
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = by(place[keys[-1]]) if callable(by) else by

    return change


FAILED = {"round": 1, "partition_id": 0, "reason": "no"}
UNFIT: dict[str, list[Callable[[dict[str, Any]], None]]] = {
    "arrays": [put("arrays", by={})],
    "history": [
        put("history", by=[]),
        put("history", by=lambda rows: rows[:1] * 2),
        put("history", by=lambda rows: rows[1:]),
        put("history", by=lambda rows: [{**rows[0], "round": number} for number in range(4)]),  # of two rounds
    ],
    "rows": [
        put("history", by=None),
        put("history", by=[[]]),
        put("history", 0, by=lambda row: row | {"more": 1}),
        put("history", 0, by=lambda row: dict(reversed(row.items()))),
        put("history", 1, "test_loss", by="0.5"),
        put("history", 1, "clients", by=True),
        put("clients", 0, "loss", by=[0.5] * 4),
        put("failures", by=[FAILED | {"partition_id": 0.0}]),
    ],
    "clients": [
        put("clients", 0, "loss", by=lambda values: values[1:]),
        put("clients", 0, "round", by=np.ones((4, 1))),
    ],
    "failures": [put("failures", by=[FAILED | {"reason": 3}])],
    "server_hooks": [
        put("server_hooks", by=[]),
        put("server_hooks", "control", by=[0.5]),
        put("server_hooks", "control", by=lambda values: values[1:]),
        put("server_hooks", "control", by=lambda values: values.astype(np.float64)),
    ],
    "centralised": [
        put("centralised", by=None),
        put("centralised", by=lambda values: values[1:]),
        put("centralised", by=lambda values: values.astype(np.float64)),
    ],
    "client_state": [
        put("client_state", by=[]),
        put("client_state", "state control", by=lambda rows: rows.tolist()),
        put("client_state", "state control", by=lambda rows: rows[1:]),
        put("client_state", "state control", by=lambda rows: rows[:, 1:]),
        put("client_state", "state other", by=np.zeros(4)),
        put("client_state", "clients", by=np.array([0, 1, 3, 2])),
        put("client_state", "clients", by=np.array([0, 1, 1, 2])),
        put("client_state", "clients", by=np.array([-1, 0, 1, 2])),
        put("client_state", "clients", by=np.array([0, 1, 2, 4])),
        put("client_state", "clients", by=np.arange(4.0)),
        put("client_state", "clients", by=np.arange(4)[None]),
    ],
    "server": [put("server", "state", by=[]), put("server", "step", by=0)],
}


@pytest.mark.usefixtures("_same_sampling")
def test_each_part_of_a_checkpoint_is_compared_with_the_experiment_and_named(tmp_path: Path) -> None:
    made = experiment()
    checkpoint_of(made, tmp_path)
    saved = checkpoint.load(tmp_path / rundir.CHECKPOINT)
    fresh = state_of(made).initial_arrays()
    assert set(fresh["client_state"]) == set(fresh["server_hooks"]) == {"control"}
    for part, changes in UNFIT.items():
        for number, change in enumerate(changes):
            forged = copy.deepcopy(saved)
            change(forged)
            with pytest.raises(FedsimError) as refused:
                state_of(made).load_state_dict(forged, fresh)
            assert str(refused.value).startswith(f"its {part} has"), (part, number, refused.value)


@pytest.mark.usefixtures("_same_sampling")
def test_a_state_that_fits_is_taken_up_whole(tmp_path: Path) -> None:
    """That of a run which is over, and of one in which no client has taken part, too."""
    made = experiment()
    checkpoint_of(made, tmp_path)
    saved = checkpoint.load(tmp_path / rundir.CHECKPOINT)
    fresh = state_of(made).initial_arrays()
    saved["failures"] = [FAILED]
    saved["history"].append(saved["history"][1] | {"round": 2, "clients": 3})
    random.seed(5)
    saved["sampling"] = sampling_state()
    random.seed(6)
    state = state_of(made)
    state.load_state_dict(saved, fresh)
    assert str(sampling_state()) == str(saved["sampling"])
    again = state.state_dict()
    assert again.keys() | {"experiment", "stop_reason"} == saved.keys()
    for name, part in again.items():
        packed: list[dict[str, Any]] = [{}, {}]
        one, other = (checkpoint.pack(v, arrays, name) for v, arrays in zip((part, saved[name]), packed, strict=True))
        assert one == other
        np.testing.assert_equal(packed[0], packed[1])
    assert np.array_equal(state.weights, np.concatenate([a.numpy().ravel() for a in saved["arrays"].values()]))
    saved |= {"server_hooks": None, "client_state": {"clients": np.empty(0, np.intp)}, "history": saved["history"][:1]}
    state.load_state_dict(saved, fresh)
    assert state.server_hooks.state is None
    assert len(state.state_dict()["client_state"]["clients"]) == 0


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        print(attempts(Path(place), int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
