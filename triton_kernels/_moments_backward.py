"""Gradients of the sums over all pairs: elementwise, given the moments of the other role."""

import triton
import triton.language as tl

from ._tiles import (
    contributing,
    load,
    partners,
    position,
    store_rows,
    two_sum,
    variance_terms,
    weighted,
)


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "partner_start", "S"],
    do_not_specialize_on_alignment=[
        "sample_eps",
        "component_eps",
        "sample_upstream",
        "component_upstream",
    ],
)
def gradient_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_eps,  # ()
    component_eps,  # () of the mixture in which these rows are components
    sample_active,  # (rows, S) uint8, of the mixture in which these rows are samples
    component_active,  # (rows, S) uint8, of the one in which they are components
    sample_state,  # (4, S, E) ACC, of the same mixtures, see finish_kernel
    component_state,
    sample_upstream,  # (3,) float64, of the same mixtures: gradients of the sums of q, g and k
    component_upstream,
    d_y,  # (rows, S, E), written; None where there is nothing to write
    d_x,
    d_mu,
    d_stds,
    start,
    rows,
    partner_start,  # first row of the other role
    S,
    E,
    rows_per_split,
    tiles,
    sample_counts,  # (4, S) int32, of the same mixtures, see Positions
    component_counts,
    SAMPLES: tl.constexpr,
    OWN_STDS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Every wanted gradient of `rows` rows from `start`, zeros where they lack the role; rubbish in
    the columns that `gradient_of_pairs_kernel` writes."""
    PULL_Y: tl.constexpr = SAMPLES and d_y is not None
    PULL_OWN: tl.constexpr = SAMPLES and OWN_STDS and d_stds is not None
    PULL_C: tl.constexpr = COMPONENTS and (d_x is not None or d_mu is not None)
    PULL_STDS: tl.constexpr = COMPONENTS and d_stds is not None
    DIAGONAL: tl.constexpr = EXCLUDE_DIAGONAL and (PULL_Y or PULL_C or PULL_STDS)

    tile, s, split = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    inside_e = e < E
    plane = S.to(tl.int64) * E
    at_position = s.to(tl.int64) * E + e
    partner_row = tl.zeros((1, 1), tl.int32) + partner_start
    if SAMPLES:
        components = tl.load(sample_counts + S + s)
        some_i = (components > 0) & inside_e
    if COMPONENTS:
        samples = tl.load(component_counts + s)
        some_l = (samples > 0) & inside_e
        eps_l = tl.load(component_eps).to(ACC)
    if PULL_Y or DIAGONAL:
        first = partner_row + tl.load(sample_counts + 3 * S + s)
        of_x, of_mu = load(x, first, s, e, some_i, ACC), load(mu, first, s, e, some_i, ACC)
        c_shift, rest = two_sum(of_x, of_mu)
    if PULL_Y:
        state = sample_state + at_position
        delta_c = tl.load(state + 2 * plane, mask=some_i, other=0.0).to(ACC)
        weight = tl.load(state + 3 * plane, mask=some_i, other=0.0).to(ACC)
        upstream_y = tl.load(sample_upstream).to(ACC)
    if PULL_OWN:
        eps_i = tl.load(sample_eps).to(ACC)
        upstream_k = tl.load(sample_upstream + 2).to(ACC)
    if PULL_C or PULL_STDS or DIAGONAL:
        first = tl.zeros((1, 1), tl.int32) + start + tl.load(component_counts + 3 * S + s)
        x_shift, mu_shift = load(x, first, s, e, some_l, ACC), load(mu, first, s, e, some_l, ACC)
    if PULL_C or PULL_STDS:
        state = component_state + at_position
        first = partner_row + tl.load(component_counts + 2 * S + s)
        own_shift, own_rest = two_sum(x_shift, mu_shift)
        from_y = own_rest - tl.load(state, mask=some_l, other=0.0).to(ACC)
        if not EXCLUDE_DIAGONAL:
            from_y += own_shift - load(y, first, s, e, some_l, ACC)
        upstream_c = tl.load(component_upstream).to(ACC)
    if PULL_STDS:
        m2_y = tl.load(state + plane, mask=some_l, other=0.0).to(ACC)
        upstream_g = tl.load(component_upstream + 1).to(ACC)

    end = min((split + 1) * rows_per_split, rows)
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        inside = (index < end) & inside_e
        here_i = tl.zeros((ROWS, 1), tl.int1)
        here_l = tl.zeros((ROWS, 1), tl.int1)
        if SAMPLES:
            here_i = contributing(sample_active, index, s, S, end)
        if COMPONENTS:
            here_l = contributing(component_active, index, s, S, end)
        use_i = here_i & inside_e
        use_l = here_l & inside_e
        gradient_y = tl.zeros((ROWS, FEATURES), ACC)
        gradient_c = tl.zeros((ROWS, FEATURES), ACC)
        gradient_stds = tl.zeros((ROWS, FEATURES), ACC)

        if PULL_OWN or PULL_C or PULL_STDS or DIAGONAL:
            use = use_l
            if PULL_OWN:
                use = use | use_i
            sigma = load(stds, row, s, e, use, ACC)
            sigma = tl.where(use, sigma, 1.0)
        if PULL_Y or DIAGONAL:
            value = load(y, row, s, e, use_i, ACC)
            from_shift = value - c_shift
        if PULL_C or PULL_STDS or DIAGONAL:
            precision, _ = variance_terms(sigma, eps_l)
            value = load(x, row, s, e, use_l, ACC)
            offset = load(mu, row, s, e, use_l, ACC)
            centre = (value - x_shift) + (offset - mu_shift)
        if DIAGONAL:
            own = from_shift - (centre + rest)
            own = tl.where(use_i & use_l, own, 0.0)

        if PULL_Y:
            pull = (from_shift - delta_c) * tl.abs(weight)
            if EXCLUDE_DIAGONAL:
                pull -= own * precision
            gradient_y = tl.where(use_i, weighted(upstream_y, pull), 0.0)
        if PULL_OWN:
            others = partners(components, here_l, EXCLUDE_DIAGONAL, ACC)
            of_own, _ = variance_terms(sigma, eps_i)
            pull = (sigma * of_own) * (upstream_k * others)
            gradient_stds += tl.where(use_i, pull, 0.0)
        if PULL_C or PULL_STDS:
            from_mean = centre + from_y
            over = from_mean * precision
            count = samples.to(ACC)
            if PULL_C:
                pull = count * over
                if EXCLUDE_DIAGONAL:
                    pull = (count * from_mean + own) * precision
                gradient_c = tl.where(use_l, weighted(upstream_c, pull), 0.0)
            if PULL_STDS:
                squares = count * (from_mean * over) + m2_y * precision
                if EXCLUDE_DIAGONAL:
                    squares -= own * (own * precision)
                others = partners(samples, here_i, EXCLUDE_DIAGONAL, ACC)
                pull = upstream_g * others - weighted(upstream_c, squares)
                pull = (sigma * precision) * pull
                # A sigma of 0 must not meet an overflow.
                gradient_stds += tl.where(use_l & (sigma != 0), pull, 0.0)

        store_rows(d_y, row, s, e, S, E, gradient_y, inside)
        store_rows(d_x, row, s, e, S, E, gradient_c, inside)
        store_rows(d_mu, row, s, e, S, E, gradient_c, inside)
        store_rows(d_stds, row, s, e, S, E, gradient_stds, inside)
