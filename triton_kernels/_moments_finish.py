"""The sums over all pairs from the moments of the splits of a batch."""

import triton
import triton.language as tl

from ._moments_forward import merge_streams
from ._tiles import finite, load, position
from ._unscaled import decoded, encoded, weight_of


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
def _state_of(mean_y, m2_y, mean_c, weight, unit, careful, state):
    """What the state holds, `encoded` or not."""
    dtype: tl.constexpr = state.dtype.element_ty
    delta_y, root = mean_y * unit, tl.sqrt(m2_y) * unit
    delta_c, inverse = mean_c * unit, unit / tl.sqrt(weight)
    largest = tl.maximum(tl.maximum(tl.abs(delta_y), tl.abs(delta_c)), root)
    small_y, small_root = encoded(delta_y, root, largest, dtype)
    small_c, small_root = encoded(delta_c, root, largest, dtype)
    inverse = encoded(inverse, inverse, tl.zeros_like(unit), dtype)[1]
    return (
        tl.where(careful, small_y, mean_y.to(dtype)),
        tl.where(careful, small_root, m2_y.to(dtype)),
        tl.where(careful, small_c, mean_c.to(dtype)),
        tl.where(careful, -inverse, weight.to(dtype)),
    )


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "sample_splits", "component_splits", "S"]
)
def finish_kernel(
    y,  # (rows, S, E)
    x,  # (rows, S, E)
    counts,  # (4, S) int32, see Positions
    sample_parts,  # (sample_splits, 3, S, E) ACC
    component_parts,  # (component_splits, 4, S, E) ACC
    diagonal_parts,  # (sample_splits, S, E) ACC
    split_samples,  # (sample_splits, S) int32
    irregular,  # (1,) int32: whether parts and state are `encoded`
    state,  # (4, S, E) ACC: delta, m2 of samples; delta, weight of components, < 0 if `encoded`
    partial_sums,  # (programs, 3) float64: of q, g, k, times 2
    y_stride_row,
    y_stride_s,
    y_stride_e,
    x_stride_row,
    x_stride_s,
    x_stride_e,
    sample_start,
    component_start,
    sample_splits,
    component_splits,
    S,
    E,
    tiles,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    tile, s, _ = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)
    inside = e < E
    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + e
    zeros = tl.zeros((FEATURES,), tl.float64)
    careful = tl.load(irregular) != 0
    unit = zeros + 1.0
    if careful:  # of all values: the least 1 / sqrt(weight)
        unit = zeros + float("inf")
        for split in range(0, component_splits):
            parts = component_parts + (split * (4 * plane) + at)
            root = tl.load(parts + 2 * plane, mask=inside, other=float("inf"))
            unit = tl.minimum(unit, decoded(root, root)[1])
        unit = tl.where(unit < float("inf"), unit, 1.0)

    n = tl.zeros((1,), tl.float64)
    mean_y, m2_y, k = zeros, zeros, zeros
    for begin in range(0, sample_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        valid = split < sample_splits
        parts = sample_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
        use = valid[:, None] & inside[None, :]
        counted = tl.load(split_samples + split * S + s, mask=valid, other=0).to(tl.float64)
        k += tl.sum(_part(parts + 2 * plane, use), 0)
        delta, m2 = _part(parts, use), _part(parts + plane, use)
        if careful:
            delta, root = decoded(delta, m2)
            delta, m2 = delta / unit, (root / unit) * (root / unit)
        of_rows = counted[:, None] + tl.zeros((ROWS, FEATURES), tl.float64)
        found = merge_streams(of_rows, delta, m2)
        n, mean_y, m2_y = _merge(n, mean_y, m2_y, tl.sum(counted, 0), found[1], found[2])

    weight, mean_c, m2_c, g = zeros, zeros, zeros, zeros
    for begin in range(0, component_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        parts = component_parts + (split.to(tl.int64)[:, None] * 4 * plane + at[None, :])
        use = (split < component_splits)[:, None] & inside[None, :]
        g += tl.sum(_part(parts + 3 * plane, use), 0)
        delta, of_rows = _part(parts, use), _part(parts + 2 * plane, use)
        if careful:
            delta, root = decoded(delta, of_rows)
            delta, of_rows = delta / unit, weight_of(root, unit)
        found = merge_streams(of_rows, delta, _part(parts + plane, use))
        weight, mean_c, m2_c = _merge(weight, mean_c, m2_c, found[0], found[1], found[2])

    samples, components = tl.load(counts + s), tl.load(counts + S + s)
    some = inside & (samples > 0) & (components > 0)
    y_row = sample_start + tl.load(counts + 2 * S + s)
    x_row = component_start + tl.load(counts + 3 * S + s)
    y_shift = load(y, y_row, s, e, y_stride_row, y_stride_s, y_stride_e, some, tl.float64)
    x_shift = load(x, x_row, s, e, x_stride_row, x_stride_s, x_stride_e, some, tl.float64)
    between = finite(y_shift) - finite(x_shift)
    if careful:
        between = between / unit
    distance = between + (mean_y - mean_c)
    q = m2_y * weight + (n * weight * distance) * distance
    q = tl.where(weight == 0, 0.0, q) + n * m2_c
    if EXCLUDE_DIAGONAL:
        for begin in range(0, sample_splits, ROWS):
            split = begin + tl.arange(0, ROWS)
            parts = diagonal_parts + (split.to(tl.int64)[:, None] * plane + at[None, :])
            use = (split < sample_splits)[:, None] & inside[None, :]
            q -= tl.sum(_part(parts, use), 0)
    of_y, spread, of_c, of_weight = _state_of(mean_y, m2_y, mean_c, weight, unit, careful, state)
    tl.store(state + at, of_y, mask=inside)
    tl.store(state + plane + at, spread, mask=inside)
    tl.store(state + 2 * plane + at, of_c, mask=inside)
    tl.store(state + 3 * plane + at, of_weight, mask=inside)
    sums = partial_sums + tl.program_id(0) * 3
    tl.store(sums, tl.sum(tl.where(some, q, 0.0), 0))
    tl.store(sums + 1, tl.sum(tl.where(some, g, 0.0), 0))
    tl.store(sums + 2, tl.sum(tl.where(some, k, 0.0), 0))


@triton.jit(
    do_not_specialize=["programs"],
    do_not_specialize_on_alignment=["sums"],
)
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
