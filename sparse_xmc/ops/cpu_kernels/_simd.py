"""Vectors in Numba: values of ``lanes`` floats that stay in registers, loaded and stored at any offset of an array.

LLVM's loop vectoriser gives up on the loops of the fused head (a dozen rows that may alias), so these kernels say what
they want. A vector wider than a register is split by LLVM: 64 float32 lanes are eight AVX2 registers, sixteen NEON
ones. Arithmetic is exact IEEE, without fast-math, fused only where ``fma`` stands.
"""

import math
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

_I32 = ir.IntType(32)
_EXP_TERMS = {
    32: 7,
    64: 15,
}  # the Taylor remainder on |r| <= ln(2) / 2 is below half an ulp; one less than a power of 2
_EXP_FLOOR = {32: -88.0, 64: -709.0}  # rounds to a power of two whose exponent field is zero: exp there is zero
_MANTISSA = {32: 23, 64: 52}
_LN2_HIGH = {32: 0.693359375, 64: 0.6931471803691238}  # short enough that n times it is exact


class Vector(types.Type):
    """Numba type of ``lanes`` numbers of ``dtype``."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


def _call(builder, name, vector, arguments):
    function_type = ir.FunctionType(arguments[0].type, [a.type for a in arguments])
    full = f"llvm.{name}.v{vector.lanes}f{vector.dtype.bitwidth}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, full), arguments)


def _constant(like, value):
    return ir.Constant(like.type, [value] * like.type.count)


def _address(context, builder, array_type, array, offset, vector):
    is_pointer = isinstance(array_type, types.CPointer)
    data = array if is_pointer else context.make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [offset]), context.get_value_type(vector).as_pointer())


@intrinsic(prefer_literal=True)
def load(typingctx, array, offset, lanes):
    """``lanes`` neighbouring elements of a 1-D array or pointer from ``offset`` on; ``lanes`` is a literal."""
    vector = Vector(array.dtype, lanes.literal_value)

    def codegen(context, builder, signature, args):
        value = builder.load(_address(context, builder, signature.args[0], args[0], args[1], vector))
        value.align = array.dtype.bitwidth // 8
        return value

    return vector(array, types.uint64, lanes), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """Writes a vector to a 1-D array or pointer at ``offset``."""

    def codegen(context, builder, signature, args):
        done = builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1], value))
        done.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, value, lanes):
    """A vector whose lanes all hold ``value``; ``lanes`` is a literal."""
    vector = Vector(types.unliteral(value), lanes.literal_value)

    def codegen(context, builder, signature, args):
        undefined = ir.Constant(context.get_value_type(vector), ir.Undefined)
        one = builder.insert_element(undefined, args[0], ir.Constant(_I32, 0))
        return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, vector.lanes), None))

    return vector(vector.dtype, lanes), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """``a * b + c``, rounded once."""

    def codegen(context, builder, signature, args):
        return _call(builder, "fma", a, list(args))

    return a(a, a, a), codegen


@intrinsic
def total(typingctx, a):
    """Sum of the lanes, halves first."""

    def codegen(context, builder, signature, args):
        value, lanes = args[0], a.lanes
        while lanes > 1:
            lanes //= 2
            mask = ir.VectorType(_I32, lanes)
            low, high = mask(list(range(lanes))), mask(list(range(lanes, 2 * lanes)))
            value = builder.fadd(builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high))
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return a.dtype(a), codegen


def exp_constants(dtype):
    """What ``exp_minus_abs`` reads: each constant 8 times, so that instructions take it straight from memory."""
    bits = np.dtype(dtype).itemsize * 8
    bias = 2 ** (bits - _MANTISSA[bits] - 2) - 1
    # adding 1.5 * 2^mantissa rounds to an integer, which then stands in the low bits, here with the exponent's bias
    shift = 1.5 * 2 ** _MANTISSA[bits] + bias
    head = [_EXP_FLOOR[bits], 1 / math.log(2), shift, -_LN2_HIGH[bits], _LN2_HIGH[bits] - math.log(2)]
    return np.repeat(np.array(head + [1 / math.factorial(i) for i in range(_EXP_TERMS[bits] + 1)], dtype), 8)


@intrinsic
def exp_minus_abs(typingctx, a, constants):
    """``exp(-|a|)`` of 8 lanes to about one ulp; zero where that is below the normal numbers, NaN for NaN."""
    bits = a.dtype.bitwidth

    def codegen(context, builder, signature, args):
        def constant(i):
            at = ir.Constant(ir.IntType(64), 8 * i)
            value = builder.load(_address(context, builder, signature.args[1], args[1], at, a))
            value.align = bits // 8
            return value

        def fused(*values):
            return _call(builder, "fma", a, list(values))

        floor, shift = constant(0), constant(2)
        x = builder.fneg(_call(builder, "fabs", a, [args[0]]))
        x = builder.select(builder.fcmp_ordered("<", x, floor), floor, x)
        shifted = fused(x, constant(1), shift)
        n = builder.fsub(shifted, shift)
        power = fused(n, constant(4), fused(n, constant(3), x))
        terms = [constant(5 + i) for i in range(_EXP_TERMS[bits] + 1)]
        while len(terms) > 1:  # neighbours first: a short chain
            terms = [fused(terms[i + 1], power, terms[i]) for i in range(0, len(terms), 2)]
            power = builder.fmul(power, power)
        integers = ir.VectorType(ir.IntType(bits), a.lanes)
        exponent = builder.shl(builder.bitcast(shifted, integers), integers([_MANTISSA[bits]] * a.lanes))
        return builder.fmul(terms[0], builder.bitcast(exponent, x.type))

    return a(a, constants), codegen


@intrinsic
def where_positive(typingctx, condition, a, b):
    """Lane by lane ``a`` where ``condition >= 0`` or NaN, else ``b``."""

    def codegen(context, builder, signature, args):
        positive = builder.fcmp_unordered(">=", args[0], _constant(args[0], 0.0))
        return builder.select(positive, args[1], args[2])

    return a(a, a, a), codegen


def _binary(instruction):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args)

        return a(a, a), codegen

    return operation


def _register(function, operation):
    @overload(function)
    def _(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: operation(a, b)


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_function, _binary(_instruction))
