"""An exponential function with the same bits on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]


def exponential(x: Float64s) -> Float64s:
    """e^x for x <= 0, the same on every machine; 0 below -708.

    2^k e^r with |r| <= ln(2) / 2, and e^r by its Taylor polynomial of degree 13: accurate to 2 units in the last place.
    """
    bounded = np.maximum(x, -708.0)
    k = (bounded * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
    r = (bounded - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    p = np.full_like(r, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        p = p * r + 1 / math.factorial(n)
    return np.where(x > -708.0, np.ldexp(p, k.astype(np.int32)), 0.0)
