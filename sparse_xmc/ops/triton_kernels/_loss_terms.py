"""Device code of the losses: value and derivative by the logit ``z``, for a negative and for a positive label.

For a label or row that does not exist ``z`` is minus infinity, at which a negative's value and derivative are exactly 0.
nan passes through. Values that are not needed are 0 and cost nothing.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._approximate import exp_fast, log1p, reciprocal_fast


@triton.jit
def _logistic(z, NEED_LOSS: tl.constexpr):
    """(softplus(z), sigmoid(z))."""
    if NEED_LOSS or z.dtype == tl.float64:
        e = exp_fast(-tl.abs(z))
        s = reciprocal_fast(1.0 + e)
        return tl.maximum(z, 0.0) + log1p(e), tl.where(z < 0.0, e * s, s)
    else:
        return tl.zeros(z.shape, z.dtype), reciprocal_fast(1.0 + exp_fast(-z))


@triton.jit
def _hinge(z, NEED_LOSS: tl.constexpr):
    excess = 1.0 + z
    excess = tl.where(excess < 0.0, 0.0, excess)
    return excess * excess, 2.0 * excess


@triton.jit
def _power(base, exponent):
    """``base ** exponent`` for base > 0."""
    return tl.exp2(exponent * tl.log2(base))


@triton.jit
def _asymmetric_negative(z, gamma, clip):
    """``-q ** gamma * log(1 - q)`` with ``q = max(sigmoid(z) - clip, 0)``."""
    soft, p = _logistic(z, True)
    _, rest = _logistic(-z, True)
    q = p - clip
    # a probability of 0 stands for q <= 0: the loss and its derivative are 0 there
    some = q > 0.0
    q = tl.where(some | (z != z), q, 1.0)
    log_term = tl.where(clip > 0.0, -tl.log(rest + clip), soft)
    focus = _power(q, gamma)
    ratio = tl.where(clip > 0.0, p * rest / (rest + clip), p)
    slope = focus * (ratio + gamma * p * rest * log_term / q)
    return tl.where(some | (z != z), focus * log_term, 0.0), tl.where(some | (z != z), slope, 0.0)


@triton.jit
def _asymmetric_positive(z, gamma):
    """``-(1 - p) ** gamma * log p`` with ``p = sigmoid(z)``."""
    soft, rest = _logistic(-z, True)
    _, p = _logistic(z, True)
    some = rest > 0.0
    focus = tl.where(some | (z != z), _power(tl.where(some, rest, 1.0), gamma), tl.where(gamma > 0.0, 0.0, 1.0))
    return focus * soft, -focus * (gamma * p * soft + rest)


@triton.jit
def negative_terms(z, objective, LOSS: tl.constexpr, NEED_LOSS: tl.constexpr):
    """(loss, derivative by z) of labels that are not positives."""
    if LOSS == "bce":
        return _logistic(z, NEED_LOSS)
    elif LOSS == "squared_hinge":
        return _hinge(z, NEED_LOSS)
    else:
        tl.static_assert(LOSS == "asymmetric")
        return _asymmetric_negative(z, objective.gamma_neg, objective.clip)


@triton.jit
def mixed_terms(z, positive, objective, LOSS: tl.constexpr, NEED_LOSS: tl.constexpr):
    """(loss, derivative by z) of labels of which some are positives, as the int1 tile ``positive`` says."""
    if LOSS == "asymmetric":
        value, slope = _asymmetric_negative(z, objective.gamma_neg, objective.clip)
        positive_value, positive_slope = _asymmetric_positive(z, objective.gamma_pos)
        return tl.where(positive, positive_value, value), tl.where(positive, positive_slope, slope)
    else:
        # both losses of a positive are those of a negative at -z
        value, slope = negative_terms(tl.where(positive, -z, z), objective, LOSS, NEED_LOSS)
        return value, tl.where(positive, -slope, slope)
