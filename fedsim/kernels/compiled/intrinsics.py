"""Single instructions and memory operations that Numba does not offer."""

from llvmlite import ir
from numba.core import cgutils, types

from fedsim.kernels.compiled.compilation import helper, intrinsic
from fedsim.kernels.compiled.emitter import I32, I64


@intrinsic
def power_of_two(context, n_):
    """Return 2 to the power of an integer from -126 to 127, given and returned as float32."""

    def emit(context, builder, signature, args):
        exponent = builder.add(builder.fptosi(args[0], I32), I32(127))
        return builder.bitcast(builder.shl(exponent, I32(23)), ir.FloatType())

    return types.float32(n_), emit


@intrinsic
def copy(context, target_, to, source_, start, count):
    """Copy ``source[start : start + count]`` to ``target[to:]``."""

    def emit(context, builder, signature, args):
        target, source = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
        to, start = builder.gep(target, [args[1]]), builder.gep(source, [args[3]])
        cgutils.raw_memcpy(builder, to, start, args[4], signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target_, to, source_, start, count), emit


@intrinsic
def prefetch(context, array_, index):
    """Prefetch the cache line of an element into the L2 cache; any index is allowed."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        function_type = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        builder.call(function, [address, I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(array_, index), emit


@helper
def prefetch_row(row):
    """Prefetch all cache lines of a row, such as an example that is copied soon."""
    for j in range(0, len(row), 64 // row.itemsize):
        prefetch(row, j)


@intrinsic
def atomic_fetch_add(context, counter_):
    """Return a counter's value and add one to it atomically: no two threads get the same value."""

    def emit(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, I64(1), "monotonic")

    return types.int64(counter_), emit
