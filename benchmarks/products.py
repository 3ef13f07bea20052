"""What a step of the 2NN is made of, on one thread: each product of the kernel against sgemm on the same thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from benchmarks.jobs import TWO_NN
from benchmarks.measure import median, ratio, sgemm, take_turns
from fedsim.kernels import compiled


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _forward(s: Any, layer: Any, z: int, z_row: int, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        h, h_row, w, w_row = layer[compiled._H], layer[compiled._H_ROW], layer[compiled._W], layer[compiled._ROW]
        compiled._multiply(s, z, z_row, rows, h, h_row, w, w_row, layer[compiled._N], lanes, layer[compiled._K] + 1)


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _back(s: Any, layer: Any, d: int, d_row: int, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        above, above_row, w, w_row = (
            layer[compiled._D],
            layer[compiled._D_ROW],
            layer[compiled._W],
            layer[compiled._ROW],
        )
        inputs = layer[compiled._K]
        compiled._multiply_transposed(s, d, d_row, rows, above, above_row, w, w_row, inputs, w_row // lanes)


@numba.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _update(s: Any, layer: Any, rows: int, lanes: int, times: int) -> None:
    for _ in range(times):
        h, h_row, d, d_row = layer[compiled._H], layer[compiled._H_ROW], layer[compiled._D], layer[compiled._D_ROW]
        w, w_row, inputs = layer[compiled._W], layer[compiled._ROW], layer[compiled._K] + 1
        compiled._add_transposed(s, w, w_row, inputs, h, h_row, d, d_row, layer[compiled._N], lanes, rows)


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Return, by product, its seconds and its share of sgemm's operations per second."""
    net, rows, times = TWO_NN.net, 10, 1000
    table, _, length = compiled._layout(net)
    scratch = compiled._scratch(net, length)
    lanes = compiled.VECTOR // scratch.itemsize
    scratch[:] = 1e-3 * np.random.default_rng(0).normal(size=length)
    below, last = table[:-1], table[1:]
    calls: dict[str, Callable[[], object]] = {}
    operations = {}
    for layer in (0, 1):
        z, z_row = last[layer][[compiled._H, compiled._H_ROW]]
        here = below[layer]
        named: dict[str, Callable[[], object]] = {
            "forward": partial(_forward, scratch, here, z, z_row, rows, lanes, times),
            "update": partial(_update, scratch, here, rows, lanes, times),
        }
        if layer:
            d, d_row = below[layer - 1][[compiled._D, compiled._D_ROW]]
            named["back"] = partial(_back, scratch, here, d, d_row, rows, lanes, times)
        for kind, call in named.items():
            name = f"{kind}, {net.sizes[layer]}-{net.sizes[layer + 1]}"
            calls[name], operations[name] = call, 2.0 * rows * net.sizes[layer] * net.sizes[layer + 1]
    product, flops = sgemm(1500, threads=1)
    for call in calls.values():
        call()  # compiles
    taken = take_turns({**calls, "sgemm": product}, samples)
    speed = {name: [operations[name] * times / s for s in taken[name]] for name in calls}
    peak = [flops / s for s in taken["sgemm"]]
    return {name: {"seconds": median(taken[name]) / times, "share": ratio(speed[name], peak)[0]} for name in calls}
