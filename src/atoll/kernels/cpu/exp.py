# mypy: disable-error-code="untyped-decorator"
"""The exponential function in a form that becomes vector instructions."""

from __future__ import annotations

import numpy as np
from numba import njit

_LOWEST = np.float32(-87)
_HIGHEST = np.float32(88)
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
_C0 = np.float32(1.9875691500e-4)
_C1 = np.float32(1.3981999507e-3)
_C2 = np.float32(8.3334519073e-3)
_C3 = np.float32(4.1665795894e-2)
_C4 = np.float32(1.6666665459e-1)
_C5 = np.float32(5.0000001201e-1)
_ONE = np.float32(1)
_BIAS = np.int32(127)
_MANTISSA_BITS = np.int32(23)


@njit(inline="always")
def polynomial(rest: np.float32) -> np.float32:
    """e ** rest for at most half of ln 2 in either direction; rounds as its caller does. Source: Cephes' expf."""
    y = ((((_C0 * rest + _C1) * rest + _C2) * rest + _C3) * rest + _C4) * rest + _C5
    return y * rest * rest + rest + _ONE


# No reassociation: it would join the two halves of ln 2 and lose what the second one is for.
@njit(fastmath={"contract"}, nogil=True)
def exp(x: np.float32) -> np.float32:
    """e ** x to a few units in the last place, within [e ** -87, e ** 88]; NaN stays NaN. For kernels."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    half = np.float32(0.5) if x > 0 else np.float32(-0.5)
    whole = np.int32(x * LOG2_E + half)
    steps = np.float32(whole)
    rest = x - steps * LN2_HIGH - steps * LN2_LOW
    return polynomial(rest) * np.int32((whole + _BIAS) << _MANTISSA_BITS).view(np.float32)
