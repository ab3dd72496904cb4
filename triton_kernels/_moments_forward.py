"""Moments of both roles in one pass over the inputs, and from them the sums over all pairs.

Three kernels: `accumulate` reads a range of rows and keeps, for each position and feature, the
moments of every split of the batch; `finish` merges the splits and adds up over features; `reduce`
adds up the programs of `finish`. No atomics: every number is written once, by one program.

A tile has ROWS rows: as many independent Welford streams. All streams, splits and the backward pass
measure deviations from the same shift, the first contributing row, so that they merge by plain
weighted means (Chan, Golub & LeVeque 1979).
"""

import triton
import triton.language as tl

from ._tiles import load, partners, position, precision_scale, variance_terms


@triton.jit
def _merge_streams(weight, mean, m2):
    """Moments (ROWS, FEATURES) of the streams of a tile as those of their union (FEATURES,)."""
    total = tl.sum(weight, 0)
    merged = tl.sum(weight * mean, 0) / tl.where(total > 0, total, 1.0)
    deviation = mean - merged[None, :]
    # In this order no stream of weight 0 becomes 0 * inf.
    return total, merged, tl.sum(m2 + (weight * deviation) * deviation, 0)


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "S"],
    do_not_specialize_on_alignment=["sample_eps", "component_eps"],
)
def accumulate_kernel(
    y,  # (rows, S, E)
    x,  # (rows, S, E)
    mu,  # (rows, S, E)
    stds,  # (rows, S, E)
    sample_eps,  # ()
    component_eps,  # ()
    sample_active,  # (rows, S) uint8, of the mixture in which these rows are samples
    component_active,  # (rows, S) uint8, of the one in which they are components
    sample_counts,  # (4, S) int32, of the same mixtures, see Positions
    component_counts,
    sample_parts,  # (splits, 3, S, E) ACC: delta, m2, log-determinant terms
    component_parts,  # (splits, 4, S, E) ACC: delta, m2, weight, log-determinant terms
    diagonal_parts,  # (splits, S, E) ACC: squared distance of the pairs (i, i)
    split_samples,  # (splits, S) int32: contributing samples
    y_stride_row,
    y_stride_s,
    y_stride_e,
    x_stride_row,
    x_stride_s,
    x_stride_e,
    mu_stride_row,
    mu_stride_s,
    mu_stride_e,
    stds_stride_row,
    stds_stride_s,
    stds_stride_e,
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
            y,
            first_row + tl.load(sample_counts + 2 * S + s),
            s,
            e,
            y_stride_row,
            y_stride_s,
            y_stride_e,
            (samples > 0) & (e < E),
            ACC,
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
            x_stride_row,
            x_stride_s,
            x_stride_e,
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
    if OWN_STDS:
        eps_i = tl.load(sample_eps).to(ACC)

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
            sigma = load(
                stds,
                row,
                s,
                e,
                stds_stride_row,
                stds_stride_s,
                stds_stride_e,
                with_stds & (e < E),
                ACC,
            )
            sigma = tl.where(with_stds & (e < E), sigma, 1.0)
        if SAMPLES:
            use_i = here_i & (e < E)
            value = load(y, row, s, e, y_stride_row, y_stride_s, y_stride_e, use_i, ACC)
            deviation_y = tl.where(use_i, value - y_shift, 0.0)
            n += here_i.to(ACC)
            step = deviation_y - mean_y
            mean_y += step * (here_i.to(ACC) / tl.where(n > 0, n, 1.0))
            m2_y += tl.where(use_i, step * (deviation_y - mean_y), 0.0)
            if OWN_STDS:
                _, _, log_terms = variance_terms(sigma, eps_i, ACC)
                others = partners(partners_of_samples, here_l, EXCLUDE_DIAGONAL, ACC)
                log_i += tl.where(use_i, others * log_terms, 0.0)
        if COMPONENTS:
            use_l = here_l & (e < E)
            centre = load(x, row, s, e, x_stride_row, x_stride_s, x_stride_e, use_l, ACC) - x_shift
            centre += load(mu, row, s, e, mu_stride_row, mu_stride_s, mu_stride_e, use_l, ACC)
            deviation_c = tl.where(use_l, centre, 0.0)
            precision, _, log_terms = variance_terms(sigma, eps_l, ACC)
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

    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + feature
    if SAMPLES:
        total, delta, m2 = _merge_streams(n + tl.zeros((ROWS, FEATURES), ACC), mean_y, m2_y)
        parts = sample_parts + split.to(tl.int64) * 3 * plane + at
        tl.store(parts, delta, mask=feature < E)
        tl.store(parts + plane, m2, mask=feature < E)
        tl.store(parts + 2 * plane, tl.sum(log_i, 0), mask=feature < E)
        tl.store(split_samples + split * S + s, tl.sum(tl.sum(n, 1), 0).to(tl.int32))
    if COMPONENTS:
        total, delta, m2 = _merge_streams(weight, mean_c, m2_c)
        parts = component_parts + split.to(tl.int64) * 4 * plane + at
        tl.store(parts, delta, mask=feature < E)
        tl.store(parts + plane, m2, mask=feature < E)
        tl.store(parts + 2 * plane, total, mask=feature < E)
        tl.store(parts + 3 * plane, tl.sum(log_l, 0), mask=feature < E)
    if EXCLUDE_DIAGONAL:
        parts = diagonal_parts + split.to(tl.int64) * plane + at
        tl.store(parts, tl.sum(diagonal, 0), mask=feature < E)


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
    state,  # (4, S, E) ACC: delta, m2 of the samples, delta, weight of the components
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

    n = tl.zeros((1,), tl.float64)
    mean_y, m2_y, k = zeros, zeros, zeros
    for begin in range(0, sample_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        valid = split < sample_splits
        parts = sample_parts + (split.to(tl.int64)[:, None] * 3 * plane + at[None, :])
        use = valid[:, None] & inside[None, :]
        counted = tl.load(split_samples + split * S + s, mask=valid, other=0).to(tl.float64)
        k += tl.sum(_part(parts + 2 * plane, use), 0)
        found = _merge_streams(
            counted[:, None] + tl.zeros((ROWS, FEATURES), tl.float64),
            _part(parts, use),
            _part(parts + plane, use),
        )
        n, mean_y, m2_y = _merge(n, mean_y, m2_y, tl.sum(counted, 0), found[1], found[2])

    weight, mean_c, m2_c, g = zeros, zeros, zeros, zeros
    for begin in range(0, component_splits, ROWS):
        split = begin + tl.arange(0, ROWS)
        parts = component_parts + (split.to(tl.int64)[:, None] * 4 * plane + at[None, :])
        use = (split < component_splits)[:, None] & inside[None, :]
        g += tl.sum(_part(parts + 3 * plane, use), 0)
        found = _merge_streams(
            _part(parts + 2 * plane, use), _part(parts, use), _part(parts + plane, use)
        )
        weight, mean_c, m2_c = _merge(weight, mean_c, m2_c, found[0], found[1], found[2])

    tl.store(state + at, mean_y.to(state.dtype.element_ty), mask=inside)
    tl.store(state + plane + at, m2_y.to(state.dtype.element_ty), mask=inside)
    tl.store(state + 2 * plane + at, mean_c.to(state.dtype.element_ty), mask=inside)
    tl.store(state + 3 * plane + at, weight.to(state.dtype.element_ty), mask=inside)

    samples, components = tl.load(counts + s), tl.load(counts + S + s)
    some = inside & (samples > 0) & (components > 0)
    y_row = sample_start + tl.load(counts + 2 * S + s)
    x_row = component_start + tl.load(counts + 3 * S + s)
    y_shift = load(y, y_row, s, e, y_stride_row, y_stride_s, y_stride_e, some, tl.float64)
    x_shift = load(x, x_row, s, e, x_stride_row, x_stride_s, x_stride_e, some, tl.float64)
    distance = (y_shift - x_shift) + (mean_y - mean_c)
    q = m2_y * weight + (n * weight * distance) * distance + n * m2_c
    if EXCLUDE_DIAGONAL:
        for begin in range(0, sample_splits, ROWS):
            split = begin + tl.arange(0, ROWS)
            parts = diagonal_parts + (split.to(tl.int64)[:, None] * plane + at[None, :])
            use = (split < sample_splits)[:, None] & inside[None, :]
            q -= tl.sum(_part(parts, use), 0)
    sums = partial_sums + tl.program_id(0) * 3
    tl.store(sums, tl.sum(tl.where(some, q, 0.0), 0))
    tl.store(sums + 1, tl.sum(tl.where(some, g, 0.0), 0))
    tl.store(sums + 2, tl.sum(tl.where(some, k, 0.0), 0))


@triton.jit(
    do_not_specialize=["programs"],
    do_not_specialize_on_alignment=["component_eps", "sums"],
)
def reduce_kernel(
    partial_sums,  # (programs, 3) float64
    component_eps,  # ()
    sums,  # (3,) float64
    programs,
    ACC: tl.constexpr,
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
    scale = precision_scale(tl.load(component_eps).to(ACC), ACC)
    tl.store(sums, tl.sum(q, 0) / scale / 2)
    tl.store(sums + 1, tl.sum(g, 0) / 2)
    tl.store(sums + 2, tl.sum(k, 0) / 2)
