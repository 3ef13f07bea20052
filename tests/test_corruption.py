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
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import OnRound, same

from fedsim import Experiment, clients, data, servers
from fedsim.errors import FedsimError
from fedsim.splits import Dirichlet
from fedsim.study import directory as rundir
from fedsim.study import saving as run
from fedsim.study.checkpoint import CHECKSUM

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
            assert len(result.history) == 3
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


def test_a_checkpoint_without_the_weights_of_central_training_is_refused(tmp_path: Path) -> None:
    made = experiment()
    entries = entries_of(checkpoint_of(made, tmp_path))
    entries["tree"]["value"]["dict"]["centralised"] = None
    (tmp_path / rundir.CHECKPOINT).write_bytes(written(entries))
    with pytest.raises(FedsimError, match="does not fit this experiment: its centralised has other types or shapes"):
        made.run(directory=tmp_path)


def test_what_a_reader_says_in_several_lines_is_one(tmp_path: Path) -> None:
    """NumPy refuses a header that long in two sentences, each on a line of its own."""
    made = experiment()
    entries = entries_of(checkpoint_of(made, tmp_path))
    entries["a0"] = np.zeros(1, [(f"field{number}", np.float64) for number in range(1000)])
    (tmp_path / rundir.CHECKPOINT).write_bytes(written(entries))
    with pytest.raises(FedsimError, match=r"cannot be read: Header info length") as caught:
        made.run(directory=tmp_path)
    assert len(str(caught.value).splitlines()) == 1


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        print(attempts(Path(place), int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
