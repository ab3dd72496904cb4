"""The sums over all pairs from the moments of the splits of a batch."""

import triton
import triton.language as tl

from ._moments_forward import farther, merge_streams
from ._tiles import load, position


@triton.jit
def _part(parts, mask):
    return tl.load(parts, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def _merge(weight, mean, m2, more, more_mean, more_m2):
    """Moments of two sets with means from one shift; in this order 0 never meets infinity."""
    total = weight + more
    share = more / tl.where(total > 0, total, 1.0)
    step = more_mean - mean
    return total, mean + step * share, m2 + more_m2 + (weight * share * step) * step


@triton.jit
def _finite(a, b):
    """Whether both are, and no NaN."""
    return tl.abs(a) + tl.abs(b) < float("inf")


@triton.jit
def _far(weight, delta, mean, m2, MOST: tl.constexpr):
    """Whether the shift is further from the mean than MOST root mean squares of the rows; `m2` is
    their spread, and what else a difference from them is made of."""
    step = tl.where(delta == 0, 1.0, delta)
    of_mean = mean / step
    spread = m2 / tl.where(weight > 0, weight, 1.0) / step / step
    return (delta != 0) & (of_mean * of_mean + spread < 1.0 / (MOST * MOST))


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "sample_splits", "component_splits", "S"],
    do_not_specialize_on_alignment=["partial_sums"],
)
def finish_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    counts,  # (4, S) int32, see Positions
    sample_parts,  # (sample_splits, 3, S, E) ACC
    component_parts,  # (component_splits, 4, S, E) ACC
    own_parts,  # (sample_splits, 3, S, E) ACC
    split_samples,  # (sample_splits, S) int32
    state,  # (4, S, E) ACC: delta, m2 of samples; delta, weight of components; NaN where lost
    partial_sums,  # (programs, 3) float64: of q, g, k, times 2, without lost columns
    sample_start,
    component_start,
    sample_splits,
    component_splits,
    S,
    E,
    tiles,
    EXCLUDE_DIAGONAL: tl.constexpr,
    SPARE: tl.constexpr,  # whether ACC has many more digits than the result
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    # What is left of a sum without its largest term, and how far a shift may be.
    LEFT: tl.constexpr = 2.0**-12 if SPARE else 0.5
    MOST: tl.constexpr = 2.0**10 if SPARE else 8.0
    tile, s, _ = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)
    inside = e < E
    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + e
    zeros = tl.zeros((FEATURES,), tl.float64)

    n = tl.zeros((1,), tl.float64)
    mean_y, m2_y, k = zeros, zeros, zeros
    for begin in range(0, sample_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        valid = split < sample_splits
        parts = sample_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
        use = valid[:, None] & inside[None, :]
        counted = tl.load(split_samples + split * S + s, mask=valid, other=0).to(tl.float64)
        k += tl.sum(_part(parts + 2 * plane, use), 0)
        of_rows = counted[:, None] + tl.zeros((ROWS, FEATURES), tl.float64)
        found = merge_streams(of_rows, _part(parts, use), _part(parts + plane, use))
        n, mean_y, m2_y = _merge(n, mean_y, m2_y, tl.sum(counted, 0), found[1], found[2])

    weight, mean_c, m2_c, g = zeros, zeros, zeros, zeros
    for begin in range(0, component_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        parts = component_parts + (split.to(tl.int64)[:, None] * 4 * plane + at[None, :])
        use = (split < component_splits)[:, None] & inside[None, :]
        g += tl.sum(_part(parts + 3 * plane, use), 0)
        delta, of_rows = _part(parts, use), _part(parts + 2 * plane, use)
        found = merge_streams(of_rows, delta, _part(parts + plane, use))
        weight, mean_c, m2_c = _merge(weight, mean_c, m2_c, found[0], found[1], found[2])

    samples, components = tl.load(counts + s), tl.load(counts + S + s)
    some = inside & (samples > 0) & (components > 0)
    y_row = sample_start + tl.load(counts + 2 * S + s)
    x_row = component_start + tl.load(counts + 3 * S + s)
    y_shift = load(y, y_row, s, e, some, tl.float64)
    x_shift = load(x, x_row, s, e, some, tl.float64)
    distance = (y_shift - x_shift) + (mean_y - mean_c)
    q = m2_y * weight + (n * weight * distance) * distance + n * m2_c
    lost = _far(n, mean_y, y_shift + mean_y, m2_y, MOST)
    # A sample is about sqrt v away from its component: the weights times that are their number.
    lost |= _far(weight, mean_c, x_shift + mean_c, m2_c + components, MOST)
    if EXCLUDE_DIAGONAL:
        diagonal, heaviest, farthest = zeros, zeros, zeros
        LOG_2PI: tl.constexpr = 1.8378770664093453
        for begin in range(0, sample_splits, ROWS):
            split = begin + tl.arange(0, ROWS)
            parts = own_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
            use = (split < sample_splits)[:, None] & inside[None, :]
            diagonal += tl.sum(_part(parts, use), 0)
            log_terms = tl.load(parts + plane, mask=use, other=float("inf")).to(tl.float64)
            heaviest = tl.maximum(heaviest, tl.exp(LOG_2PI - tl.min(log_terms, 0)))
            far = _part(parts + 2 * plane, use)
            farthest = farther(farthest, farther(tl.max(far, 0), tl.min(far, 0)))
        q -= diagonal
        # Of the samples the outlier is the one that is farthest from the shift, or the shift.
        own = tl.maximum(tl.abs(farthest - mean_y), tl.abs(mean_y))
        lost |= (own * own) * n > (1 - LEFT) * (n - 1) * m2_y
        lost |= heaviest > (1 - LEFT) * weight

    dtype: tl.constexpr = state.dtype.element_ty
    of_y, spread, of_c, of_weight = (
        mean_y.to(dtype),
        m2_y.to(dtype),
        mean_c.to(dtype),
        weight.to(dtype),
    )
    lost |= ~(_finite(of_y, spread) & _finite(of_c, of_weight) & _finite(m2_c, distance))
    lost &= some
    nan = float("nan")
    tl.store(state + at, tl.where(lost, nan, of_y), mask=inside)
    tl.store(state + plane + at, tl.where(lost, nan, spread), mask=inside)
    tl.store(state + 2 * plane + at, tl.where(lost, nan, of_c), mask=inside)
    tl.store(state + 3 * plane + at, tl.where(lost, nan, of_weight), mask=inside)
    some &= ~lost
    sums = partial_sums + tl.program_id(0) * 3
    tl.store(sums, tl.sum(tl.where(some, q, 0.0), 0))
    tl.store(sums + 1, tl.sum(tl.where(some, g, 0.0), 0))
    tl.store(sums + 2, tl.sum(tl.where(some, k, 0.0), 0))


@triton.jit(do_not_specialize=["programs"], do_not_specialize_on_alignment=["sums"])
def reduce_kernel(
    partial_sums,  # (programs, 3) float64
    sums,  # (3,) float64
    programs,
    BLOCK: tl.constexpr,
):
    q = tl.zeros((BLOCK,), tl.float64)
    g = tl.zeros((BLOCK,), tl.float64)
    k = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, programs, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        parts, inside = partial_sums + i * 3, i < programs
        q += tl.load(parts, mask=inside, other=0.0)
        g += tl.load(parts + 1, mask=inside, other=0.0)
        k += tl.load(parts + 2, mask=inside, other=0.0)
    tl.store(sums, tl.sum(q, 0) / 2)
    tl.store(sums + 1, tl.sum(g, 0) / 2)
    tl.store(sums + 2, tl.sum(k, 0) / 2)
