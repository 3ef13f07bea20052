"""Local training compiled by Numba: the fast kernel, equal to `kernels.numpy` to rounding.

One call on each thread trains clients of a block, one after another, without the interpreter: a client's model stays in
the core's cache from its first step to its last. Everything large is one operation, a product of matrices added into a
third, and that operation is cut into register tiles: `_tile` emits their instructions as LLVM vectors, so that nothing
is left to a vectoriser's mood and compilation takes about eight seconds.

Three things make a step cheap. The flat layout stores each bias after its matrix, so ``[W; b]`` is one matrix with an
extra row and layer inputs carry a column of ones: there is no code for biases. The weights' gradient is never stored:
``W += X.T @ (-lr * delta)`` is the same tiled product, added in place. Layer 1 computes no gradient for its inputs.

Rows of the working copy are padded with zeros to whole vectors. The padding stays zero as long as the numbers beside it
are finite; a diverged client may leave NaN there, so it is cleared when a client starts. A layer with few outputs for
its inputs is kept as ``[W; b].T``, whose rows waste less.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from filelock import FileLock
from llvmlite import binding, ir
from numba.core import cgutils, event, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from tqdm import tqdm

from fedsim import streams
from fedsim.kernels.fit import Array, FitJob, FitResult
from fedsim.models.activations import ACTIVATIONS
from fedsim.models.losses import LOSSES
from fedsim.models.mlp import MLP

_FEATURES = binding.get_host_cpu_features()
#: Bytes of a vector register.
VECTOR = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
#: Vectors across the widest tile, which is five rows high: 20 of AVX-512's 32 registers hold sums, or 10 of 16.
WIDE = 4 if VECTOR == 64 else 2
#: Examples whose activations are kept for one update in place; larger batches add up their gradient.
CHUNK = 640
#: Examples of a chunk that go forward and back together, so that their activations stay in cache.
PART = 120
#: How many examples ahead of its use one is asked for; those of the next batch while weights are updated.
AHEAD = 10
#: Rows of weights that are updated between two askings.
SLAB = 80
#: Layers with so many times more inputs than outputs are kept as ``[W; b].T``: their rows then fill whole vectors.
TURN = 4

_ACTIVATIONS = {name: code for code, name in enumerate(ACTIVATIONS)}
_RELU, _TANH = _ACTIVATIONS["relu"], _ACTIVATIONS["tanh"]
_LOSSES = {name: code for code, name in enumerate(LOSSES)}
_MSE, _CROSS = _LOSSES["mse"], _LOSSES["cross_entropy"]

_I64 = ir.IntType(64)
_LANE = ir.IntType(32)


_OPTIONS = {"nogil": True, "error_model": "numpy"}
_HELPER = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_helper: Callable[[Any], Any] = numba.njit(**_HELPER)
_sum_helper: Callable[[Any], Any] = numba.njit(**_HELPER, fastmath={"reassoc"})  # sums in several lanes
_intrinsic: Callable[[Any], Any] = intrinsic


def _helper_named(name: str) -> Callable[[Any], Any]:
    """Return `_helper` for a function made by another function, under a name of its own.

    Numba tells functions of one name and signature apart by a number that it counts in each process. Machine code that
    two processes have kept on disk can hold different functions under one number, and a third process would call one in
    the place of the other.
    """

    def decorate(function: Any) -> Any:
        function.__qualname__ = name
        return _helper(function)

    return decorate


class _Emitter:
    """Vector instructions over flat arrays."""

    def __init__(self, context: Any, builder: Any, array_types: Any, arrays: Any, parts: int = 1) -> None:
        self.builder = builder
        self.bases = [context.make_array(t)(context, builder, a).data for t, a in zip(array_types, arrays, strict=True)]
        self.scalar = context.get_value_type(array_types[0].dtype)
        self.itemsize = 4 if isinstance(self.scalar, ir.FloatType) else 8
        self.lanes = VECTOR // self.itemsize // parts
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


def _tile(rows: int, vectors: int, transposed: bool, parts: int = 1) -> Any:
    """Make an intrinsic: one register tile of ``C = A @ B``, or ``C += A.T @ B`` if `transposed`, over flat arrays.

    ``sum_p A[a + r * a_row + p] * B[b + p * b_row + v]``, in rising p, for `rows` rows r of C and `vectors` vectors v
    of its columns; transposed, A's element is ``A[a + p * a_row + r]``. The step along A's rows is a constant either
    way, so that few registers hold addresses. C is added to when the sum is whole: a weight would swallow small terms.
    Vectors are one of so many `parts` of a register.
    """

    @_intrinsic
    def tile(ctx, c_, c, c_row, a_, a, a_row, b_, b, b_row, depth):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            c, c_row, a, a_row, b, b_row, depth = (args[k] for k in (1, 2, 4, 5, 7, 8, 9))
            e = _Emitter(context, builder, [signature.args[k] for k in (0, 3, 6)], [args[k] for k in (0, 3, 6)], parts)
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


def _product(name: str, transposed: bool) -> Any:
    """Make a function of a name: ``C = A @ B``, or ``C += A.T @ B``, within the flat array `s`, tile by tile.

    A group of B's vector columns is read by all rows before the next. Of a last vector that is at most half full, only
    half is computed where there are rows enough to fill a tile of it.
    """
    tile_5_wide, tile_5_1 = _tile(5, WIDE, transposed), _tile(5, 1, transposed)
    tile_2_wide, tile_2_1 = _tile(2, WIDE, transposed), _tile(2, 1, transposed)
    tile_1_wide, tile_1_1 = _tile(1, WIDE, transposed), _tile(1, 1, transposed)
    tile_10_half = _tile(10, 1, transposed, parts=2)

    @_helper_named(name)
    def product(s, c, c_row, rows, a, a_row, b, b_row, columns, lanes, depth):  # type: ignore[no-untyped-def]
        v = 0
        while v < columns:
            wide = v + WIDE * lanes - lanes // 2 < columns
            half = columns - v <= lanes // 2
            right = b + v
            r = 0
            while r < rows:
                to = c + r * c_row + v
                left = a + r * (1 if transposed else a_row)
                if half and r + 10 <= rows:
                    tile_10_half(s, to, c_row, s, left, a_row, s, right, b_row, depth)
                    r += 10
                elif r + 5 <= rows:
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
            v += WIDE * lanes if wide else lanes

    return product


_multiply, _add_transposed = _product("_multiply", False), _product("_add_transposed", True)

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


@_intrinsic
def _power_of_two(context, n_):  # type: ignore[no-untyped-def]
    """Return 2 to a whole number from -126 to 127, given and returned in single precision."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        exponent = builder.add(builder.fptosi(args[0], _LANE), _LANE(127))
        return builder.bitcast(builder.shl(exponent, _LANE(23)), ir.FloatType())

    return types.float32(n_), emit


