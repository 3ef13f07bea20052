"""Bytes that are counted are the bytes that NumPy writes of what is sent, worked out here from sizes alone."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from fedsim import Experiment, data
from fedsim.clients import SGD
from fedsim.flower import records
from fedsim.models.mlp import MLP
from fedsim.splits import IID
from fedsim.updates.compression import Int8, TopK


def saved(shape: int | tuple[int, ...], dtype: str) -> int:
    """The length of a ``.npy`` file."""
    stream = BytesIO()
    np.save(stream, np.zeros(shape, dtype))
    return len(stream.getvalue())


@pytest.mark.parametrize(("features", "index"), [(127, "u1"), (128, "u2"), (32_767, "u2"), (32_768, "u4")])
def test_the_index_of_a_sparse_update_is_as_narrow_as_it_can_be(features: int, index: str) -> None:
    """A linear model of two classes has 2 (features + 1) parameters, so 256 fit one byte and 65,536 two."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, features)).astype(np.float32), np.arange(12) % 2
    own = data.Dataset("own", x[:8], y[:8], x[8:], y[8:], 2)
    settings = {"dataset": own, "split": IID(4), "hidden": (), "rounds": 2, "kernel": "numpy"}
    sparse = Experiment(**settings, client=SGD(lr=0.01), transforms=(TopK(0.5),)).run()  # type: ignore[arg-type]
    sent = saved(features + 1, "f4") + saved(features + 1, index)
    assert sparse.history["bytes_up"].tolist() == [0, 4 * sent, 4 * sent]
    both = Experiment(**settings, client=SGD(lr=0.01), transforms=(TopK(0.5), Int8())).run()  # type: ignore[arg-type]
    sent = saved(features + 1, "i1") + saved(features + 1, index) + len(saved_scale())
    assert both.history["bytes_up"].tolist() == [0, 4 * sent, 4 * sent]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "u2", ">f4"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (100_000, 1), (1,) * 32])
def test_an_array_has_as_many_bytes_as_its_file(shape: tuple[int, ...], dtype: str) -> None:
    """In any order in memory."""
    values = np.zeros(shape, dtype)
    for each in (values, values.T, np.asfortranarray(values)):
        stream = BytesIO()
        np.save(stream, each)
        assert records.array_bytes(each) == len(stream.getvalue())


@pytest.mark.parametrize(("dtype", "size"), [("float32", "f4"), ("float64", "f8")])
@pytest.mark.parametrize("layers", [[1], [2], [1, 3], [1, 2, 3], []])
def test_layers_are_sent_as_a_matrix_and_a_bias_each(layers: list[int], dtype: str, size: str) -> None:
    net = MLP((64, 100, 30, 10), dtype=dtype)
    shapes = {1: (64, 100), 2: (100, 30), 3: (30, 10)}
    expected = sum(saved(shapes[k], size) + saved(shapes[k][1], size) for k in layers)
    assert records.payload_bytes(net, [(f"W{k}", f"b{k}") for k in layers]) == expected


def saved_scale() -> bytes:
    """What one scale takes as an array of no dimensions."""
    stream = BytesIO()
    np.save(stream, np.float32(1))
    return stream.getvalue()
