"""Gradients of the sums over all pairs: elementwise, given the moments of the other role."""

import triton
import triton.language as tl

from ._terms import upstream_of
from ._tiles import (
    load,
    load_mask,
    multiple,
    partners,
    position_of,
    store_rows,
    two_sum,
    variance_terms,
    weighted,
)


@triton.jit
def pull_of_own_stds(sigma, over, upstream_k, others):
    """Gradient of the stds of samples; `over` is 1 / v."""
    return (sigma * over) * (upstream_k * others)


@triton.jit
def pulls_of_components(
    upstreams,  # of q and of g
    sigma,
    precision,  # 1 / v
    from_mean,  # of the samples
    moments,  # how many samples there are, m2 of them; how many a row meets
    own,  # from the row's own sample; where EXCLUDE_DIAGONAL
    use,
    PULL_C: tl.constexpr,
    PULL_STDS: tl.constexpr,
    EXCLUDE_DIAGONAL: tl.constexpr,
):
    """Gradients of x + mu, and of the stds."""
    upstream_c, upstream_g = upstreams
    count, m2_y, others = moments
    gradient_c = tl.zeros_like(sigma)
    gradient_stds = tl.zeros_like(sigma)
    over = from_mean * precision
    if PULL_C:
        pull = count * over
        if EXCLUDE_DIAGONAL:
            pull = (count * from_mean + own) * precision
        gradient_c = tl.where(use, weighted(upstream_c, pull), 0.0)
    if PULL_STDS:
        squares = count * (from_mean * over) + m2_y * precision
        if EXCLUDE_DIAGONAL:
            squares -= own * (own * precision)
        pull = upstream_g * others - weighted(upstream_c, squares)
        pull = (sigma * precision) * pull
        # A sigma of 0 must not meet an overflow.
        gradient_stds = tl.where(use & (sigma != 0), pull, 0.0)
    return gradient_c, gradient_stds


