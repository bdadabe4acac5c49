"""Bisection on vectors of unsigned integers (see ``_simd.py``): one search per lane, without branches. Bit sets."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I1 = ir.IntType(1)


@intrinsic
def lower(typingctx, a, b):
    """The smaller of two numbers, lane by lane."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.icmp_unsigned("<", args[0], args[1]), args[0], args[1])

    return a(a, a), codegen


@intrinsic
def higher(typingctx, a, b):
    """The larger of two numbers, lane by lane."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.icmp_unsigned("<", args[0], args[1]), args[1], args[0])

    return a(a, a), codegen


@intrinsic
def middle(typingctx, low, high):
    """``floor((low + high) / 2)`` without overflow."""

    def codegen(context, builder, signature, args):
        one = ir.Constant(args[0].type, [1] * low.lanes)
        half = builder.lshr(builder.xor(args[0], args[1]), one)
        return builder.add(builder.and_(args[0], args[1]), half)

    return low(low, low), codegen


@intrinsic
def count_at_most(typingctx, counts, keys, bounds):
    """``counts + (keys <= bounds)``."""

    def codegen(context, builder, signature, args):
        return builder.sub(args[0], builder.sext(builder.icmp_unsigned("<=", args[1], args[2]), args[0].type))

    return counts(counts, counts, counts), codegen


@intrinsic
def raise_low(typingctx, low, probe, found, need):
    """The lower end of each search after ``found`` keys were at most ``probe``: probe itself where that is ``need``."""

    def codegen(context, builder, signature, args):
        low, probe, found, need = args
        above = builder.add(probe, ir.Constant(probe.type, [1] * probe.type.count))
        kept = builder.select(builder.icmp_unsigned(">=", found, need), low, above)
        return builder.select(builder.icmp_unsigned("==", found, need), probe, kept)

    return low(low, low, low, low), codegen


@intrinsic
def sink_high(typingctx, high, probe, found, need):
    """The upper end of each search after ``found`` keys were at most ``probe``."""

    def codegen(context, builder, signature, args):
        high, probe, found, need = args
        return builder.select(builder.icmp_unsigned(">=", found, need), probe, high)

    return high(high, high, high, high), codegen


@intrinsic
def differs(typingctx, a, b):
    """Whether any lane of two vectors differs."""

    def codegen(context, builder, signature, args):
        lanes = builder.icmp_unsigned("!=", args[0], args[1])
        kind = ir.FunctionType(_I1, [lanes.type])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.or.v{a.lanes}i1")
        return builder.call(reduce, [lanes])

    return types.boolean(a, a), codegen


@intrinsic
def with_bit(typingctx, sets, keys, bounds, number):
    """``sets | (keys <= bounds) << number``."""

    def codegen(context, builder, signature, args):
        sets, keys, bounds, number = args
        bit = builder.shl(ir.Constant(number.type, 1), number)
        bit = builder.trunc(bit, sets.type.element)
        one = builder.insert_element(ir.Constant(sets.type, ir.Undefined), bit, ir.Constant(ir.IntType(32), 0))
        every = ir.Constant(ir.VectorType(ir.IntType(32), sets.type.count), None)
        bits, none = builder.shuffle_vector(one, one, every), ir.Constant(sets.type, [0] * sets.type.count)
        return builder.or_(sets, builder.select(builder.icmp_unsigned("<=", keys, bounds), bits, none))

    return sets(sets, sets, sets, types.int64), codegen


@intrinsic
def lowest_bit(typingctx, word):
    """Number of the lowest bit that is set in a nonzero word."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], _I1(1))

    return word(word), codegen
