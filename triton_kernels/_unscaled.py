"""How an irregular call keeps its moments: as roots, which the type of the inputs always holds.

Of a mean and a squared deviation of the samples their delta and sqrt(m2), of the components their
delta and 1 / sqrt(weight), infinite where nothing weighs. Sums of squares may be larger than any
input still: those beside which the sign is negative are kept times 2^-32.
"""

import triton
import triton.language as tl


@triton.jit
def encoded(delta, root, largest, dtype: tl.constexpr):
    """`delta` and `root` >= 0 in `dtype`; `largest`: whether they fit as they are."""
    HUGE: tl.constexpr = 2.0**1000 if tl.float64 == dtype else 2.0**120
    LEAST: tl.constexpr = 2.0**-1074 if tl.float64 == dtype else 2.0**-149
    huge = largest >= HUGE
    factor = tl.where(huge, 2.0**-32, 1.0)
    scaled = root * factor
    # A weight must not become infinite, a sign not be lost.
    scaled = tl.where((huge | (root > 0)) & (scaled < LEAST), LEAST, scaled)
    return (delta * factor).to(dtype), tl.where(huge, -scaled, scaled).to(dtype)


@triton.jit
def decoded(delta, root):
    """What `encoded` was given, in float64."""
    delta, root = delta.to(tl.float64), root.to(tl.float64)
    factor = tl.where(root < 0, 2.0**32, 1.0)
    return delta * factor, tl.abs(root) * factor


@triton.jit
def weight_of(root, unit):
    """The weight, times unit^2, of which `root` is 1 / sqrt(weight), or 0 where nothing is."""
    ratio = tl.where(root == 0, 0.0, unit / root)
    return ratio * ratio
