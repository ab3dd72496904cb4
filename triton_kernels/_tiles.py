"""What the kernels share: addresses in 64 bits, and the variance of one standard deviation."""

import triton
import triton.language as tl


@triton.jit
def cast(value, dtype: tl.constexpr):
    """To `dtype`; between 16 and 64 bits by way of 32."""
    if value.dtype.primitive_bitwidth == 16 or dtype.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    return value.to(dtype)


@triton.jit
def corner(tensor, row, s, e, stride_row, stride_s, stride_e):
    """Pointers to a tile of `tensor` (rows, S, E) at (row, s, e), in 64 bits."""
    offset = row.to(tl.int64) * stride_row + s.to(tl.int64) * stride_s
    return tensor + offset + e.to(tl.int64) * stride_e


@triton.jit
def load(tensor, row, s, e, stride_row, stride_s, stride_e, mask, ACC: tl.constexpr):
    """Tile of `tensor` (rows, S, E) at (row, s, e) in ACC; where not `mask`, 0 and no traffic."""
    at = corner(tensor, row, s, e, stride_row, stride_s, stride_e)
    return cast(tl.load(at, mask=mask, other=0.0), ACC)


@triton.jit
def store_rows(tensor, index, s, e, S, E, value, mask):
    """Into a contiguous `tensor` (rows, S, E)."""
    offset = (index.to(tl.int64) * S + s) * E
    tl.store(tensor + offset + e, cast(value, tensor.dtype.element_ty), mask=mask)


@triton.jit
def position(tiles, S):
    """Feature tile, position, and index along the batch of this program of `tiles * S * batch`."""
    program = tl.program_id(0)
    return program % tiles, (program // tiles) % S, program // tiles // S


@triton.jit
def partners(count, here, EXCLUDE_DIAGONAL: tl.constexpr, ACC: tl.constexpr):
    """How many of `count` rows of the other role a row meets: not itself, where it is `here`."""
    if EXCLUDE_DIAGONAL:
        return (count - here.to(tl.int32)).to(ACC)
    else:
        return count.to(ACC)


@triton.jit
def precision_scale(eps, ACC: tl.constexpr):
    """A power of two that keeps `scale / v` in range for every v >= eps, see the plain variance."""
    if tl.float64 == ACC:
        return 1.0
    else:
        return tl.where(eps < 2.0**-100, 2.0**-60, 1.0)


@triton.jit
def variance_terms(sigma, eps, ACC: tl.constexpr):
    """Of v = sigma^2 + eps: `scale / v`, `sigma / v`, and `log v + log(2 pi)`.

    A square that overflows is taken of `sigma * 2^-64`; `scale / v` is never 0, so that an infinite
    distance times it is infinite and not NaN.
    """
    LOG_2PI: tl.constexpr = 1.8378770664093453
    LOG_2_128: tl.constexpr = 88.722839111673
    large = sigma * sigma + eps == float("inf")
    shrink = tl.where(large, 2.0**-64, 1.0).to(ACC)
    shrunk = sigma * shrink
    v = shrunk * shrunk + eps * (shrink * shrink)
    # Not by way of 1 / v, which overflows first.
    precision = precision_scale(eps, ACC) / v * shrink * shrink
    precision = tl.maximum(precision, 1e-45, propagate_nan=tl.PropagateNan.ALL).to(ACC)
    log_terms = tl.log(v) + large.to(ACC) * LOG_2_128 + LOG_2PI
    return precision, shrunk / v * shrink, log_terms
