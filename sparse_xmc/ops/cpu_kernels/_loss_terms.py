"""Loss terms of single logits, for what is rare or has no vector form (the asymmetric loss)."""

import math

from numba.extending import register_jitable


@register_jitable
def softplus(y):
    """``log(1 + exp(y))``."""
    return max(y, 0.0) + math.log1p(math.exp(-abs(y)))


@register_jitable
def sigmoid(y):
    e = math.exp(-abs(y))
    return (1.0 if y >= 0 else e) / (1.0 + e)


@register_jitable
def _power(base, exponent):
    """Whole exponents without a logarithm."""
    if exponent == 0:
        return 1.0
    if exponent == 1:
        return base
    if exponent == 2:
        return base * base
    if exponent == 4:
        return base * base * (base * base)
    return math.pow(base, exponent)


@register_jitable
def asymmetric_positive(z, gamma):
    """(loss, derivative): ``(1 - p)^gamma softplus(-z)``."""
    value, p, q = softplus(-z), sigmoid(z), sigmoid(-z)
    factor = _power(q, gamma)
    return factor * value, -factor * (gamma * p * value + q)


@register_jitable
def asymmetric_negative(z, gamma, clip):
    """(loss, derivative): ``q^gamma (-log(1 - q))`` with ``q = max(p - clip, 0)``."""
    p, rest = sigmoid(z), sigmoid(-z)
    if clip == 0:
        value, slope, q = softplus(z), p, p
    else:
        q = p - clip
        if q <= 0:
            return 0.0, 0.0
        value = -math.log1p(-q) if q < 0.5 else -math.log(rest + clip)
        slope = p * rest / (rest + clip)
    if q == 0:  # underflow: with a fractional gamma below 1 the derivative would be inf * 0
        return 0.0, 0.0
    factor = _power(q, gamma)
    focus = gamma * factor / q * value * p * rest if gamma != 0 else 0.0
    return factor * value, focus + factor * slope
