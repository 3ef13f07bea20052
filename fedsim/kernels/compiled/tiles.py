"""Register tiles of matrix products, emitted as LLVM vector instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from fedsim.kernels.compiled.compilation import intrinsic
from fedsim.kernels.compiled.emitter import I64, VECTOR_BYTES, VectorEmitter

#: Vectors across the widest tile, which is five rows high: sums take 20 of the 32 registers of AVX-512, or 10 of 16.
TILE_VECTORS = 4 if VECTOR_BYTES == 64 else 2


def product_tile(rows: int, vectors: int, transposed: bool, parts: int = 1) -> Any:
    """Make an intrinsic: one register tile of ``C = A @ B``, or of ``C += A.T @ B``, over flat arrays.

    An element of the tile is ``sum_p A[a + r * a_row + p] * B[b + p * b_row + v]``, in increasing p; if transposed,
    the element of A is ``A[a + p * a_row + r]``. The stride along the rows of A is a constant in both cases, so that
    few registers hold addresses. The sum is added to C once it is complete, because adding small terms to a float32
    weight one at a time would lose them.

    Parameters
    ----------
    rows, vectors : int
        Size of the tile: rows of C, and vectors of columns of C.
    transposed : bool
        Whether the product is ``C += A.T @ B``.
    parts : int
        Vectors have one of so many equal parts of a register.
    """

    @intrinsic
    def tile(ctx, c_, c, c_row, a_, a, a_row, b_, b, b_row, depth):
        def emit(context, builder, signature, args):
            c, c_row, a, a_row, b, b_row, depth = (args[k] for k in (1, 2, 4, 5, 7, 8, 9))
            arrays = [signature.args[k] for k in (0, 3, 6)], [args[k] for k in (0, 3, 6)]
            e = VectorEmitter(context, builder, *arrays, parts)
            cells = [(r, v) for r in range(rows) for v in range(vectors)]
            offsets = [e.offset(c, (c_row, I64(r)), I64(v * e.lanes)) for r, v in cells]
            sums = [ir.Constant(e.vector, None)] * len(cells)

            def step(p: Any, sums: list[Any]) -> list[Any]:
                right = [e.load(2, e.offset(b, (b_row, p), I64(v * e.lanes))) for v in range(vectors)]
                indices = [(p, I64(r)) if transposed else (I64(r), p) for r in range(rows)]
                left = [e.broadcast(1, e.offset(a, (a_row, row), column)) for row, column in indices]
                return [builder.call(e.fma, [left[r], right[v], s]) for (r, v), s in zip(cells, sums, strict=True)]

            for offset, value in zip(offsets, e.loop(depth, sums, step), strict=True):
                e.store(builder.fadd(e.load(0, offset), value) if transposed else value, 0, offset)
            return context.get_dummy_value()

        return types.void(c_, c, c_row, a_, a, a_row, b_, b, b_row, depth), emit

    return tile


def dot_tile(rows: int, columns: int) -> Any:
    """Make an intrinsic: one register tile of ``C = A @ B.T`` over flat arrays.

    ``C[c + r * c_row + k]`` is the dot product of row r of A and row k of B, both `depth` vectors long.

    Parameters
    ----------
    rows, columns : int
        Size of the tile: rows of A, and rows of B (a power of two).
    """

    @intrinsic
    def tile(ctx, c_, c, c_row, a_, a, a_row, b_, b, b_row, depth):
        def emit(context, builder, signature, args):
            c, c_row, a, a_row, b, b_row, depth = (args[k] for k in (1, 2, 4, 5, 7, 8, 9))
            e = VectorEmitter(context, builder, [signature.args[k] for k in (0, 3, 6)], [args[k] for k in (0, 3, 6)])
            cells = [(r, k) for r in range(rows) for k in range(columns)]

            def step(v: Any, sums: list[Any]) -> list[Any]:
                offset = builder.mul(v, I64(e.lanes))
                left = [e.load(1, e.offset(a, (a_row, I64(r)), offset)) for r in range(rows)]
                right = [e.load(2, e.offset(b, (b_row, I64(k)), offset)) for k in range(columns)]
                return [builder.call(e.fma, [left[r], right[k], s]) for (r, k), s in zip(cells, sums, strict=True)]

            sums = e.loop(depth, [ir.Constant(e.vector, None)] * len(cells), step)
            for r in range(rows):
                row = _sum_lanes(e, sums[r * columns : (r + 1) * columns])
                e.store(row, 0, e.offset(c, (c_row, I64(r))))
            return context.get_dummy_value()

        return types.void(c_, c, c_row, a_, a, a_row, b_, b, b_row, depth), emit

    return tile


def _sum_lanes(e: VectorEmitter, vectors: list[Any]) -> Any:
    """Return one vector with the sum of the lanes of each vector, by adding halves until one lane of each is left."""
    groups = 1  # lanes of each vector, in groups that belong to different original vectors
    while len(vectors) > 1 or vectors[0].type.count > groups:
        lanes = vectors[0].type.count
        width = lanes // groups
        low = [g * width + k for g in range(groups) for k in range(width // 2)]
        high = [lane + width // 2 for lane in low]
        if len(vectors) > 1:
            low, high = low + [lanes + lane for lane in low], high + [lanes + lane for lane in high]
            groups *= 2
        seconds = vectors[1::2] or vectors
        vectors = [
            e.builder.fadd(e.shuffle(x, y, low), e.shuffle(x, y, high))
            for x, y in zip(vectors[::2], seconds, strict=True)
        ]
    return vectors[0]
