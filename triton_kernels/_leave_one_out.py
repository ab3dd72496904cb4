"""Every row against all others: the moments of both roles in one pass, and from them the sums over
all pairs without the pairs (i, i). In float64, as these are subtracted.

`leave_one_out` reads a range of rows and keeps, for each position and feature, the moments of every
split of the batch; `leave_one_out_finish` merges the splits and adds up over features. A tile has
ROWS rows: as many independent Welford streams.
"""

import triton
import triton.language as tl

from ._tiles import load, out_of_range, partners, position, two_sum, variance_terms


@triton.jit
def _merge_streams(weight, mean, m2):
    """Moments (ROWS, FEATURES) of the streams of a tile as those of their union (FEATURES,)."""
    total = tl.sum(weight, 0)
    merged = tl.sum(weight * mean, 0) / tl.where(total > 0, total, 1.0)
    deviation = mean - merged[None, :]
    # In this order no stream of weight 0 becomes 0 * inf.
    return total, merged, tl.sum(m2 + (weight * deviation) * deviation, 0)


@triton.jit
def _farther(a, b):
    """Of two deviations the larger one, with its sign."""
    return tl.where(tl.abs(b) > tl.abs(a), b, a)


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "S"],
    do_not_specialize_on_alignment=["sample_eps", "component_eps"],
)
def leave_one_out_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_eps,  # (), or None
    component_eps,  # ()
    sample_active,  # (rows, S) uint8
    component_active,  # (rows, S) uint8
    counts,  # (4, S) int32, see Positions
    sample_parts,  # (splits, 3, S, E) ACC: delta, NaN if out of range; m2, log-determinant terms
    component_parts,  # (splits, 4, S, E) ACC: the same, with the weight after m2
    own_parts,  # (splits, 3, S, E) ACC: q of the pairs (i, i), least log-term, farthest y - shift
    split_samples,  # (splits, S) int32: contributing samples
    start,
    rows,
    rows_per_split,
    S,
    E,
    tiles,
    OWN_STDS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    tile, s, split = position(tiles, S)
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    e = feature[None, :]
    first_row = tl.zeros((1, 1), tl.int32) + start
    samples, components = tl.load(counts + s), tl.load(counts + S + s)
    some = (samples > 0) & (components > 0) & (e < E)
    y_shift = load(y, first_row + tl.load(counts + 2 * S + s), s, e, some, ACC)
    x_shift = load(x, first_row + tl.load(counts + 3 * S + s), s, e, some, ACC)
    n = tl.zeros((ROWS, 1), ACC)
    mean_y = tl.zeros((ROWS, FEATURES), ACC)
    m2_y = tl.zeros((ROWS, FEATURES), ACC)
    log_i = tl.zeros((ROWS, FEATURES), ACC)
    weight = tl.zeros((ROWS, FEATURES), ACC)
    mean_c = tl.zeros((ROWS, FEATURES), ACC)
    m2_c = tl.zeros((ROWS, FEATURES), ACC)
    log_l = tl.zeros((ROWS, FEATURES), ACC)
    diagonal = tl.zeros((ROWS, FEATURES), ACC)
    least_log = tl.zeros((ROWS, FEATURES), tl.float32) + float("inf")
    largest_log = tl.zeros((ROWS, FEATURES), tl.float32)
    farthest = tl.zeros((ROWS, FEATURES), ACC)
    eps_l = tl.load(component_eps).to(ACC)
    if OWN_STDS:
        eps_i = tl.load(sample_eps).to(ACC)

    end = min((split + 1) * rows_per_split, rows)
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        at = index.to(tl.int64) * S + s
        here_i = tl.load(sample_active + at, mask=index < end, other=0) != 0
        here_l = tl.load(component_active + at, mask=index < end, other=0) != 0
        use_i = here_i & (e < E)
        use_l = here_l & (e < E)
        with_stds = use_l
        if OWN_STDS:
            with_stds = use_l | use_i
        sigma = load(stds, row, s, e, with_stds, ACC)
        sigma = tl.where(with_stds, sigma, 1.0)

        value = load(y, row, s, e, use_i, ACC)
        deviation_y = tl.where(use_i, value - y_shift, 0.0)
        n += here_i.to(ACC)
        step = deviation_y - mean_y
        mean_y += step * (here_i.to(ACC) / tl.where(n > 0, n, 1.0))
        m2_y += tl.where(use_i, step * (deviation_y - mean_y), 0.0)
        if OWN_STDS:
            _, log_terms = variance_terms(sigma, eps_i)
            largest_log = tl.maximum(largest_log, tl.abs(log_terms.to(tl.float32)))
            log_i += tl.where(use_i, partners(components, here_l, True, ACC) * log_terms, 0.0)

        centre = load(x, row, s, e, use_l, ACC) - x_shift
        centre += load(mu, row, s, e, use_l, ACC)
        deviation_c = tl.where(use_l, centre, 0.0)
        precision, log_terms = variance_terms(sigma, eps_l)
        largest_log = tl.maximum(largest_log, tl.abs(log_terms.to(tl.float32)))
        precision = tl.where(use_l, precision, 0.0)
        weight += precision
        step = deviation_c - mean_c
        mean_c += step * (precision / tl.where(weight > 0, weight, 1.0))
        m2_c += tl.where(use_l, (precision * step) * (deviation_c - mean_c), 0.0)
        log_l += tl.where(use_l, partners(samples, here_i, True, ACC) * log_terms, 0.0)

        distance = (deviation_y - deviation_c) + (y_shift - x_shift)
        diagonal += tl.where(use_i & use_l, (precision * distance) * distance, 0.0)
        found = tl.where(use_l, log_terms.to(tl.float32), float("inf"))
        least_log = tl.minimum(least_log, found)
        farthest = _farther(farthest, deviation_y)

    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + feature
    inside = feature < E
    odd = out_of_range(tl.max(largest_log, 0), ACC) > 0
    total, delta, m2 = _merge_streams(n + tl.zeros((ROWS, FEATURES), ACC), mean_y, m2_y)
    parts = sample_parts + split.to(tl.int64) * 3 * plane + at
    tl.store(parts, tl.where(odd, float("nan"), delta), mask=inside)
    tl.store(parts + plane, m2, mask=inside)
    tl.store(parts + 2 * plane, tl.sum(log_i, 0), mask=inside)
    tl.store(split_samples + split * S + s, tl.sum(tl.sum(n, 1), 0).to(tl.int32))
    total, delta, m2 = _merge_streams(weight, mean_c, m2_c)
    parts = component_parts + split.to(tl.int64) * 4 * plane + at
    tl.store(parts, tl.where(odd, float("nan"), delta), mask=inside)
    tl.store(parts + plane, m2, mask=inside)
    tl.store(parts + 2 * plane, total, mask=inside)
    tl.store(parts + 3 * plane, tl.sum(log_l, 0), mask=inside)
    parts = own_parts + split.to(tl.int64) * 3 * plane + at
    tl.store(parts, tl.sum(diagonal, 0), mask=inside)
    tl.store(parts + plane, tl.min(least_log, 0).to(ACC), mask=inside)
    farthest = _farther(tl.max(farthest, 0), tl.min(farthest, 0))
    tl.store(parts + 2 * plane, farthest, mask=inside)


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
    do_not_specialize=["start", "splits", "S"],
    do_not_specialize_on_alignment=["partial_sums"],
)
def leave_one_out_finish_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    counts,  # (4, S) int32, see Positions
    sample_parts,  # (splits, 3, S, E) ACC
    component_parts,  # (splits, 4, S, E) ACC
    own_parts,  # (splits, 3, S, E) ACC
    split_samples,  # (splits, S) int32
    state,  # (4, S, E) ACC, see `_store_state` in `_moments_finish.py`
    partial_sums,  # (programs, 3) float64: of q, g, k, times 2, without lost columns
    start,
    splits,
    S,
    E,
    tiles,
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
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        valid = split < splits
        parts = sample_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
        use = valid[:, None] & inside[None, :]
        counted = tl.load(split_samples + split * S + s, mask=valid, other=0).to(tl.float64)
        k += tl.sum(_part(parts + 2 * plane, use), 0)
        of_rows = counted[:, None] + tl.zeros((ROWS, FEATURES), tl.float64)
        found = _merge_streams(of_rows, _part(parts, use), _part(parts + plane, use))
        n, mean_y, m2_y = _merge(n, mean_y, m2_y, tl.sum(counted, 0), found[1], found[2])

    weight, mean_c, m2_c, g = zeros, zeros, zeros, zeros
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        parts = component_parts + (split.to(tl.int64)[:, None] * 4 * plane + at[None, :])
        use = (split < splits)[:, None] & inside[None, :]
        g += tl.sum(_part(parts + 3 * plane, use), 0)
        delta, of_rows = _part(parts, use), _part(parts + 2 * plane, use)
        found = _merge_streams(of_rows, delta, _part(parts + plane, use))
        weight, mean_c, m2_c = _merge(weight, mean_c, m2_c, found[0], found[1], found[2])

    samples, components = tl.load(counts + s), tl.load(counts + S + s)
    some = inside & (samples > 0) & (components > 0)
    y_row = start + tl.load(counts + 2 * S + s)
    x_row = start + tl.load(counts + 3 * S + s)
    y_shift = load(y, y_row, s, e, some, tl.float64)
    x_shift = load(x, x_row, s, e, some, tl.float64)
    mu_shift = load(mu, x_row, s, e, some, tl.float64)
    _, rest = two_sum(x_shift, mu_shift)
    distance = (y_shift - x_shift) + (mean_y - mean_c)
    q = m2_y * weight + (n * weight * distance) * distance + n * m2_c
    lost = _far(n, mean_y, y_shift + mean_y, m2_y, MOST)
    # A sample is about sqrt v away from its component: the weights times that are their number.
    lost |= _far(weight, mean_c, x_shift + mean_c, m2_c + components, MOST)
    diagonal, heaviest, farthest = zeros, zeros, zeros
    LOG_2PI: tl.constexpr = 1.8378770664093453
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        parts = own_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
        use = (split < splits)[:, None] & inside[None, :]
        diagonal += tl.sum(_part(parts, use), 0)
        log_terms = tl.load(parts + plane, mask=use, other=float("inf")).to(tl.float64)
        heaviest = tl.maximum(heaviest, tl.exp(LOG_2PI - tl.min(log_terms, 0)))
        far = _part(parts + 2 * plane, use)
        farthest = _farther(farthest, _farther(tl.max(far, 0), tl.min(far, 0)))
    q -= diagonal
    # Of the samples the outlier is the one that is farthest from the shift, or the shift.
    own = tl.maximum(tl.abs(farthest - mean_y), tl.abs(mean_y))
    lost |= (own * own) * n > (1 - LEFT) * (n - 1) * m2_y
    lost |= heaviest > (1 - LEFT) * weight

    dtype: tl.constexpr = state.dtype.element_ty
    of_y, spread, of_c, of_weight = (
        mean_y.to(dtype),
        m2_y.to(dtype),
        (mean_c - mu_shift + rest).to(dtype),
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
