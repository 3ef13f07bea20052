"""Emitting LLVM vector instructions over flat arrays."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

_FEATURES = binding.get_host_cpu_features()
#: Bytes of a vector register.
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16

I64 = ir.IntType(64)
I32 = ir.IntType(32)


class VectorEmitter:
    """Emits loads, stores, shuffles, fused multiply-adds and loops.

    Parameters
    ----------
    context, builder : numba and llvmlite objects
        As `numba.extending.intrinsic` passes them to a code generator.
    array_types, arrays : sequences
        The arrays that instructions access, by position: Numba types and LLVM values.
    parts : int
        Vectors have one of so many equal parts of a register.
    """

    def __init__(self, context: Any, builder: Any, array_types: Any, arrays: Any, parts: int = 1) -> None:
        self.builder = builder
        self.bases = [context.make_array(t)(context, builder, a).data for t, a in zip(array_types, arrays, strict=True)]
        self.scalar = context.get_value_type(array_types[0].dtype)
        self.itemsize = 4 if isinstance(self.scalar, ir.FloatType) else 8
        self.lanes = VECTOR_BYTES // self.itemsize // parts
        self.vector = ir.VectorType(self.scalar, self.lanes)
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.itemsize}"
        function_type = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, function_type, name)

    def offset(self, *terms: Any) -> Any:
        """Return the sum of terms, each a value or a pair of factors: an index into a flat array."""
        total = I64(0)
        for term in terms:
            total = self.builder.add(total, self.builder.mul(*term) if isinstance(term, tuple) else term)
        return total

    def pointer(self, base: int, offset: Any, vector: Any = None) -> Any:
        """Return the address of a vector in an array, as a pointer to `vector`, by default a register's."""
        return self.builder.bitcast(self.builder.gep(self.bases[base], [offset]), (vector or self.vector).as_pointer())

    def load(self, base: int, offset: Any) -> Any:
        """Load a vector from an array."""
        return self.builder.load(self.pointer(base, offset), align=self.itemsize)

    def store(self, value: Any, base: int, offset: Any) -> None:
        """Store a vector to an array."""
        self.builder.store(value, self.pointer(base, offset, value.type), align=self.itemsize)

    def broadcast(self, base: int, offset: Any) -> Any:
        """Load a number from an array into all lanes of a vector."""
        return self.splat(self.builder.load(self.builder.gep(self.bases[base], [offset])))

    def splat(self, scalar: Any) -> Any:
        """Return a vector with a number in all lanes."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, I32(0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """Return the given lanes of two vectors, those of the second numbered after those of the first."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def loop(self, count: Any, sums: list[Any], body: Any) -> list[Any]:
        """Run ``sums = body(index, sums)`` for index 0 to count - 1 (count at least 1), with the sums in registers."""
        before = self.builder.block
        block = self.builder.append_basic_block("tile")
        after = self.builder.append_basic_block("done")
        self.builder.branch(block)
        self.builder.position_at_end(block)
        index = self.builder.phi(I64)
        index.add_incoming(I64(0), before)
        carried = []
        for value in sums:
            phi = self.builder.phi(value.type)
            phi.add_incoming(value, before)
            carried.append(phi)
        new: list[Any] = body(index, carried)
        following = self.builder.add(index, I64(1))
        index.add_incoming(following, block)
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value, block)
        self.builder.cbranch(self.builder.icmp_signed("<", following, count), block, after)
        self.builder.position_at_end(after)
        return new
