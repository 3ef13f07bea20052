"""Local training compiled by Numba: the fast kernel, equal to `kernels.numpy` to rounding.

One call trains a block of clients, one after another, without the interpreter: a client's model stays in the core's
cache from its first step to its last. Everything large is one operation, a product of matrices added into a third,
and that operation is cut into register tiles: `_tile` emits their instructions as LLVM vectors, so that nothing is
left to a vectoriser's mood and compilation takes about five seconds.

Three things make a step cheap. The flat layout stores each bias after its matrix, so ``[W; b]`` is one matrix with an
extra row and layer inputs carry a column of ones: there is no code for biases. The weights' gradient is never stored:
``W += X.T @ (-lr * delta)`` is the same tiled product, added in place. Layer 1 computes no gradient for its inputs.

Rows of the working copy are padded with zeros to whole vectors; the padding stays zero.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, event, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from tqdm import tqdm

from fedsim import streams
from fedsim.kernels.numpy import Array, Fit
from fedsim.mlp import ACTIVATIONS, LOSSES, MLP

_FEATURES = binding.get_host_cpu_features()
#: Bytes of a vector register.
VECTOR = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
#: Vectors across the widest tile, which is five rows high: 20 of AVX-512's 32 registers hold sums, or 10 of 16.
WIDE = 4 if VECTOR == 64 else 2
#: Examples whose activations are kept for one update in place; larger batches add up their gradient.
CHUNK = 640
#: Examples of a chunk that go forward and back together, so that their activations stay in cache.
PART = 120
#: How many examples ahead of its use one is asked for.
AHEAD = 10

_ACTIVATIONS = {name: code for code, name in enumerate(ACTIVATIONS)}
_RELU, _TANH = _ACTIVATIONS["relu"], _ACTIVATIONS["tanh"]
_LOSSES = {name: code for code, name in enumerate(LOSSES)}
_MSE, _CROSS = _LOSSES["mse"], _LOSSES["cross_entropy"]

_I64 = ir.IntType(64)
_LANE = ir.IntType(32)


_helper: Callable[[Any], Any] = numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
_intrinsic: Callable[[Any], Any] = intrinsic


class _Emitter:
    """Vector instructions over flat arrays."""

    def __init__(self, context: Any, builder: Any, array_types: Any, arrays: Any) -> None:
        self.builder = builder
        self.bases = [context.make_array(t)(context, builder, a).data for t, a in zip(array_types, arrays, strict=True)]
        self.scalar = context.get_value_type(array_types[0].dtype)
        self.itemsize = 4 if isinstance(self.scalar, ir.FloatType) else 8
        self.lanes = VECTOR // self.itemsize
        self.vector = ir.VectorType(self.scalar, self.lanes)
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.itemsize}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def place(self, *terms: Any) -> Any:
        """Return a sum of products: an index into a flat array."""
        total = _I64(0)
        for term in terms:
            total = self.builder.add(total, self.builder.mul(*term) if isinstance(term, tuple) else term)
        return total

    def pointer(self, base: int, place: Any, vector: Any = None) -> Any:
        return self.builder.bitcast(self.builder.gep(self.bases[base], [place]), (vector or self.vector).as_pointer())

    def load(self, base: int, place: Any) -> Any:
        return self.builder.load(self.pointer(base, place), align=self.itemsize)

    def store(self, value: Any, base: int, place: Any) -> None:
        self.builder.store(value, self.pointer(base, place, value.type), align=self.itemsize)

    def broadcast(self, base: int, place: Any) -> Any:
        scalar = self.builder.load(self.builder.gep(self.bases[base], [place]))
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, _LANE(0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def loop(self, count: Any, sums: list[Any], body: Any) -> list[Any]:
        """Run ``sums = body(index, sums)`` for index 0..count-1 (count at least 1), the sums in registers."""
        before = self.builder.block
        block = self.builder.append_basic_block("tile")
        after = self.builder.append_basic_block("done")
        self.builder.branch(block)
        self.builder.position_at_end(block)
        index = self.builder.phi(_I64)
        index.add_incoming(_I64(0), before)
        held = []
        for value in sums:
            phi = self.builder.phi(value.type)
            phi.add_incoming(value, before)
            held.append(phi)
        new: list[Any] = body(index, held)
        following = self.builder.add(index, _I64(1))
        index.add_incoming(following, block)
        for phi, value in zip(held, new, strict=True):
            phi.add_incoming(value, block)
        self.builder.cbranch(self.builder.icmp_signed("<", following, count), block, after)
        self.builder.position_at_end(after)
        return new


def _tile(rows: int, vectors: int, transposed: bool) -> Any:
    """Make an intrinsic: one register tile of ``C = A @ B``, or ``C += A.T @ B`` if `transposed`, over flat arrays.

    ``sum_p A[a + r * a_row + p] * B[b + p * b_row + v]``, in rising p, for `rows` rows r of C and `vectors` vectors v
    of its columns; transposed, A's element is ``A[a + p * a_row + r]``. The step along A's rows is a constant either
    way, so that few registers hold addresses. C is added to when the sum is whole: a weight would swallow small terms.
    """

    @_intrinsic
    def tile(ctx, c_, c, c_row, a_, a, a_row, b_, b, b_row, depth):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            c, c_row, a, a_row, b, b_row, depth = (args[k] for k in (1, 2, 4, 5, 7, 8, 9))
            e = _Emitter(context, builder, [signature.args[k] for k in (0, 3, 6)], [args[k] for k in (0, 3, 6)])
            cells = [(r, v) for r in range(rows) for v in range(vectors)]
            places = [e.place(c, (c_row, _I64(r)), _I64(v * e.lanes)) for r, v in cells]
            sums = [ir.Constant(e.vector, None)] * len(cells)

            def step(p: Any, sums: list[Any]) -> list[Any]:
                right = [e.load(2, e.place(b, (b_row, p), _I64(v * e.lanes))) for v in range(vectors)]
                steps = [(p, _I64(r)) if transposed else (_I64(r), p) for r in range(rows)]
                left = [e.broadcast(1, e.place(a, (a_row, down), along)) for down, along in steps]
                return [builder.call(e.fma, [left[r], right[v], s]) for (r, v), s in zip(cells, sums, strict=True)]

            for place, value in zip(places, e.loop(depth, sums, step), strict=True):
                e.store(builder.fadd(e.load(0, place), value) if transposed else value, 0, place)
            return context.get_dummy_value()

        return types.void(c_, c, c_row, a_, a, a_row, b_, b, b_row, depth), emit

    return tile


def _dots(rows: int, columns: int) -> Any:
    """Make an intrinsic: one register tile of ``C = A @ B.T`` over flat arrays.

    ``C[c + r * c_row + k] = sum_v A[a + r * a_row, v] . B[b + k * b_row, v]`` over `depth` vectors, for `rows` rows of
    A and `columns` (a power of two) rows of B. The sums of a vector's lanes are taken for all columns at once.
    """

    @_intrinsic
    def dots(ctx, c_, c, c_row, a_, a, a_row, b_, b, b_row, depth):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            c, c_row, a, a_row, b, b_row, depth = (args[k] for k in (1, 2, 4, 5, 7, 8, 9))
            e = _Emitter(context, builder, [signature.args[k] for k in (0, 3, 6)], [args[k] for k in (0, 3, 6)])
            cells = [(r, k) for r in range(rows) for k in range(columns)]

            def step(v: Any, sums: list[Any]) -> list[Any]:
                offset = builder.mul(v, _I64(e.lanes))
                left = [e.load(1, e.place(a, (a_row, _I64(r)), offset)) for r in range(rows)]
                right = [e.load(2, e.place(b, (b_row, _I64(k)), offset)) for k in range(columns)]
                return [builder.call(e.fma, [left[r], right[k], s]) for (r, k), s in zip(cells, sums, strict=True)]

            sums = e.loop(depth, [ir.Constant(e.vector, None)] * len(cells), step)
            for r in range(rows):
                e.store(add_lanes(e, sums[r * columns : (r + 1) * columns]), 0, e.place(c, (c_row, _I64(r))))
            return context.get_dummy_value()

        def add_lanes(e: _Emitter, parts: list[Any]) -> Any:
            """Return the sum of each vector's lanes, side by side: halves are added until a lane each is left."""
            groups = 1  # of lanes in each part, every one belonging to another of the first vectors
            while len(parts) > 1 or parts[0].type.count > groups:
                width = parts[0].type.count // groups
                low = [g * width + k for g in range(groups) for k in range(width // 2)]
                high = [place + width // 2 for place in low]
                if len(parts) > 1:
                    second = [parts[0].type.count + place for place in low], [parts[0].type.count + p for p in high]
                    parts = [
                        e.builder.fadd(e.shuffle(x, y, low + second[0]), e.shuffle(x, y, high + second[1]))
                        for x, y in zip(parts[::2], parts[1::2], strict=True)
                    ]
                    groups *= 2
                else:
                    parts = [e.builder.fadd(e.shuffle(x, x, low), e.shuffle(x, x, high)) for x in parts]
            return parts[0]

        return types.void(c_, c, c_row, a_, a, a_row, b_, b, b_row, depth), emit

    return dots


def _product(transposed: bool) -> Any:
    """Make a function: ``C = A @ B``, or ``C += A.T @ B``, within the flat array `s`, tile by tile.

    A group of B's vector columns is read by all rows before the next.
    """
    tile_5_wide, tile_5_1 = _tile(5, WIDE, transposed), _tile(5, 1, transposed)
    tile_2_wide, tile_2_1 = _tile(2, WIDE, transposed), _tile(2, 1, transposed)
    tile_1_wide, tile_1_1 = _tile(1, WIDE, transposed), _tile(1, 1, transposed)

    @_helper
    def product(s, c, c_row, rows, a, a_row, b, b_row, vectors, lanes, depth):  # type: ignore[no-untyped-def]
        v = 0
        while v < vectors:
            wide = v + WIDE <= vectors
            right = b + v * lanes
            r = 0
            while r < rows:
                to = c + r * c_row + v * lanes
                left = a + r * (1 if transposed else a_row)
                if r + 5 <= rows:
                    if wide:
                        tile_5_wide(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_5_1(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 5
                elif r + 2 <= rows:
                    if wide:
                        tile_2_wide(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_2_1(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 2
                else:
                    if wide:
                        tile_1_wide(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    else:
                        tile_1_1(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 1
            v += WIDE if wide else 1

    return product


_multiply, _add_transposed = _product(False), _product(True)

_dots_5_wide, _dots_5_1, _dots_1_wide, _dots_1_1 = _dots(5, WIDE), _dots(5, 1), _dots(1, WIDE), _dots(1, 1)


@_helper
def _multiply_transposed(s, c, c_row, rows, a, a_row, b, b_row, columns, vectors):  # type: ignore[no-untyped-def]
    """``C = A @ B.T`` within the flat array `s`, tile by tile."""
    r = 0
    while r < rows:
        five = r + 5 <= rows
        left = a + r * a_row
        k = 0
        while k < columns:
            to = c + r * c_row + k
            right = b + k * b_row
            if k + WIDE <= columns:
                if five:
                    _dots_5_wide(s, to, c_row, s, left, a_row, s, right, b_row, vectors)
                else:
                    _dots_1_wide(s, to, c_row, s, left, a_row, s, right, b_row, vectors)
                k += WIDE
            else:
                if five:
                    _dots_5_1(s, to, c_row, s, left, a_row, s, right, b_row, vectors)
                else:
                    _dots_1_1(s, to, c_row, s, left, a_row, s, right, b_row, vectors)
                k += 1
        r += 5 if five else 1


# An index may count from the end; checking that keeps LLVM from vectorising s[h + j], so rows are passed as slices.
@_helper
def _loss_and_delta(kind, z, d, label, scale):  # type: ignore[no-untyped-def]
    """Write one example's derivative by its scores, times `scale`; return its loss (mlp.LOSSES in loops)."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    outputs = len(z)
    loss = zero
    if kind == _CROSS:
        top = z[0]
        for j in range(1, outputs):
            top = z[j] if z[j] > top else top
        for j in range(outputs):
            d[j] = math.exp(z[j] - top)
            loss += d[j]
        share = scale / loss
        for j in range(outputs):
            d[j] *= share
        d[int(label)] -= scale
        return math.log(loss) - (z[int(label)] - top)
    share = scale / z.dtype.type(outputs)
    for j in range(outputs):
        target = (one if j == label else zero) if outputs > 1 else z.dtype.type(label)
        if kind == _MSE:
            error = z[j] - target
            loss += error * error
            d[j] = (error + error) * share
        else:
            positive = z[j] if z[j] > zero else -z[j]
            small = math.exp(-positive)
            loss += (z[j] - z[j] * target if z[j] > zero else -z[j] * target) + math.log1p(small)
            d[j] = ((small if z[j] < zero else one) / (one + small) - target) * share
    return loss / z.dtype.type(outputs)


#: tanh x = x P(x^2) / Q(x^2) for |x| <= 9 in single precision, highest power first: the minimax coefficients of Eigen
#: (generic_fast_tanh_float) and XLA. Unlike a call of tanh, a quotient of polynomials is vectorised.
_TANH_P = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
           1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


@_helper
def _tanh(h):  # type: ignore[no-untyped-def]
    """Write tanh over its argument, to a few units in the last place."""
    kind = h.dtype.type
    if h.itemsize == 8:
        for j in range(len(h)):
            h[j] = math.tanh(h[j])
    else:
        top = kind(9)
        for j in range(len(h)):
            x = -top if h[j] < -top else (top if h[j] > top else h[j])  # NaN stays NaN
            square = x * x
            p, q = kind(_TANH_P[0]), kind(_TANH_Q[0])
            for c in numba.literal_unroll(_TANH_P[1:]):
                p = p * square + kind(c)
            for c in numba.literal_unroll(_TANH_Q[1:]):
                q = q * square + kind(c)
            h[j] = x * p / q


@_helper
def _activate(kind, h):  # type: ignore[no-untyped-def]
    """Write f(z) over z of one example."""
    half, zero = h.dtype.type(0.5), h.dtype.type(0)
    if kind == _RELU:
        for j in range(len(h)):
            h[j] = zero if h[j] < zero else h[j]  # NaN stays NaN
    elif kind == _TANH:
        _tanh(h)
    else:
        for j in range(len(h)):
            h[j] *= half
        _tanh(h)
        for j in range(len(h)):
            h[j] = half + half * h[j]


@_helper
def _chain(kind, d, h):  # type: ignore[no-untyped-def]
    """Multiply one example's delta by f'(z), given h = f(z)."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    if kind == _RELU:
        for j in range(len(h)):
            d[j] *= one if h[j] > zero else zero
    elif kind == _TANH:
        for j in range(len(h)):
            d[j] *= one - h[j] * h[j]
    else:
        for j in range(len(h)):
            d[j] *= h[j] * (one - h[j])


@_helper
def _copy(target, source):  # type: ignore[no-untyped-def]
    for j in range(len(source)):
        target[j] = source[j]


@_intrinsic
def _prefetch(context, array_, place):  # type: ignore[no-untyped-def]
    """Ask for the cache line of an element, into the L2 cache; any index is allowed."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _LANE, _LANE, _LANE])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, _LANE(0), _LANE(2), _LANE(1)])
        return context.get_dummy_value()

    return types.void(array_, place), emit


@_intrinsic
def _take(context, counter_):  # type: ignore[no-untyped-def]
    """Return a counter's number and add one to it, undivided: no two threads are given the same number."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, _I64(1), "monotonic")

    return types.int64(counter_), emit


@_helper
def _gather(target, source, following):  # type: ignore[no-untyped-def]
    """Copy one example, and ask for one that will be copied soon: examples lie anywhere in memory."""
    for j in range(0, len(following), 64 // following.itemsize):
        _prefetch(following, j)
    _copy(target, source)


@_helper
def _shuffle(order, shard, key, words, spare, counts):  # type: ignore[no-untyped-def]
    """Write a shard in the order that `streams.permutations` gives for a key, by a radix sort of its words."""
    for j in range(len(shard)):
        z = key + np.uint64(j + 1) * streams.GOLDEN
        z = (z ^ (z >> np.uint64(30))) * streams.MIX_1
        z = (z ^ (z >> np.uint64(27))) * streams.MIX_2
        words[j] = ((z ^ (z >> np.uint64(31))) & ~streams.LOW_32) | np.uint64(j)
    for shift in range(32, 64, 8):
        counts[:] = 0
        for j in range(len(shard)):
            counts[((words[j] >> np.uint64(shift)) & np.uint64(255)) + np.uint64(1)] += 1
        for digit in range(256):
            counts[digit + 1] += counts[digit]
        for j in range(len(shard)):
            digit_ = (words[j] >> np.uint64(shift)) & np.uint64(255)
            spare[counts[digit_]] = words[j]
            counts[digit_] += 1
        words, spare = spare, words
    for j in range(len(shard)):
        order[j] = shard[words[j] & streams.LOW_32]


@_helper
def _affine(w, shrink, lr, s, at, added):  # type: ignore[no-untyped-def]
    """Let weights shrink, and subtract lr times what stands in `s` from `at` on."""
    keep, c = w.dtype.type(1) - shrink, s[at : at + len(w)]
    if shrink != 0 and added:
        for i in range(len(w)):
            w[i] = keep * w[i] - lr * c[i]
    elif added:
        for i in range(len(w)):
            w[i] -= lr * c[i]
    else:
        for i in range(len(w)):
            w[i] *= keep


# Columns of the layer table: inputs, outputs, place in the flat weights; then places and row lengths in the scratch.
_K, _N, _FLAT, _W, _ROW, _H, _H_ROW, _D = range(8)


@_helper
def _pass(s, table, lanes, x, y, order, begin, first, last, ahead, activation, loss, scale, lowest):  # type: ignore[no-untyped-def]
    """Take examples forward and back: rows `first` to `last` of a chunk that starts at `begin` of `order`.

    Leaves every layer's inputs and, from layer `lowest` up, deltas (times `scale`) in the scratch, for the update;
    returns the summed loss.
    """
    layers, rows, total = len(table) - 1, last - first, 0.0
    inputs, x_row = table[0, _K], table[0, _H_ROW]
    for r in range(first, last):
        h = table[0, _H] + r * x_row
        _gather(s[h : h + inputs], x[order[begin + r]], x[order[min(begin + r + ahead, len(order) - 1)]])
        s[h + inputs] = 1  # the bias is a weight of an input that is always one
    for layer in range(layers):
        h_row, z_row, w_row, outputs = (
            table[layer, _H_ROW],
            table[layer + 1, _H_ROW],
            table[layer, _ROW],
            table[layer, _N],
        )
        h, z = table[layer, _H] + first * h_row, table[layer + 1, _H] + first * z_row
        depth = table[layer, _K] + 1
        _multiply(s, z, z_row, rows, h, h_row, table[layer, _W], w_row, w_row // lanes, lanes, depth)
        if layer + 1 < layers:
            for r in range(rows):
                place = z + r * z_row
                _activate(activation, s[place : place + outputs])
                s[place + outputs] = 1
        else:
            d = table[layer, _D] + first * w_row
            for r in range(rows):
                scores, delta = s[z + r * z_row : z + r * z_row + outputs], s[d + r * w_row : d + r * w_row + outputs]
                total += _loss_and_delta(loss, scores, delta, y[order[begin + first + r]], scale)
    for layer in range(layers - 1, lowest, -1):
        h_row, d_row, w_row, width = table[layer, _H_ROW], table[layer - 1, _ROW], table[layer, _ROW], table[layer, _K]
        h, d, above = (
            table[layer, _H] + first * h_row,
            table[layer - 1, _D] + first * d_row,
            table[layer, _D] + first * w_row,
        )
        _multiply_transposed(s, d, d_row, rows, above, w_row, table[layer, _W], w_row, width, w_row // lanes)
        for r in range(rows):
            _chain(activation, s[d + r * d_row : d + r * d_row + width], s[h + r * h_row : h + r * h_row + width])
    return total


def _train(  # type: ignore[no-untyped-def]
    out, losses, start, x, y, indices, offsets, sizes, steps, keys, batch, table, s, lanes, padded,
    activation, loss, rates, momentum, decay, pull, centers, corrections, trained, counter,
):  # fmt: skip
    """Train clients, one after another: `fit` in loops, with every array of a client inside the scratch `s`.

    The next client is the counter's, which all threads that train the block take from.

    The scratch's last three parts, `padded` long each and laid out alike, are W; V, a step's direction where it cannot
    be added to W in place; and C, what a step adds that does not change within a fit: ``correction - pull * center``.
    """
    layers = len(table) - 1
    clients = len(sizes)
    largest = sizes.max()
    order, counts = np.empty(largest, np.int64), np.empty(257, np.int64)
    words, spare = np.empty(largest, np.uint64), np.empty(largest, np.uint64)
    weights = s[table[0, _W] : table[0, _W] + padded]
    velocity = s[table[0, _W] + padded : table[0, _W] + 2 * padded]
    constant = s[table[0, _W] + 2 * padded : table[0, _W] + 3 * padded]
    held = pull != 0 or len(corrections) > 0
    shrink = decay + pull
    lowest = 0
    while not trained[lowest]:
        lowest += 1
    while True:
        client = _take(counter)
        if client >= clients:
            break
        n, lr = sizes[client], rates[client]
        size = batch if 0 < batch < n else n
        direct = momentum == 0 and size <= CHUNK
        first_row, center = start[min(client, len(start) - 1)], centers[min(client, len(centers) - 1)]
        for layer in range(layers):
            outputs, row = table[layer, _N], table[layer, _ROW]
            for k in range(table[layer, _K] + 1):
                w, flat = table[layer, _W] + k * row, table[layer, _FLAT] + k * outputs
                _copy(s[w : w + outputs], first_row[flat : flat + outputs])
                s[w + outputs : w + row] = 0
                if held:
                    c = w + 2 * padded
                    s[c : c + row] = 0
                    if len(corrections):
                        correction = corrections[min(client, len(corrections) - 1)]
                        _copy(s[c : c + outputs], correction[flat : flat + outputs])
                    if pull != 0:
                        for j in range(outputs):
                            s[c + j] -= pull * center[flat + j]
        if not direct:
            velocity[:] = 0
        total, left, epoch = 0.0, steps[client], 0
        while left > 0:
            shard = indices[offsets[client] : offsets[client] + n]
            _shuffle(order[:n], shard, keys[epoch, client], words, spare, counts)
            begin = 0
            while begin < n and left > 0:
                taken = size if begin + size < n else n - begin
                scale = s.dtype.type((-lr if direct else 1.0) / taken)
                if not direct:
                    for i in range(padded):
                        velocity[i] = momentum * velocity[i] + shrink * weights[i]
                    if held:
                        for i in range(padded):
                            velocity[i] += constant[i]
                stop = begin + taken
                while begin < stop:
                    rows = CHUNK if begin + CHUNK < stop else stop - begin
                    for first in range(0, rows, PART):
                        total += _pass(
                            s, table, lanes, x, y, order[:n], begin, first, min(first + PART, rows),
                            min(rows, AHEAD), activation, loss, scale, lowest,
                        )  # fmt: skip
                    for layer in range(lowest, layers):
                        if trained[layer]:
                            h_row, w_row = table[layer, _H_ROW], table[layer, _ROW]
                            place, inputs = table[layer, _W], table[layer, _K] + 1
                            if direct and (held or shrink != 0):
                                length = inputs * w_row
                                _affine(s[place : place + length], lr * shrink, lr, s, place + 2 * padded, held)
                            target = place if direct else place + padded
                            for first in range(0, rows, PART):
                                _add_transposed(
                                    s, target, w_row, inputs, table[layer, _H] + first * h_row, h_row,
                                    table[layer, _D] + first * w_row, w_row, w_row // lanes, lanes,
                                    min(PART, rows - first),
                                )  # fmt: skip
                    begin += rows
                if not direct:
                    for layer in range(lowest, layers):
                        if trained[layer]:
                            place, length = table[layer, _W], (table[layer, _K] + 1) * table[layer, _ROW]
                            _affine(s[place : place + length], s.dtype.type(0), lr, s, place + padded, True)
                left -= 1
            epoch += 1
        for layer in range(layers):
            outputs = table[layer, _N]
            for k in range(table[layer, _K] + 1):
                w, flat = table[layer, _W] + k * table[layer, _ROW], table[layer, _FLAT] + k * outputs
                _copy(out[client, flat : flat + outputs], s[w : w + outputs])
        final, finite = out[client], 0
        for j in range(len(final)):
            finite += final[j] - final[j] == 0
        losses[client] = total if finite == len(final) else np.nan


@functools.lru_cache(maxsize=16)
def _layout(net: MLP) -> tuple[NDArray[np.int64], int, int]:
    """Return the layer table, the length of the padded weights and that of the scratch array."""
    lanes = VECTOR // np.dtype(net.dtype).itemsize

    def padded(length: int) -> int:
        return -(-length // lanes) * lanes

    layers = len(net.sizes) - 1
    table = np.zeros((layers + 1, 8), dtype=np.int64)
    place = 0
    for layer, width in enumerate(net.sizes):
        table[layer, [_H, _H_ROW]] = place, padded(width + 1)
        place += CHUNK * padded(width + 1)
    for layer in range(layers):
        outputs = net.sizes[layer + 1]
        table[layer, [_K, _N, _ROW, _D]] = net.sizes[layer], outputs, padded(outputs), place
        table[layer, _FLAT] = net.layout[f"W{layer + 1}"][0].start
        place += CHUNK * padded(outputs)
    weights = place
    for layer in range(layers):
        table[layer, _W] = place
        place += (net.sizes[layer] + 1) * int(table[layer, _ROW])
    parameters = place - weights
    return table, parameters, place + 2 * parameters


_local = threading.local()


def _scratch(net: MLP, length: int) -> Array:
    """Return this thread's scratch array for a network, starting on a cache line; zero at first."""
    if getattr(_local, "net", None) != net:
        item = np.dtype(net.dtype).itemsize
        memory = np.zeros(length + VECTOR // item, dtype=net.dtype)
        start = -memory.ctypes.data % VECTOR // item
        _local.net, _local.memory = net, memory[start : start + length]
    scratch: Array = _local.memory
    return scratch


def _jit(function: Any, **more: Any) -> Any:
    """Compile on demand, to machine code that is kept on disk where Numba finds a place to write."""
    options = {"nogil": True, "error_model": "numpy"} | more
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no such place
        return numba.njit(**options)(function)


def _add_weighted(total, rows, weights):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        row, weight = rows[k], weights[k]
        for j in range(len(total)):
            total[j] += np.float64(row[j]) * weight


def _squares(out, rows, center):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        row, total = rows[k], 0.0
        for j in range(len(center)):
            away = np.float64(row[j]) - np.float64(center[j])
            total += away * away
        out[k] = total


_train_compiled, add_weighted = _jit(_train), _jit(_add_weighted)
_squares_compiled = _jit(_squares, fastmath={"reassoc"})  # a sum in several lanes: the same in every call


def movement(rows: Array, center: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a center, as `kernels.numpy.movement` does."""
    out = np.empty(len(rows))
    _squares_compiled(out, rows, _readonly(center))
    return np.sqrt(out)


class _Announce(event.Listener):  # type: ignore[misc]
    """Says, once, that compiling has begun."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            self.said = True
            tqdm.write("fedsim: compiling the fast kernel for this machine, once; a few seconds", file=sys.stderr)

    def on_end(self, event: Any) -> None:
        pass


def prepare(dtype: str, targets: bool = False) -> None:
    """Compile for a dtype, or load what an earlier run compiled.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    targets : bool
        For real-valued targets in place of labels.
    """
    real, whole = numba.from_dtype(np.dtype(dtype)), types.int64

    def array(item: Any, ndim: int, readonly: bool = False) -> Any:
        return types.Array(item, ndim, "C", readonly=readonly)

    signature = types.void(
        array(real, 2), array(types.float64, 1), array(real, 2, True), array(real, 2, True),
        array(real if targets else whole, 1, True), array(whole, 1), array(whole, 1), array(whole, 1), array(whole, 1),
        array(types.uint64, 2), whole, array(whole, 2), array(real, 1), whole, whole,
        whole, whole, array(real, 1), real, real, real, array(real, 2, True), array(real, 2, True),
        array(types.boolean, 1), array(types.int64, 1),
    )  # fmt: skip
    sums = types.void(array(types.float64, 1), array(real, 2), array(types.float64, 1))
    squares = types.void(array(types.float64, 1), array(real, 2), array(real, 1, True))
    wanted = ((_train_compiled, signature), (add_weighted, sums), (_squares_compiled, squares))
    with event.install_listener("numba:compile", _Announce()):
        for function, types_ in wanted:
            try:
                function.compile(types_)
            except OSError:  # the machine code could not be kept on disk, but is here
                if types_.args not in function.overloads:
                    raise


def _readonly(array: Array, net: MLP | None = None) -> Array:
    view = np.ascontiguousarray(array, net.dtype if net else None).view()
    view.flags.writeable = False
    return view


def fit(job: Fit) -> tuple[Array, NDArray[np.float64]]:
    """Train a block of clients, as `kernels.numpy.fit` does, but for hooks, which are NumPy.

    The same result whoever shares the block, to the bit.
    """
    net = job.net
    table, padded, length = _layout(net)
    real = np.dtype(net.dtype).type
    sizes = job.partition.sizes[job.clients]
    out = np.empty((len(sizes), net.num_parameters), net.dtype)
    losses = np.empty(len(sizes))
    correction = np.empty((0, 0), net.dtype) if job.correction is None else job.correction
    counter = np.zeros(1, np.int64)
    arguments = (
        _readonly(job.start, net), _readonly(job.x, net), _readonly(job.y),
        job.partition.indices, job.partition.offsets[job.clients], sizes, np.ascontiguousarray(job.steps),
        job.shuffles, job.batch_size, table,
    )  # fmt: skip
    more = (
        VECTOR // out.itemsize, padded, _ACTIVATIONS[net.activation], _LOSSES[net.loss],
        np.asarray(job.lr, net.dtype), real(job.momentum), real(job.weight_decay), real(job.mu),
        _readonly(job.center, net), _readonly(correction, net), np.array(job.trained), counter,
    )  # fmt: skip
    try:
        job.spread(lambda: _train_compiled(out, losses, *arguments, _scratch(net, length), *more))
    finally:
        counter[0] = len(sizes)  # who is interrupted leaves no thread that goes on
    return out, losses
