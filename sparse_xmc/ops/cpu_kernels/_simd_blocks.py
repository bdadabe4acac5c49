"""More on the vectors of ``_simd``: unchecked scalar loads, dot products four at a time, transposition in registers."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_xmc.ops.cpu_kernels._simd import Vector, _address, _call

_I32 = ir.IntType(32)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.VectorType(_I32, len(lanes))(list(lanes)))


def _place(context, builder, array_type, array, offset, start):
    at = builder.add(offset, ir.Constant(offset.type, start))
    return _address(context, builder, array_type, array, at, Vector(array_type.dtype, 8))


def _load8(context, builder, array_type, array, offset, start):
    value = builder.load(_place(context, builder, array_type, array, offset, start))
    value.align = array_type.dtype.bitwidth // 8
    return value


def _halve(builder, value):
    half = value.type.count // 2
    return builder.fadd(
        _shuffle(builder, value, value, range(half)), _shuffle(builder, value, value, range(half, 2 * half))
    )


@intrinsic
def item(typingctx, array, offset):
    """``array[offset]`` of a 1-D array, without Numba's test for a negative offset."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]]))

    return array.dtype(array, types.uint64), codegen


@intrinsic
def fold(typingctx, a, b):
    """``a * b`` summed to 8 lanes: lane j adds up the products j, j + 8, j + 16, ..."""
    folded = Vector(a.dtype, 8)

    def codegen(context, builder, signature, args):
        result = None
        for start in range(0, a.lanes, 8):
            x, y = (_shuffle(builder, value, value, range(start, start + 8)) for value in args)
            result = builder.fmul(x, y) if result is None else _call(builder, "fma", folded, [x, y, result])
        return result

    return folded(a, b), codegen


@intrinsic
def dot_row(typingctx, a, array, offset):
    """``fold(a, load(array, offset))``, the row taken from memory as it is needed."""
    folded = Vector(a.dtype, 8)

    def codegen(context, builder, signature, args):
        result = None
        for start in range(0, a.lanes, 8):
            x = _shuffle(builder, args[0], args[0], range(start, start + 8))
            y = _load8(context, builder, signature.args[1], args[1], args[2], start)
            result = builder.fmul(x, y) if result is None else _call(builder, "fma", folded, [x, y, result])
        return result

    return folded(a, array, types.uint64), codegen


@intrinsic
def add_scaled(typingctx, array, offset, a, factor):
    """``array[offset ..] += factor * a``, eight at a time: more would not fit the registers beside ``a``."""

    def codegen(context, builder, signature, args):
        part = Vector(a.dtype, 8)
        like = ir.Constant(context.get_value_type(part), ir.Undefined)
        one = builder.insert_element(like, args[3], ir.Constant(_I32, 0))
        factors = builder.shuffle_vector(one, like, ir.Constant(ir.VectorType(_I32, 8), None))
        for start in range(0, a.lanes, 8):
            x = _shuffle(builder, args[2], args[2], range(start, start + 8))
            y = _load8(context, builder, signature.args[0], args[0], args[1], start)
            at = _place(context, builder, signature.args[0], args[0], args[1], start)
            builder.store(_call(builder, "fma", part, [x, factors, y]), at).align = a.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, a, a.dtype), codegen


@intrinsic
def totals(typingctx, a, b, c, d):
    """The sums of the lanes of four vectors of 8, each added up in the order of ``total``."""

    def codegen(context, builder, signature, args):
        quarters = [_halve(builder, value) for value in args]

        def fold_pair(left, right, low, high):
            return builder.fadd(_shuffle(builder, left, right, low), _shuffle(builder, left, right, high))

        pairs = [fold_pair(*quarters[i : i + 2], (0, 1, 4, 5), (2, 3, 6, 7)) for i in (0, 2)]
        return fold_pair(*pairs, (0, 2, 4, 6), (1, 3, 5, 7))

    return Vector(a.dtype, 4)(a, b, c, d), codegen


@intrinsic
def transpose8(typingctx, source, source_offset, source_stride, target, target_offset, target_stride):
    """Transposes the 8 x 8 block at an offset of one flat row-major matrix into a block of another."""

    def codegen(context, builder, signature, args):
        def row(array, offset, stride, i):
            shift = builder.mul(stride, ir.Constant(stride.type, i))
            return _address(context, builder, source, array, builder.add(offset, shift), Vector(source.dtype, 8))

        align = source.dtype.bitwidth // 8
        rows = []
        for i in range(8):
            rows.append(builder.load(row(args[0], args[1], args[2], i)))
            rows[-1].align = align
        for distance in (4, 2, 1):
            # Exchanges the off-diagonal blocks of size `distance`, as in a recursive transposition.
            keep = [j + 8 - distance if j & distance else j for j in range(8)]
            swap = [j + 8 if j & distance else j + distance for j in range(8)]
            for i in range(8):
                if not i & distance:
                    a, b = rows[i], rows[i + distance]
                    rows[i], rows[i + distance] = _shuffle(builder, a, b, keep), _shuffle(builder, a, b, swap)
        for i in range(8):
            builder.store(rows[i], row(args[3], args[4], args[5], i)).align = align
        return context.get_dummy_value()

    return types.void(source, types.uint64, types.uint64, source, types.uint64, types.uint64), codegen
