"""Moments of both roles in one pass over the inputs, and from them the sums over all pairs.

Three steps: `accumulate` reads a range of rows and keeps, for each position and feature, the
moments of every split of the batch; `finish` merges the splits and adds up over features; `reduce`
adds up the programs of `finish`. No atomics: every number is written by one program. Columns in
which a variance or a sum is out of range are left to `_moments_of_pairs.py`.

A tile has ROWS rows: as many independent Welford streams. All streams, splits and the backward pass
measure deviations from the same shift, the first contributing row, so that they merge by plain
weighted means (Chan, Golub & LeVeque 1979).
"""

import triton
import triton.language as tl

from ._tiles import load, out_of_range, partners, position, variance_terms


@triton.jit
def merge_streams(weight, mean, m2):
    """Moments (ROWS, FEATURES) of the streams of a tile as those of their union (FEATURES,)."""
    total = tl.sum(weight, 0)
    merged = tl.sum(weight * mean, 0) / tl.where(total > 0, total, 1.0)
    deviation = mean - merged[None, :]
    # In this order no stream of weight 0 becomes 0 * inf.
    return total, merged, tl.sum(m2 + (weight * deviation) * deviation, 0)


@triton.jit
def farther(a, b):
    """Of two deviations the larger one, with its sign."""
    return tl.where(tl.abs(b) > tl.abs(a), b, a)


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "S"],
    do_not_specialize_on_alignment=["sample_eps", "component_eps"],
)
def accumulate_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_eps,  # ()
    component_eps,  # ()
    sample_active,  # (rows, S) uint8, of the mixture in which these rows are samples
    component_active,  # (rows, S) uint8, of the one in which they are components
    sample_counts,  # (4, S) int32, of the same mixtures, see Positions
    component_counts,
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
    SAMPLES: tl.constexpr,
    OWN_STDS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    tile, s, split = position(tiles, S)
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    e = feature[None, :]
    first_row = tl.zeros((1, 1), tl.int32) + start
    if SAMPLES:
        samples = tl.load(sample_counts + s)
        partners_of_samples = tl.load(sample_counts + S + s)
        y_shift = load(
            y, first_row + tl.load(sample_counts + 2 * S + s), s, e, (samples > 0) & (e < E), ACC
        )
        n = tl.zeros((ROWS, 1), ACC)
        mean_y = tl.zeros((ROWS, FEATURES), ACC)
        m2_y = tl.zeros((ROWS, FEATURES), ACC)
        log_i = tl.zeros((ROWS, FEATURES), ACC)
    if COMPONENTS:
        components = tl.load(component_counts + S + s)
        partners_of_components = tl.load(component_counts + s)
        x_shift = load(
            x,
            first_row + tl.load(component_counts + 3 * S + s),
            s,
            e,
            (components > 0) & (e < E),
            ACC,
        )
        weight = tl.zeros((ROWS, FEATURES), ACC)
        mean_c = tl.zeros((ROWS, FEATURES), ACC)
        m2_c = tl.zeros((ROWS, FEATURES), ACC)
        log_l = tl.zeros((ROWS, FEATURES), ACC)
        eps_l = tl.load(component_eps).to(ACC)
    if EXCLUDE_DIAGONAL:
        diagonal = tl.zeros((ROWS, FEATURES), ACC)
        least_log = tl.zeros((ROWS, FEATURES), tl.float32) + float("inf")
        farthest = tl.zeros((ROWS, FEATURES), ACC)
    if OWN_STDS:
        eps_i = tl.load(sample_eps).to(ACC)
    if OWN_STDS or COMPONENTS:
        largest_log = tl.zeros((ROWS, FEATURES), tl.float32)

    end = min((split + 1) * rows_per_split, rows)
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        at = index.to(tl.int64) * S + s
        here_i = tl.zeros((ROWS, 1), tl.int1)
        here_l = tl.zeros((ROWS, 1), tl.int1)
        if SAMPLES:
            here_i = tl.load(sample_active + at, mask=index < end, other=0) != 0
        if COMPONENTS:
            here_l = tl.load(component_active + at, mask=index < end, other=0) != 0
        with_stds = here_l
        if OWN_STDS:
            with_stds = with_stds | here_i
        if OWN_STDS or COMPONENTS:
            sigma = load(stds, row, s, e, with_stds & (e < E), ACC)
            sigma = tl.where(with_stds & (e < E), sigma, 1.0)
        if SAMPLES:
            use_i = here_i & (e < E)
            value = load(y, row, s, e, use_i, ACC)
            deviation_y = tl.where(use_i, value - y_shift, 0.0)
            n += here_i.to(ACC)
            step = deviation_y - mean_y
            mean_y += step * (here_i.to(ACC) / tl.where(n > 0, n, 1.0))
            m2_y += tl.where(use_i, step * (deviation_y - mean_y), 0.0)
            if OWN_STDS:
                _, log_terms = variance_terms(sigma, eps_i)
                largest_log = tl.maximum(largest_log, tl.abs(log_terms.to(tl.float32)))
                others = partners(partners_of_samples, here_l, EXCLUDE_DIAGONAL, ACC)
                log_i += tl.where(use_i, others * log_terms, 0.0)
        if COMPONENTS:
            use_l = here_l & (e < E)
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
            others = partners(partners_of_components, here_i, EXCLUDE_DIAGONAL, ACC)
            log_l += tl.where(use_l, others * log_terms, 0.0)
        if EXCLUDE_DIAGONAL:
            distance = (deviation_y - deviation_c) + (y_shift - x_shift)
            diagonal += tl.where(use_i & use_l, (precision * distance) * distance, 0.0)
            found = tl.where(use_l, log_terms.to(tl.float32), float("inf"))
            least_log = tl.minimum(least_log, found)
            farthest = farther(farthest, deviation_y)

    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + feature
    inside = feature < E
    odd = inside & False
    if OWN_STDS or COMPONENTS:
        odd = out_of_range(tl.max(largest_log, 0), ACC) > 0
    if SAMPLES:
        total, delta, m2 = merge_streams(n + tl.zeros((ROWS, FEATURES), ACC), mean_y, m2_y)
        parts = sample_parts + split.to(tl.int64) * 3 * plane + at
        tl.store(parts, tl.where(odd, float("nan"), delta), mask=inside)
        tl.store(parts + plane, m2, mask=inside)
        tl.store(parts + 2 * plane, tl.sum(log_i, 0), mask=inside)
        tl.store(split_samples + split * S + s, tl.sum(tl.sum(n, 1), 0).to(tl.int32))
    if COMPONENTS:
        total, delta, m2 = merge_streams(weight, mean_c, m2_c)
        parts = component_parts + split.to(tl.int64) * 4 * plane + at
        tl.store(parts, tl.where(odd, float("nan"), delta), mask=inside)
        tl.store(parts + plane, m2, mask=inside)
        tl.store(parts + 2 * plane, total, mask=inside)
        tl.store(parts + 3 * plane, tl.sum(log_l, 0), mask=inside)
    if EXCLUDE_DIAGONAL:
        parts = own_parts + split.to(tl.int64) * 3 * plane + at
        tl.store(parts, tl.sum(diagonal, 0), mask=inside)
        tl.store(parts + plane, tl.min(least_log, 0).to(ACC), mask=inside)
        farthest = farther(tl.max(farthest, 0), tl.min(farthest, 0))
        tl.store(parts + 2 * plane, farthest, mask=inside)