def _polynomial(name: str, highest: float, *rest: float) -> Any:
    """Make a function of a name: a polynomial in x, given its coefficients, in precision `kind`.

    Unlike a call, it vectorises.
    """

    @_helper_named(name)
    def value(kind, x):  # type: ignore[no-untyped-def]
        total = kind(highest)
        for c in numba.literal_unroll(rest):
            total = total * x + kind(c)
        return total

    return value


#: log 2 in two parts, the first of few bits: a whole number times it is exact. e^r = 1 + r + r^2 Q(r) for |r| at most
#: half of it; Q, highest power first, is the minimax of the relative error (3e-9), by Lawson's iteration.
_LN_2 = 0.693359375, math.log(2) - 0.693359375
_exp_q = _polynomial("_exp_q", 1.38146132e-03, 8.36870982e-03, 4.16683874e-02, 1.66665207e-01, 4.99999935e-01)


@_helper
def _exp(h):  # type: ignore[no-untyped-def]
    """Write e^x over x, none of it positive: in single precision vectorised, to two units in the last place."""
    kind = h.dtype.type
    if h.itemsize == 8:
        for j in range(len(h)):
            h[j] = math.exp(h[j])
    else:
        bottom, round_ = kind(-87), kind(1.5 * 2**23)  # next to which a float is a whole number
        for j in range(len(h)):
            x = bottom if h[j] < bottom else h[j]  # NaN stays NaN
            n = ((x if x >= bottom else bottom) * kind(1 / math.log(2)) + round_) - round_
            r = (x - n * kind(_LN_2[0])) - n * kind(_LN_2[1])
            h[j] = (_exp_q(kind, r) * r * r + r + kind(1)) * _power_of_two(n)