@triton.jit
def _gradient(
    program,
    tensors,
    loss,
    eps,
    masks,
    states,
    upstreams,
    counts,
    gradients,
    rows_of,
    sizes,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Of the rows of one pass; arguments as those of the kernel, in tuples of both roles."""
    y, x, mu, stds = tensors
    sample_eps, component_eps = eps
    sample_mask, component_mask = masks
    sample_state, component_state = states
    sample_counts, component_counts = counts
    d_y, d_x, d_mu, d_stds = gradients
    start, rows, partner_start, rows_per_split = rows_of
    S, E, tiles = sizes
    SAMPLES: tl.constexpr = sample_counts is not None
    COMPONENTS: tl.constexpr = component_counts is not None
    OWN_STDS: tl.constexpr = sample_eps is not None
    PULL_Y: tl.constexpr = SAMPLES and d_y is not None
    PULL_OWN: tl.constexpr = SAMPLES and OWN_STDS and d_stds is not None
    PULL_C: tl.constexpr = COMPONENTS and (d_x is not None or d_mu is not None)
    PULL_STDS: tl.constexpr = COMPONENTS and d_stds is not None
    DIAGONAL: tl.constexpr = EXCLUDE_DIAGONAL and (PULL_Y or PULL_C or PULL_STDS)

    tile, s, split = position_of(program, tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    inside_e = e < E
    plane = S.to(tl.int64) * E
    at_position = s.to(tl.int64) * E + e
    if PULL_Y or PULL_OWN:
        of_samples = upstream_of(upstreams[0], loss)
    if PULL_C or PULL_STDS:
        of_components = upstream_of(upstreams[1], loss)
    # Not None: Triton 3.6 takes no variable that is None into a tuple.
    upstream_g = tl.zeros((), ACC)
    m2_y = tl.zeros((1, FEATURES), ACC)
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
        upstream_y = of_samples[0].to(ACC)
    if PULL_OWN:
        eps_i = tl.load(sample_eps).to(ACC)
        upstream_k = of_samples[2].to(ACC)
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
        upstream_c = of_components[0].to(ACC)
    if PULL_STDS:
        m2_y = tl.load(state + plane, mask=some_l, other=0.0).to(ACC)
        upstream_g = of_components[1].to(ACC)

    end = min((split + 1) * rows_per_split, rows)
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        inside = (index < end) & inside_e
        here_i = tl.zeros((ROWS, 1), tl.int1)
        here_l = tl.zeros((ROWS, 1), tl.int1)
        flag = index if EXCLUDE_DIAGONAL else row
        if SAMPLES:
            here_i = load_mask(sample_mask, flag, s, index < end) & (components > 0)
        if COMPONENTS:
            here_l = load_mask(component_mask, flag, s, index < end) & (samples > 0)
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
        own = None
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
            pull = pull_of_own_stds(sigma, of_own, upstream_k, others)
            gradient_stds += tl.where(use_i, pull, 0.0)
        if PULL_C or PULL_STDS:
            from_mean = centre + from_y
            others = partners(samples, here_i, EXCLUDE_DIAGONAL, ACC)
            gradient_c, of_stds = pulls_of_components(
                (upstream_c, upstream_g),
                sigma,
                precision,
                from_mean,
                (samples.to(ACC), m2_y, others),
                own,
                use_l,
                PULL_C,
                PULL_STDS,
                EXCLUDE_DIAGONAL,
            )
            gradient_stds += of_stds

        store_rows(d_y, row, s, e, S, E, gradient_y, inside)
        store_rows(d_x, row, s, e, S, E, gradient_c, inside)
        store_rows(d_mu, row, s, e, S, E, gradient_c, inside)
        store_rows(d_stds, row, s, e, S, E, gradient_stds, inside)


@triton.jit(
    do_not_specialize=[
        *("has_total", "has_terms", "term_stride", "divisor", "programs", "S", "E", "tiles"),
        *("start", "rows", "partner_start", "rows_per_split"),
        *("other_start", "other_rows", "other_partner_start", "other_rows_per_split"),
    ],
    do_not_specialize_on_alignment=[
        *("of_total", "of_terms"),
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        *("sample_upstream", "component_upstream"),
        *("other_sample_upstream", "other_component_upstream"),
    ],
)
def gradient_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    of_total,  # () gradients of the loss in T, and (6,) of its terms
    of_terms,
    has_total,  # 0 where there is no gradient, and nothing is read
    has_terms,
    term_stride,
    divisor,
    sample_eps,  # ()
    component_eps,  # () of the mixture in which these rows are components
    # (rows, S) strided bool, of the mixture in which these rows are samples; of the contributing
    # rows, from `start` on, where EXCLUDE_DIAGONAL
    sample_mask,
    component_mask,  # the same of the mixture in which they are components
    sample_state,  # (4, S, E) ACC, of the same mixtures, see finish_kernel
    component_state,
    sample_upstream,  # (3,) float64, of the same mixtures, see `upstream_of`
    component_upstream,
    sample_counts,  # (4, S) int32, of the same mixtures, see `settle_kernel`; None: no such role
    component_counts,
    d_y,  # (rows, S, E), written; None where there is nothing to write
    d_x,
    d_mu,
    d_stds,
    start,
    rows,
    partner_start,  # first row of the other role
    rows_per_split,
    # the same of the rows of a second pass
    other_sample_eps,
    other_component_eps,
    other_sample_mask,
    other_component_mask,
    other_sample_state,
    other_component_state,
    other_sample_upstream,
    other_component_upstream,
    other_sample_counts,
    other_component_counts,
    other_d_y,
    other_d_x,
    other_d_mu,
    other_d_stds,
    other_start,
    other_rows,
    other_partner_start,
    other_rows_per_split,
    programs,  # of the first pass
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    EXCLUDE_DIAGONAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Every wanted gradient of `rows` rows from `start`, zeros where they lack the role; rubbish in
    the columns that `gradient_of_pairs_kernel` writes."""
    E = multiple(E, UNIT)
    tensors = y, x, mu, stds
    loss = of_total, of_terms, has_total, has_terms, term_stride, divisor
    program = tl.program_id(0)
    if program < programs:
        _gradient(
            program,
            tensors,
            loss,
            (sample_eps, component_eps),
            (sample_mask, component_mask),
            (sample_state, component_state),
            (sample_upstream, component_upstream),
            (sample_counts, component_counts),
            (d_y, d_x, d_mu, d_stds),
            (start, rows, partner_start, rows_per_split),
            (S, E, tiles),
            EXCLUDE_DIAGONAL,
            ACC,
            ROWS,
            FEATURES,
        )
    else:
        if other_sample_counts is not None or other_component_counts is not None:
            _gradient(
                program - programs,
                tensors,
                loss,
                (other_sample_eps, other_component_eps),
                (other_sample_mask, other_component_mask),
                (other_sample_state, other_component_state),
                (other_sample_upstream, other_component_upstream),
                (other_sample_counts, other_component_counts),
                (other_d_y, other_d_x, other_d_mu, other_d_stds),
                (other_start, other_rows, other_partner_start, other_rows_per_split),
                (S, E, tiles),
                EXCLUDE_DIAGONAL,
                ACC,
                ROWS,
                FEATURES,
            )
