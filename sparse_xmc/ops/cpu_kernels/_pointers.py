"""Bare pointers in Numba: what inner functions pass around instead of arrays.

An array argument costs two atomic operations on its reference count per call that LLVM does not inline, and a test for
a negative index per access. A pointer costs neither, and keeps nothing alive: its owner must be an argument of the
kernel.
"""

from numba import types
from numba.extending import intrinsic


@intrinsic
def pointer(typingctx, array):
    """To the first element of a contiguous array."""

    def codegen(context, builder, signature, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def at_address(typingctx, address, dtype):
    """To memory at an integer address, read as numbers of ``dtype`` (np.float32, ...)."""
    kind = types.CPointer(dtype.instance_type)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.uint64, dtype), codegen


@intrinsic
def same_kind(typingctx, address, like):
    """To memory at an integer address, read as what the pointer ``like`` points to."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], args[1].type)

    return like(types.uint64, like), codegen


@intrinsic
def advance(typingctx, start, count):
    """``start + count``."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return start(start, types.intp), codegen
