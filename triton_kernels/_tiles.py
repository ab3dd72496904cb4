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
def multiple(size, UNIT: tl.constexpr):
    """A size that is a multiple of UNIT, so that the compiler knows it."""
    return size // UNIT * UNIT


@triton.jit
def stride(tensor, AXIS: tl.constexpr):
    """Of a `strided` tensor along an axis that is not its last, in 64 bits."""
    UNIT: tl.constexpr = tensor[-1]
    return tl.full((), (tensor[AXIS + 1] >> 1) + 1, tl.int64) * UNIT


@triton.jit
def corner(tensor, row, s, e):
    """Pointers to a tile of a `strided` tensor (rows, S, E) at (row, s, e), in 64 bits."""
    offset = row.to(tl.int64) * stride(tensor, 0) + s.to(tl.int64) * stride(tensor, 1)
    return tensor[0] + offset + e.to(tl.int64) * tensor[3]


@triton.jit
def load(tensor, row, s, e, mask, ACC: tl.constexpr):
    """Tile of a `strided` tensor (rows, S, E) in ACC; where not `mask`, 0 and no traffic."""
    at = corner(tensor, row, s, e)
    return cast(tl.load(at, mask=mask, other=0.0), ACC)


@triton.jit
def load_mask(tensor, row, s, mask):
    """Of a `strided` mask (rows, S), whether it is active at (row, s); False where not `mask`."""
    at = tensor[0] + row.to(tl.int64) * stride(tensor, 0) + s.to(tl.int64) * tensor[2]
    return tl.load(at, mask=mask, other=0) != 0


@triton.jit
def contributing(flags, row, s, S, end):
    """Whether rows before `end` contribute at s, of `flags` (rows, S)."""
    return tl.load(flags + (row.to(tl.int64) * S + s), mask=row < end, other=0) != 0


@triton.jit
def store_rows(tensor, index, s, e, S, E, value, mask):
    """Into a contiguous `tensor` (rows, S, E), unless it is None."""
    if tensor is not None:
        offset = (index.to(tl.int64) * S + s) * E
        tl.store(tensor + offset + e, cast(value, tensor.dtype.element_ty), mask=mask)


@triton.jit
def add_rows(tensor, index, s, e, S, E, value, add, mask):
    """As `store_rows`, on top of what is there where `add` is not 0."""
    if tensor is not None:
        at = tensor + ((index.to(tl.int64) * S + s) * E + e)
        before = tl.load(at, mask=mask & (add != 0), other=0.0)
        tl.store(at, cast(value + cast(before, value.dtype), tensor.dtype.element_ty), mask=mask)


@triton.jit
def store_sums(sums, number, of_q, of_g, of_k):
    """Of one program, into (programs, 3) float64."""
    sums += number * 3
    tl.store(sums, of_q)
    tl.store(sums + 1, of_g)
    tl.store(sums + 2, of_k)


@triton.jit
def store_state(state, place, lost, delta_y, m2_y, delta_c, weight):
    """Of columns (FEATURES,) into (4, S, E), NaN where they are lost."""
    tile, s, S, E = place
    e = tile * lost.shape[0] + tl.arange(0, lost.shape[0])
    plane = S.to(tl.int64) * E
    to = state + s.to(tl.int64) * E + e
    nan = float("nan")
    dtype: tl.constexpr = state.dtype.element_ty
    tl.store(to, tl.where(lost, nan, delta_y).to(dtype), mask=e < E)
    tl.store(to + plane, tl.where(lost, nan, m2_y).to(dtype), mask=e < E)
    tl.store(to + 2 * plane, tl.where(lost, nan, delta_c).to(dtype), mask=e < E)
    tl.store(to + 3 * plane, tl.where(lost, nan, weight).to(dtype), mask=e < E)


@triton.jit
def position(tiles, S):
    """Feature tile, position, and index along the batch of this program of `tiles * S * batch`."""
    return position_of(tl.program_id(0), tiles, S)


@triton.jit
def position_of(program, tiles, S):
    """The same of a program by its number."""
    return program % tiles, (program // tiles) % S, program // tiles // S


@triton.jit
def two_sum(a, b):
    """a + b, and its rounding error (Knuth, The Art of Computer Programming, 4.2.2)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@triton.jit
def partners(count, here, EXCLUDE_DIAGONAL: tl.constexpr, ACC: tl.constexpr):
    """How many of `count` rows of the other role a row meets: not itself, where it is `here`."""
    if EXCLUDE_DIAGONAL:
        return (count - here.to(tl.int32)).to(ACC)
    else:
        return count.to(ACC)


@triton.jit
def variance_terms(sigma, eps):
    """Of v = sigma^2 + eps: `1 / v` and `log v + log(2 pi)`."""
    LOG_2PI: tl.constexpr = 1.8378770664093453
    v = sigma * sigma + eps
    return 1.0 / v, tl.log(v) + LOG_2PI


@triton.jit
def out_of_range(log_terms, ACC: tl.constexpr):
    """Whether a number is beyond what the largest |log v + log(2 pi)| of a regular call may be: v,
    1 / v, and these times a square that counts beside them, are far from the ends of ACC."""
    LIMIT: tl.constexpr = 350.0 if tl.float64 == ACC else 43.0
    return (log_terms > LIMIT).to(tl.int32)


@triton.jit
def root_terms(sigma, eps):
    """`sqrt v` > 0 and `log v + log(2 pi)`, in float64, where no square may leave the range."""
    LOG_2PI: tl.constexpr = 1.8378770664093453
    a, b = tl.abs(sigma), tl.sqrt(eps) + tl.zeros_like(sigma)
    large = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    ratio = tl.where(large > 0, tl.minimum(a, b) / large, 0.0)
    root = large * tl.sqrt(1.0 + ratio * ratio)
    return tl.where(root == 0, 2.0**-1074, root), 2.0 * tl.log(root) + LOG_2PI


@triton.jit
def weighted(upstream, pull):
    """Their product; select, so that an upstream gradient of 0 does not meet an overflow."""
    return tl.where(upstream == 0, 0.0, upstream * pull)
