"""The matrix products of a step of the 2NN on one thread, each compared with sgemm on the same thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from benchmarks.jobs import TWO_NN
from benchmarks.measure import median, ratio, sgemm, take_turns
from fedsim.kernels.compiled.backprop import backward_product, forward_product
from fedsim.kernels.compiled.emitter import VECTOR_BYTES
from fedsim.kernels.compiled.layout import W, make_layout, thread_scratch
from fedsim.kernels.compiled.update import add_gradient

_jit: Callable[[Any], Any] = numba.njit(nogil=True, error_model="numpy")


@_jit
def _forward(s: Any, table: Any, layer: int, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        forward_product(s, table, layer, 0, rows, lanes)


@_jit
def _back(s: Any, table: Any, layer: int, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        backward_product(s, table, layer, 0, rows, lanes)


@_jit
def _update(s: Any, table: Any, layer: int, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        add_gradient(s, table[layer], table[layer, W], lanes, 0, rows, s.reshape(1, -1), table[0, :0])


#: Name, function and layer of each product; the first layer has no gradient of its inputs.
PRODUCTS = (
    ("forward", _forward, 0),
    ("update", _update, 0),
    ("forward", _forward, 1),
    ("update", _update, 1),
    ("back", _back, 1),
)


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each product and its share of sgemm's operations per second."""
    model, rows, times = TWO_NN.model, 10, 1000
    table, _, length = make_layout(model)
    scratch = thread_scratch(model)
    lanes = VECTOR_BYTES // scratch.itemsize
    scratch[:] = 1e-3 * np.random.default_rng(0).normal(size=length)
    calls: dict[str, Callable[[], object]] = {}
    operations = {}
    for kind, function, layer in PRODUCTS:
        name = f"{kind}, {model.sizes[layer]}-{model.sizes[layer + 1]}"
        calls[name] = partial(function, scratch, table, layer, rows, lanes, times)
        calls[name]()  # compiles
        operations[name] = 2.0 * rows * model.sizes[layer] * model.sizes[layer + 1]
    product, flops = sgemm(1500, threads=1)
    taken = take_turns({**calls, "sgemm": product}, samples)
    speed = {name: [operations[name] * times / s for s in taken[name]] for name in calls}
    peak = [flops / s for s in taken["sgemm"]]
    return {name: {"seconds": median(taken[name]) / times, "share": ratio(speed[name], peak)[0]} for name in calls}