# An index may count from the end; checking that keeps LLVM from vectorising s[h + j], so rows are passed as slices.
@_helper
def _softmax(s, z, z_row, d, d_row, outputs, y, examples, scale):  # type: ignore[no-untyped-def]
    """Write examples' derivatives of the cross-entropy by their scores, times `scale`; return the summed loss.

    Step by step for all examples, not one after another: short loops that a processor can work on side by side.
    """
    total = 0.0
    for r in range(len(examples)):
        scores, delta = s[z + r * z_row :][:outputs], s[d + r * d_row :][:outputs]
        top = scores[0]
        for j in range(1, outputs):
            top = scores[j] if scores[j] > top else top
        for j in range(outputs):
            delta[j] = scores[j] - top
        total -= delta[int(y[examples[r]])]
    _exp(s[d : d + len(examples) * d_row])
    for r in range(len(examples)):
        delta = s[d + r * d_row : d + (r + 1) * d_row]
        mass = delta[0]
        for j in range(1, outputs):
            mass += delta[j]
        total += math.log(mass)
        share = scale / mass
        for j in range(outputs):
            delta[j] *= share
        delta[outputs:] = 0
        delta[int(y[examples[r]])] -= scale
    return total


@_helper
def _loss_and_delta(kind, z, d, target, scale):  # type: ignore[no-untyped-def]
    """Write one example's derivative by its scores, times `scale`; return its loss (mlp.LOSSES but softmax, in loops).

    The target is a label, whose output should be 1 and all others 0, or for one output its value.
    """
    zero, one = z.dtype.type(0), z.dtype.type(1)
    outputs = len(z)
    loss, share = zero, scale / z.dtype.type(outputs)
    if kind != _MSE:
        for j in range(outputs):
            d[j] = -z[j] if z[j] > zero else z[j]
        _exp(d)
    for j in range(outputs):
        wanted = (one if j == target else zero) if outputs > 1 else z.dtype.type(target)
        if kind == _MSE:
            error = z[j] - wanted
            loss += error * error
            d[j] = (error + error) * share
        else:
            loss += (z[j] - z[j] * wanted if z[j] > zero else -z[j] * wanted) + math.log1p(d[j])
            d[j] = ((d[j] if z[j] < zero else one) / (one + d[j]) - wanted) * share
    return loss / z.dtype.type(outputs)


