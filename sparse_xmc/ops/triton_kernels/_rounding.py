"""Device code that rounds float32/float64 values to a storage format: to nearest even or stochastically.

Stochastic rounding takes 16 random bits ``u`` per value from Philox4x32 with 7 rounds, key = seed, counter =
``(label, slot // 8, step, stream)``; slot ``k`` has half ``k % 2`` (0 = low) of word ``(k % 8) // 2``. The bits depend
on nothing else, so a result is the same for every tiling and on every backend.
"""

import triton
import triton.language as tl

from sparse_xmc.ops._backend import interpreting

INTERPRETED = tl.constexpr(interpreting())
LARGEST_BFLOAT16 = tl.constexpr(3.3895313892515355e38)


@triton.jit
def round_nearest(value, DTYPE: tl.constexpr):
    """``value`` in DTYPE, to nearest even (the interpreter's own cast to bfloat16 truncates)."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        narrow = value.to(tl.float32)
        bits = narrow.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        quiet = ((bits >> 16) | 0x40).to(tl.uint16)
        return tl.where(narrow != narrow, quiet, rounded).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)


@triton.jit
def saturate(value, DTYPE: tl.constexpr):
    """Clamps finite values to DTYPE's finite range; inf and nan stay."""
    if DTYPE == tl.float16:
        limit = 65504.0
    else:
        limit = LARGEST_BFLOAT16
    finite = tl.abs(value) < float("inf")
    return tl.where(finite, tl.minimum(tl.maximum(value, -limit), limit), value)


@triton.jit
def random_halves(seed, label, step, STREAM: tl.constexpr, WIDTH: tl.constexpr):
    """16 random bits for every slot of every label: uint32 ``[N, WIDTH]``; WIDTH is 1 or a power of two from 8 on."""
    counter = label.to(tl.uint32)[:, None]
    step = step.to(tl.uint32)
    if WIDTH == 1:
        word, _, _, _ = tl.philox(seed, counter, counter * 0, counter * 0 + step, counter * 0 + STREAM, 7)
        return word & 0xFFFF
    else:
        block = tl.arange(0, WIDTH // 8).to(tl.uint32)[None, :]
        zero = counter * 0 + block * 0
        w0, w1, w2, w3 = tl.philox(seed, counter + zero, block + zero, zero + step, zero + STREAM, 7)
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
        halves = tl.join(words & 0xFFFF, words >> 16)
        return tl.reshape(halves, (label.shape[0], WIDTH))


@triton.jit
def round_stochastic(value, random, DTYPE: tl.constexpr):
    """float32 ``value`` in bfloat16 or float16: away from zero iff ``random >= 65536 - round(65536 f)``, where ``f`` is
    how far the magnitude lies above the representable one below it, in units of their distance."""
    if DTYPE == tl.bfloat16:
        # from the largest number on nothing is added: finite values end up there, inf and nan stay what they are
        bits = value.to(tl.uint32, bitcast=True)
        beyond = (tl.abs(value) < LARGEST_BFLOAT16) == 0
        return (tl.where(beyond, bits, bits + random) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    value = saturate(value, DTYPE)
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + (random >> 3)) >> 13) - (112 << 10)
    steps = tl.abs(value) * 16777216.0  # distance between subnormal float16 numbers: 2^-24
    steps = tl.minimum(steps, 1024.0)
    whole = steps.to(tl.uint32)
    fraction = ((steps - whole.to(tl.float32)) * 65536.0 + 0.5).to(tl.uint32)
    subnormal = whole + ((random + fraction) >> 16)
    rounded = (tl.where(magnitude < 0x38800000, subnormal, normal) | ((bits >> 16) & 0x8000)).to(tl.uint16)
    return tl.where(tl.abs(value) < float("inf"), rounded.to(DTYPE, bitcast=True), value.to(DTYPE))


@triton.jit
def round_stored(
    value,
    seed,
    label,
    step,
    DTYPE: tl.constexpr,
    STREAM: tl.constexpr,
    WIDTH: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Optimizer results ``[N, WIDTH]`` in the format they are stored in; 16-bit formats saturate."""
    if DTYPE == tl.float32 or DTYPE == tl.float64:
        return value.to(DTYPE)
    elif STOCHASTIC:
        return round_stochastic(value, random_halves(seed, label, step, STREAM, WIDTH), DTYPE)
    else:
        return round_nearest(saturate(value, DTYPE), DTYPE)
