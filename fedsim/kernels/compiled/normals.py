"""Normal numbers in single precision, as `streams.normals` defines them, emitted as LLVM vector instructions."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from fedsim import streams
from fedsim.kernels.compiled.compilation import intrinsic
from fedsim.kernels.compiled.emitter import I32, I64, VECTOR_BYTES, VectorEmitter

#: Number of pairs that `normal_pairs` makes.
LANES = VECTOR_BYTES // 4

# Minimax polynomials, from the highest power: of f in -2 log(1 + f) / f, for 1 + f between the roots of 1/2 and 2
# (relative error 3e-8), and of t^2 in sin(pi t) / t and cos(pi t), for |t| <= 1/2 (errors 1e-8 and 5e-8).
_LOG = (
    -0.17400877612, 0.28534999045, -0.29829544619, 0.33155166745, -0.39926126621, 0.5000267414, -0.66667821496, 1.0,
    -2.0,
)  # fmt: skip
_SIN = (0.0776559123, -0.5982904113, 2.5500773865, -5.1677100767, 3.1415926401)
_COS = (0.2196824236, -1.3318729728, 4.0584107908, -4.9347928025, 0.9999999530)


class _PairEmitter(VectorEmitter):
    """Emits arithmetic on vectors of float32, and of integers with as many lanes."""

    def real(self, value: float) -> Any:
        """Return a constant."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def integer(self, kind: Any, value: int) -> Any:
        """Return a constant of 32 or 64 bits."""
        return ir.Constant(ir.VectorType(kind, self.lanes), [value] * self.lanes)

    def convert(self, bits: Any) -> Any:
        """Return 32-bit integers as float32."""
        return self.builder.sitofp(bits, self.vector)

    def scaled(self, bits: Any, factor: float, constant: Any) -> Any:
        """Return integers times a factor plus a constant."""
        return self.builder.call(self.fma, [self.convert(bits), self.real(factor), constant])

    def polynomial(self, coefficients: tuple[float, ...], x: Any) -> Any:
        """Return a polynomial, given its coefficients from the highest power."""
        total = self.real(coefficients[0])
        for c in coefficients[1:]:
            total = self.builder.call(self.fma, [total, x, self.real(c)])
        return total

    def mix(self, z: Any) -> Any:
        """Return `streams.mix` of 64-bit integers."""
        for shift, factor in ((30, streams.MIX_1), (27, streams.MIX_2), (31, None)):
            z = self.builder.xor(z, self.builder.lshr(z, self.integer(I64, shift)))
            if factor is not None:
                z = self.builder.mul(z, self.integer(I64, int(factor)))
        return z

    def sqrt(self, x: Any) -> Any:
        """Return the square root."""
        function_type = ir.FunctionType(self.vector, [self.vector])
        name = f"llvm.sqrt.v{self.lanes}f32"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function_type, name), [x])

    def squared_radius(self, x: Any) -> Any:
        """Return -2 times the logarithm of normal numbers greater than 0."""
        b, integers = self.builder, ir.VectorType(I32, self.lanes)
        bits = b.bitcast(x, integers)
        exponent = b.ashr(b.sub(bits, self.integer(I32, 0x3F3504F3)), self.integer(I32, 23))
        mantissa = b.bitcast(b.sub(bits, b.shl(exponent, self.integer(I32, 23))), self.vector)
        f = b.fsub(mantissa, self.real(1.0))
        power = b.fmul(self.convert(exponent), self.real(-2 * math.log(2)))
        return b.call(self.fma, [self.polynomial(_LOG, f), f, power])


@intrinsic
def normal_pairs(context, cosines_, sines_, start, key):
    """Write LANES pairs of normal numbers to two arrays from an index on, from the first values of a stream."""

    def emit(context, builder, signature, args):
        if signature.args[0].dtype != types.float32:  # in code that is compiled for another type, and never run
            return context.get_dummy_value()
        e = _PairEmitter(context, builder, signature.args[:2], args[:2])
        golden = [(k + 1) * int(streams.GOLDEN) % 2**64 for k in range(e.lanes)]
        words, integers = ir.VectorType(I64, e.lanes), ir.VectorType(I32, e.lanes)
        z = e.mix(builder.add(e.splat(args[3]), ir.Constant(words, golden)))
        halves = builder.bitcast(z, ir.VectorType(I32, 2 * e.lanes))
        low, high = (e.shuffle(halves, halves, list(range(half, 2 * e.lanes, 2))) for half in (0, 1))
        extra = e.scaled(builder.lshr(low, e.integer(I32, 23)), 2.0**-40, e.real(2.0**-41))
        uniform = e.scaled(builder.lshr(high, e.integer(I32, 1)), 2.0**-31, extra)
        radius = e.sqrt(e.squared_radius(uniform))
        t = e.scaled(builder.and_(low, e.integer(I32, 0x7FFFFF)), 2.0**-23, e.real(-0.5))
        square = builder.fmul(t, t)
        sine = builder.fmul(builder.fmul(radius, t), e.polynomial(_SIN, square))
        cosine = builder.bitcast(builder.fmul(radius, e.polynomial(_COS, square)), integers)
        sign = builder.shl(high, e.integer(I32, 31))
        cosine = builder.bitcast(builder.xor(cosine, sign), e.vector)
        e.store(cosine, 0, args[2])
        e.store(sine, 1, args[2])
        return context.get_dummy_value()

    return types.void(cosines_, sines_, start, key), emit


@intrinsic
def add_scaled(context, target_, to, values_, start, scale):
    """Add a vector of scaled values to a vector of a flat array."""

    def emit(context, builder, signature, args):
        e = VectorEmitter(context, builder, signature.args[0:3:2], args[0:3:2])
        total = builder.call(e.fma, [e.load(1, args[3]), e.splat(args[4]), e.load(0, args[1])])
        e.store(total, 0, args[1])
        return context.get_dummy_value()

    return types.void(target_, to, values_, start, scale), emit


@intrinsic
def add_scaled_part(context, target_, to, values_, start, scale, count):
    """Add fewer scaled values than a vector has to values of a flat array."""

    def emit(context, builder, signature, args):
        e = VectorEmitter(context, builder, signature.args[0:3:2], args[0:3:2])
        module, pointer = builder.module, e.vector.as_pointer()
        mask_type, suffix = ir.VectorType(ir.IntType(1), e.lanes), f"v{e.lanes}f{8 * e.itemsize}"
        load_type = ir.FunctionType(e.vector, [pointer, I32, mask_type, e.vector])
        store_type = ir.FunctionType(ir.VoidType(), [e.vector, pointer, I32, mask_type])
        load = cgutils.get_or_insert_function(module, load_type, f"llvm.masked.load.{suffix}.p0{suffix}")
        store = cgutils.get_or_insert_function(module, store_type, f"llvm.masked.store.{suffix}.p0{suffix}")
        places = ir.Constant(ir.VectorType(I64, e.lanes), list(range(e.lanes)))
        mask = builder.icmp_signed("<", places, e.splat(args[5]))
        zero, align = ir.Constant(e.vector, None), I32(e.itemsize)
        address = e.pointer(0, args[1])
        old, values = (builder.call(load, [a, align, mask, zero]) for a in (address, e.pointer(1, args[3])))
        total = builder.call(e.fma, [values, e.splat(args[4]), old])
        builder.call(store, [total, address, align, mask])
        return context.get_dummy_value()

    return types.void(target_, to, values_, start, scale, count), emit