#: tanh x = x P(x^2) / Q(x^2) for |x| <= 9 in single precision, highest power first: the minimax coefficients of Eigen
#: (generic_fast_tanh_float) and XLA.
_tanh_p = _polynomial(
    "_tanh_p", -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_tanh_q = _polynomial("_tanh_q", 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


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
            h[j] = x * _tanh_p(kind, square) / _tanh_q(kind, square)


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


@_intrinsic
def _copy(context, target_, to, source_, start, count):  # type: ignore[no-untyped-def]
    """Copy ``source[start : start + count]`` to ``target[to:]``."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        target, source = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
        to, start = builder.gep(target, [args[1]]), builder.gep(source, [args[3]])
        cgutils.raw_memcpy(builder, to, start, args[4], signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target_, to, source_, start, count), emit


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
def _ask(example):  # type: ignore[no-untyped-def]
    """Ask for an example that will be copied soon: examples lie anywhere in memory."""
    for j in range(0, len(example), 64 // example.itemsize):
        _prefetch(example, j)


@_sum_helper
def _finite(values):  # type: ignore[no-untyped-def]
    """Whether no value is infinite or not a number: those less themselves are not 0."""
    total = values.dtype.type(0)
    for j in range(len(values)):
        total += values[j] - values[j]
    return total == 0


@_sum_helper
def _square(row, center):  # type: ignore[no-untyped-def]
    """Return the squared distance of a row from a center, a sum in several lanes: the same in every call."""
    total = 0.0
    for j in range(len(center)):
        away = np.float64(row[j]) - np.float64(center[j])
        total += away * away
    return total


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


# Columns of the layer table: inputs, outputs, place in the flat weights; whether the working copy is turned; places and
# row lengths in the scratch. A layer has its weights, the activations that enter it and the deltas that leave it.
_K, _N, _FLAT, _TURNED, _W, _ROW, _H, _H_ROW, _D, _D_ROW = range(10)


@_helper
def _length(layer):  # type: ignore[no-untyped-def]
    """Return how much of the scratch a layer's weights fill."""
    return layer[_ROW] * (layer[_N] if layer[_TURNED] else layer[_K] + 1)


@_helper
def _unpack(s, place, layer, flat):  # type: ignore[no-untyped-def]
    """Write a layer's ``[W; b]`` from flat weights into the scratch, rows padded with zeros."""
    inputs, outputs, row = layer[_K] + 1, layer[_N], layer[_ROW]
    flat = flat[layer[_FLAT] : layer[_FLAT] + inputs * outputs]
    if layer[_TURNED]:
        for j in range(outputs):
            turned = s[place + j * row : place + (j + 1) * row]
            for k in range(inputs):
                turned[k] = flat[k * outputs + j]
            turned[inputs:] = 0
    else:
        for k in range(inputs):
            _copy(s, place + k * row, flat, k * outputs, outputs)
            s[place + k * row + outputs : place + (k + 1) * row] = 0


@_helper
def _pack(flat, s, place, layer):  # type: ignore[no-untyped-def]
    """Write a layer's ``[W; b]`` from the scratch into flat weights."""
    inputs, outputs, row = layer[_K] + 1, layer[_N], layer[_ROW]
    flat = flat[layer[_FLAT] : layer[_FLAT] + inputs * outputs]
    if layer[_TURNED]:
        for k in range(inputs):
            for j in range(outputs):
                flat[k * outputs + j] = s[place + j * row + k]
    else:
        for k in range(inputs):
            _copy(flat, k * outputs, s, place + k * row, outputs)


@_helper
def _clear_padding(s, table, rows):  # type: ignore[no-untyped-def]
    """Write zeros behind the hidden activations of the first `rows` rows of a chunk, whatever an earlier client left.

    A product writes the sums of zero weights there: NaN if an activation was not finite. Products skip unused lanes, so
    later rows would keep it, and turned layers multiply it by zero weights, which is NaN again. The inputs' padding is
    never written, and that of deltas is written anew with every row.
    """
    for layer in range(1, len(table) - 1):
        start, row, width = table[layer, _H], table[layer, _H_ROW], table[layer, _K] + 1
        for r in range(rows):
            s[start + r * row + width : start + (r + 1) * row] = 0


@_helper
def _forward(s, table, layer, first, rows, lanes):  # type: ignore[no-untyped-def]
    """Write a layer's outputs, before its activation, for `rows` rows of a chunk from `first` on."""
    part, h_row, z_row = table[layer], table[layer, _H_ROW], table[layer + 1, _H_ROW]
    h, z, w, w_row, outputs = (
        part[_H] + first * h_row,
        table[layer + 1, _H] + first * z_row,
        part[_W],
        part[_ROW],
        part[_N],
    )
    if part[_TURNED]:
        _multiply_transposed(s, z, z_row, rows, h, h_row, w, w_row, outputs, w_row // lanes)
    else:
        _multiply(s, z, z_row, rows, h, h_row, w, w_row, outputs, lanes, part[_K] + 1)


@_helper
def _back(s, table, layer, first, rows, lanes):  # type: ignore[no-untyped-def]
    """Write the derivatives by a layer's inputs, the deltas of the layer below before its activation's."""
    part, d_row, below_row = table[layer], table[layer, _D_ROW], table[layer - 1, _D_ROW]
    d, below, w, w_row = part[_D] + first * d_row, table[layer - 1, _D] + first * below_row, part[_W], part[_ROW]
    if part[_TURNED]:
        _multiply(s, below, below_row, rows, d, d_row, w, w_row, part[_K], lanes, part[_N])
    else:
        _multiply_transposed(s, below, below_row, rows, d, d_row, w, w_row, part[_K], w_row // lanes)


@_helper
def _pass(s, table, lanes, x, y, order, begin, first, last, stop, activation, loss, scale, lowest):  # type: ignore[no-untyped-def]
    """Take examples forward and back: rows `first` to `last` of a chunk that starts at `begin` of `order`.

    Leaves every layer's inputs and, from layer `lowest` up, deltas (times `scale`) in the scratch, for the update;
    returns the summed loss.
    """
    layers, rows, total = len(table) - 1, last - first, 0.0
    inputs, x_row = table[0, _K], table[0, _H_ROW]
    for r in range(first, last):
        h = table[0, _H] + r * x_row
        if begin + r + AHEAD < stop:
            _ask(x[order[begin + r + AHEAD]])
        _copy(s, h, x[order[begin + r]], 0, inputs)
        s[h + inputs] = 1  # the bias is a weight of an input that is always one
    for layer in range(layers):
        _forward(s, table, layer, first, rows, lanes)
        outputs, z_row = table[layer, _N], table[layer + 1, _H_ROW]
        z = table[layer + 1, _H] + first * z_row
        if layer + 1 < layers:
            for r in range(rows):
                place = z + r * z_row
                _activate(activation, s[place : place + outputs])
                s[place + outputs] = 1
        else:
            d_row = table[layer, _D_ROW]
            d = table[layer, _D] + first * d_row
            if loss == _CROSS:
                examples = order[begin + first : begin + last]
                total += _softmax(s, z, z_row, d, d_row, outputs, y, examples, scale)
            else:
                for r in range(rows):
                    scores, delta = s[z + r * z_row :][:outputs], s[d + r * d_row :][:outputs]
                    total += _loss_and_delta(loss, scores, delta, y[order[begin + first + r]], scale)
    for layer in range(layers - 1, lowest, -1):
        _back(s, table, layer, first, rows, lanes)
        h_row, d_row, width = table[layer, _H_ROW], table[layer - 1, _D_ROW], table[layer, _K]
        h, d = table[layer, _H] + first * h_row, table[layer - 1, _D] + first * d_row
        for r in range(rows):
            place = d + r * d_row
            _chain(activation, s[place : place + width], s[h + r * h_row : h + r * h_row + width])
            s[place + width : place + d_row] = 0  # turned, a column is the bias's
    return total


@_helper
def _update(s, part, target, lanes, first, last, x, following):  # type: ignore[no-untyped-def]
    """Add the gradient of a chunk's examples to a layer's weights, or whatever lies at `target` in the same layout.

    Examples that follow are asked for a few at a time: memory answers while numbers are crunched.
    """
    h, d, row = part[_H] + first * part[_H_ROW], part[_D] + first * part[_D_ROW], part[_ROW]
    a, a_row, b, b_row, rows, columns = h, part[_H_ROW], d, part[_D_ROW], part[_K] + 1, part[_N]
    if part[_TURNED]:
        a, a_row, b, b_row, rows, columns = d, part[_D_ROW], h, part[_H_ROW], part[_N], part[_K] + 1
    asked, slabs = 0, -(-rows // SLAB) if len(following) else 1
    size = -(-rows // slabs)
    for slab in range(slabs):
        while asked * slabs < len(following) * (slab + 1):
            _ask(x[following[asked]])
            asked += 1
        k = slab * size
        _add_transposed(
            s, target + k * row, row, min(size, rows - k), a + k, a_row, b, b_row, columns, lanes, last - first
        )  # fmt: skip


def _train(  # type: ignore[no-untyped-def]
    out, losses, moved, start, x, y, indices, offsets, sizes, steps, keys, batch, table, lanes, padded,
    activation, loss, rates, momentum, decay, pull, centers, corrections, trained, counter, s,
):  # fmt: skip
    """Train clients, one after another: `fit` in loops, with every array of a client inside the scratch `s`.

    The next client is the counter's, which all threads that train the block take from.

    The scratch's last three parts, `padded` long each and laid out alike, are W; V, a step's direction where it cannot
    be added to W in place; and C, what a step adds that does not change within a fit: ``correction - pull * center``.
    """
    layers = len(table) - 1
    clients = len(sizes)
    largest = 0
    for n in sizes:
        largest = max(n, largest)
    order, counts = np.empty(largest, np.int64), np.empty(257, np.int64)
    words, spare = np.empty(largest, np.uint64), np.empty(largest, np.uint64)
    weights = s[table[0, _W] : table[0, _W] + padded]
    velocity = s[table[0, _W] + padded : table[0, _W] + 2 * padded]
    constant = s[table[0, _W] + 2 * padded : table[0, _W] + 3 * padded]
    held = pull != 0 or len(corrections) > 0
    added = np.empty(out.shape[1] if held else 0, s.dtype)
    shrink = decay + pull
    lowest = 0
    while not trained[lowest]:
        lowest += 1
    while True:
        client = _take(counter)
        if client >= clients:
            break
        n, lr, first_row = sizes[client], rates[client], start[min(client, len(start) - 1)]
        _prefetch(indices, offsets[min(client + 2, clients - 1)])  # a shard lies anywhere in memory, too
        size = batch if 0 < batch < n else n
        direct = momentum == 0 and size <= CHUNK
        _clear_padding(s, table, min(size, CHUNK))
        if held:
            center = centers[min(client, len(centers) - 1)]
            for j in range(len(added)):
                added[j] = -pull * center[j]
            if len(corrections):
                correction = corrections[min(client, len(corrections) - 1)]
                for j in range(len(added)):
                    added[j] += correction[j]
        for layer in range(layers):
            _unpack(s, table[layer, _W], table[layer], first_row)
            if held:
                _unpack(s, table[layer, _W] + 2 * padded, table[layer], added)
        if not direct:
            velocity[:] = 0
        total, left, epoch = 0.0, steps[client], 0
        while left > 0:
            shard = indices[offsets[client] : offsets[client] + n]
            _shuffle(order[:n], shard, keys[epoch, client], words, spare, counts)
            for begin in range(0, n, size):
                if left == 0:
                    break
                taken = min(size, n - begin)
                scale = s.dtype.type((-lr if direct else 1.0) / taken)
                if not direct:
                    for i in range(padded):
                        velocity[i] = momentum * velocity[i] + shrink * weights[i]
                    if held:
                        for i in range(padded):
                            velocity[i] += constant[i]
                stop = begin + taken
                for chunk in range(begin, stop, CHUNK):
                    rows = min(CHUNK, stop - chunk)
                    for first in range(0, rows, PART):
                        total += _pass(
                            s, table, lanes, x, y, order, chunk, first, min(first + PART, rows), stop,
                            activation, loss, scale, lowest,
                        )  # fmt: skip
                    for layer in range(lowest, layers):
                        if trained[layer]:
                            place, length = table[layer, _W], _length(table[layer])
                            if direct and (held or shrink != 0):
                                _affine(s[place : place + length], lr * shrink, lr, s, place + 2 * padded, held)
                            target = place if direct else place + padded
                            following = order[stop : min(stop + AHEAD, n)] if layer == lowest else order[:0]
                            for first in range(0, rows, PART):
                                _update(
                                    s, table[layer], target, lanes, first, min(first + PART, rows), x,
                                    following if chunk + rows == stop and first == 0 else order[:0],
                                )  # fmt: skip
                if not direct:
                    for layer in range(lowest, layers):
                        if trained[layer]:
                            place, length = table[layer, _W], _length(table[layer])
                            _affine(s[place : place + length], s.dtype.type(0), lr, s, place + padded, not direct)
                left -= 1
            epoch += 1
        for layer in range(layers):
            _pack(out[client], s, table[layer, _W], table[layer])
        losses[client] = total if _finite(out[client]) else np.nan
        moved[client] = _square(out[client], first_row)


@functools.lru_cache(maxsize=16)
def _layout(net: MLP) -> tuple[NDArray[np.int64], int, int]:
    """Return the layer table, the length of the padded weights and that of the scratch array."""
    lanes = VECTOR // np.dtype(net.dtype).itemsize

    def padded(length: int) -> int:
        return -(-length // lanes) * lanes

    layers = len(net.sizes) - 1
    table = np.zeros((layers + 1, 10), dtype=np.int64)
    place = 0
    for layer, width in enumerate(net.sizes):
        table[layer, [_H, _H_ROW]] = place, padded(width + 1)
        place += CHUNK * padded(width + 1)
    for layer in range(layers):
        inputs, outputs = net.sizes[layer] + 1, net.sizes[layer + 1]
        turned = TURN * outputs <= inputs
        table[layer, [_K, _N, _TURNED]] = inputs - 1, outputs, turned
        table[layer, [_ROW, _D, _D_ROW]] = padded(inputs if turned else outputs), place, padded(outputs)
        table[layer, _FLAT] = net.layout[f"W{layer + 1}"][0].start
        place += CHUNK * padded(outputs)
    weights = place
    for layer in range(layers):
        table[layer, _W] = place
        place += int(_length.py_func(table[layer]))
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


def _jit(function: Any) -> Any:
    """Compile on demand, to machine code that is kept on disk where Numba finds a place to write."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no such place
        return numba.njit(**_OPTIONS)(function)


def _add_weighted(total, rows, weights):  # type: ignore[no-untyped-def]
    k = 0
    while k + 4 <= len(rows):  # rows come from afar: four at a time ask for more at once
        p, q, r, s = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(len(total)):
            two = total[j] + np.float64(p[j]) * a + np.float64(q[j]) * b
            total[j] = two + np.float64(r[j]) * c + np.float64(s[j]) * d
        k += 4
    while k < len(rows):
        p, a = rows[k], weights[k]
        for j in range(len(total)):
            total[j] += np.float64(p[j]) * a
        k += 1


def _squares(out, rows, center):  # type: ignore[no-untyped-def]
    for k in range(len(rows)):
        out[k] = _square(rows[k], center)


_train_compiled, add_weighted = _jit(_train), _jit(_add_weighted)
_squares_compiled = _jit(_squares)


def update_norms(rows: Array, center: Array) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row from a center, as `kernels.numpy.update_norms` does."""
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
        array(real, 2), array(types.float64, 1), array(types.float64, 1), array(real, 2, True), array(real, 2, True),
        array(real if targets else whole, 1, True), array(whole, 1), array(whole, 1), array(whole, 1), array(whole, 1),
        array(types.uint64, 2), whole, array(whole, 2), whole, whole,
        whole, whole, array(real, 1), real, real, real, array(real, 2, True), array(real, 2, True),
        array(types.boolean, 1), array(whole, 1), array(real, 1),
    )  # fmt: skip
    sums = types.void(array(types.float64, 1), array(real, 2), array(types.float64, 1))
    squares = types.void(array(types.float64, 1), array(real, 2), array(real, 1, True))
    wanted = ((_train_compiled, signature), (add_weighted, sums), (_squares_compiled, squares))
    missing = [(function, types_) for function, types_ in wanted if types_.args not in function.overloads]
    if not missing:
        return
    with _one_process(), event.install_listener("numba:compile", _Announce()):
        for function, types_ in missing:
            try:
                function.compile(types_)
            except OSError:  # the machine code could not be kept on disk, but is here
                if types_.args not in function.overloads:
                    raise


@contextmanager
def _one_process() -> Iterator[None]:
    """Let one process at a time compile and write machine code: Numba's index on disk may have one writer only."""
    folder = _train_compiled.stats.cache_path
    with ExitStack() as stack:
        if folder:
            with suppress(OSError):  # a folder that cannot be written is not written by anybody
                stack.enter_context(FileLock(Path(folder) / "fedsim-kernels.lock"))
        yield


def _readonly(array: Array, net: MLP | None = None) -> Array:
    view = np.ascontiguousarray(array, net.dtype if net else None).view()
    view.flags.writeable = False
    return view


def fit(job: FitJob) -> FitResult:
    """Train a block of clients, as `kernels.numpy.fit` does, but for hooks, which are NumPy.

    The same result whoever shares the block, to the bit.
    """
    net = job.model
    assert isinstance(net, MLP)
    table, padded, length = _layout(net)
    real = np.dtype(net.dtype).type
    sizes = job.partition.sizes[job.clients]
    out = np.empty((len(sizes), net.num_parameters), net.dtype)
    losses, squares = np.empty(len(sizes)), np.empty(len(sizes))
    correction = np.empty((0, 0), net.dtype) if job.correction is None else job.correction
    counter = np.zeros(1, np.int64)
    arguments = (
        out, losses, squares, _readonly(job.start, net), _readonly(job.x, net), _readonly(job.y),
        job.partition.indices, job.partition.offsets[job.clients], sizes, np.ascontiguousarray(job.steps),
        job.shuffles, job.batch_size, table, VECTOR // out.itemsize, padded,
        _ACTIVATIONS[net.activation], _LOSSES[net.loss],
        np.asarray(job.lr, net.dtype), real(job.momentum), real(job.weight_decay), real(job.mu),
        _readonly(job.center, net), _readonly(correction, net), np.array(job.trained), counter,
    )  # fmt: skip
    try:
        job.run_on_all_workers(lambda: _train_compiled(*arguments, _scratch(net, length)))
    finally:
        counter[0] = len(sizes)  # who is interrupted leaves no thread that goes on
    return FitResult(out, losses, np.sqrt(squares))
