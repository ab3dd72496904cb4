"""Gradients of the sums over all pairs, pair by pair: in the columns that `_moments_of_pairs.py`
serves, and as there."""

import triton
import triton.language as tl

from ._moments_of_pairs import lost_of, next_of, partners_at, root_of
from ._terms import upstream_of
from ._tiles import load, load_mask, multiple, position_of, store_rows, weighted


@triton.jit
def _gradient_of_pairs(
    program,
    tensors,
    loss,
    eps,  # of both roles, and of the components that these rows meet as samples
    masks,
    partner_masks,  # of the components that they meet as samples, of the samples they meet
    states,
    upstreams,
    counts,
    gradients,
    rows_of,
    sizes,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTNERS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    """Of the rows of one pass; arguments as those of the kernel, in tuples."""
    y, x, mu, stds = tensors
    sample_eps, component_eps, partner_eps = eps
    sample_mask, component_mask = masks
    component_partner_mask, sample_partner_mask = partner_masks
    sample_state, component_state = states
    d_y, d_x, d_mu, d_stds = gradients
    start, rows, partner_start, rows_per_split, partners = rows_of
    S, E, tiles = sizes
    SAMPLES: tl.constexpr = sample_mask is not None
    COMPONENTS: tl.constexpr = component_mask is not None
    OWN_STDS: tl.constexpr = sample_eps is not None
    ACC: tl.constexpr = tl.float64
    tile, s, split = position_of(program, tiles, S)
    first, end = split * rows_per_split, min((split + 1) * rows_per_split, rows)
    left, right = tile * LOOK, min((tile + 1) * LOOK, E)
    columns = left + tl.arange(0, LOOK)
    # There it is the same.
    other_state = None if EXCLUDE_DIAGONAL else component_state
    positions = S if EXCLUDE_DIAGONAL else None
    all_lost = lost_of(sample_state, other_state, s, columns, E, positions)
    column = next_of(all_lost, columns, left, right)
    while column < right:
        e = column + tl.arange(0, FEATURES)[None, None, :]
        if SAMPLES:
            of_samples = upstream_of(upstreams[0], loss)
        if COMPONENTS:
            of_components = upstream_of(upstreams[1], loss)
        lost = lost_of(sample_state, other_state, s, e, right, positions) & (e < right)
        if EXCLUDE_DIAGONAL:
            plane = S.to(tl.int64) * E
            state = sample_state + s.to(tl.int64) * E + e
            n = tl.load(counts + s).to(ACC)
            first_row = start + tl.load(counts + 3 * S + s)
            mean_y = load(x, first_row, s, e, lost, ACC) + load(mu, first_row, s, e, lost, ACC)
            mean_y += tl.load(state, mask=lost, other=0.0).to(ACC)
            m2_y = tl.load(state + plane, mask=lost, other=0.0).to(ACC)
            weight = -tl.load(state + 3 * plane, mask=lost, other=0.0).to(ACC)
            eps_of_all = tl.load(component_eps).to(ACC)
        for begin in range(first, end, ROWS):
            index = begin + tl.arange(0, ROWS)[:, None, None]
            row = start + index
            flag = index if EXCLUDE_DIAGONAL else row
            redo = (index < end) & lost
            if EXCLUDE_DIAGONAL:
                here = load_mask(component_mask, flag, s, index < end) & redo
                sigma = load(stds, row, s, e, here, ACC)
                # Of a half, with room for rounding.
                most = here & (weight * (sigma * sigma + eps_of_all) < 2.2)
                here = load_mask(sample_mask, flag, s, index < end) & redo
                own = load(y, row, s, e, here, ACC) - mean_y
                most = most | (here & ((2.2 * own) * own * n > (n - 1.0) * m2_y))
                redo = redo & (most | (weight != weight))
            if tl.max(tl.max(tl.max(redo.to(tl.int32), 2), 1), 0) > 0:
                gradient_y = tl.zeros((ROWS, 1, FEATURES), ACC)
                gradient_c = tl.zeros((ROWS, 1, FEATURES), ACC)
                gradient_stds = tl.zeros((ROWS, 1, FEATURES), ACC)
                if SAMPLES:
                    here = load_mask(sample_mask, flag, s, index < end) & redo
                    own_y = load(y, row, s, e, here, ACC)
                    eps_l = tl.load(partner_eps).to(ACC)
                    met = (partner_start, partners, component_partner_mask)
                    # In units of the least root no term overflows, which two could with each sign.
                    least = tl.zeros((ROWS, PARTNERS, FEATURES), ACC) + float("inf")
                    for partner in range(0, partners, PARTNERS):
                        at, there, use = partners_at(
                            partner, met, s, lost, here, index, EXCLUDE_DIAGONAL, PARTNERS
                        )
                        their_sigma = load(stds, at, s, e, there, ACC)
                        least = tl.where(use, tl.minimum(least, tl.abs(their_sigma)), least)
                    of_unit = tl.min(least, 1, keep_dims=True)
                    unit = root_of(tl.where(of_unit < float("inf"), of_unit, 1.0), eps_l)
                    pull = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    count = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    for partner in range(0, partners, PARTNERS):
                        at, there, use = partners_at(
                            partner, met, s, lost, here, index, EXCLUDE_DIAGONAL, PARTNERS
                        )
                        their_x = load(x, at, s, e, there, ACC)
                        their_mu = load(mu, at, s, e, there, ACC)
                        their_sigma = load(stds, at, s, e, there, ACC)
                        ratio = unit / root_of(their_sigma, eps_l)
                        term = ((own_y - their_x) - their_mu) * ratio * ratio
                        pull += tl.where(use, term, 0.0)
                        count += use.to(ACC)
                    number = tl.sum(count, 1, keep_dims=True)
                    here = here & (number > 0)  # another mixture may have lost the column
                    of_all = tl.sum(pull, 1, keep_dims=True) / unit
                    of_all = weighted(of_samples[0], of_all) / unit
                    gradient_y = tl.where(here, of_all, 0.0)
                    if OWN_STDS:
                        sigma = load(stds, row, s, e, here, ACC)
                        root = root_of(sigma, tl.load(sample_eps).to(ACC))
                        upstream_k = of_samples[2]
                        of_all = weighted(upstream_k, number)
                        gradient_stds += tl.where(here, sigma / root * of_all / root, 0.0)
                if COMPONENTS:
                    here = load_mask(component_mask, flag, s, index < end) & redo
                    own_x = load(x, row, s, e, here, ACC)
                    own_mu = load(mu, row, s, e, here, ACC)
                    sigma = load(stds, row, s, e, here, ACC)
                    root = root_of(sigma, tl.load(component_eps).to(ACC))
                    large, small = tl.maximum(root, 1.0), tl.minimum(root, 1.0)
                    met = (partner_start, partners, sample_partner_mask)
                    distances = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    squares = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)  # over v, and over `large`
                    count = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    for partner in range(0, partners, PARTNERS):
                        at, there, use = partners_at(
                            partner, met, s, lost, here, index, EXCLUDE_DIAGONAL, PARTNERS
                        )
                        their_y = load(y, at, s, e, there, ACC)
                        distance = (their_y - own_x) - own_mu
                        z = distance / root
                        distances += tl.where(use, distance, 0.0)
                        squares += tl.where(use, z * (z / large), 0.0)
                        count += use.to(ACC)
                    number = tl.sum(count, 1, keep_dims=True)
                    here = here & (number > 0)
                    upstream_q = of_components[0]
                    of_all = weighted(upstream_q, tl.sum(distances, 1, keep_dims=True) / root)
                    gradient_c = tl.where(here, -of_all / root, 0.0)
                    upstream_g = of_components[1]
                    of_all = weighted(upstream_g, number / large)
                    of_all -= weighted(upstream_q, tl.sum(squares, 1, keep_dims=True))
                    of_all = sigma / root * of_all / small
                    gradient_stds += tl.where(here & (sigma != 0), of_all, 0.0)
                store_rows(d_y, row, s, e, S, E, gradient_y, redo)
                store_rows(d_x, row, s, e, S, E, gradient_c, redo)
                store_rows(d_mu, row, s, e, S, E, gradient_c, redo)
                store_rows(d_stds, row, s, e, S, E, gradient_stds, redo)
        column = next_of(all_lost, columns, column + FEATURES, right)


@triton.jit(
    do_not_specialize=[
        *("has_total", "has_terms", "term_stride", "divisor", "programs", "S", "E", "tiles"),
        *("start", "rows", "partner_start", "rows_per_split", "partners"),
        *("other_start", "other_rows", "other_partner_start", "other_rows_per_split"),
        "other_partners",
    ],
    do_not_specialize_on_alignment=[
        *("of_total", "of_terms"),
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        *("partner_eps", "other_partner_eps"),
        # bytes of a second mixture begin anywhere
        *("sample_state", "component_state", "other_sample_state", "other_component_state"),
        *("sample_upstream", "component_upstream"),
        *("other_sample_upstream", "other_component_upstream"),
    ],
)
def gradient_of_pairs_kernel(
    y,
    x,
    mu,
    stds,
    of_total,
    of_terms,
    has_total,
    has_terms,
    term_stride,
    divisor,
    sample_eps,  # arguments up to `rows_per_split`: see gradient_kernel
    component_eps,
    sample_mask,
    component_mask,
    sample_state,
    component_state,
    sample_upstream,
    component_upstream,
    d_y,
    d_x,
    d_mu,
    d_stds,
    start,
    rows,
    partner_start,
    rows_per_split,
    partners,
    partner_eps,  # () of the components that these rows meet as samples
    component_partner_mask,  # of the rows that they meet as samples
    sample_partner_mask,  # of the rows that they meet as components
    counts,  # (4, S) int32, see `settle_kernel`; where EXCLUDE_DIAGONAL
    # the same of the rows of a second pass
    other_sample_eps,
    other_component_eps,
    other_sample_mask,
    other_component_mask,
    other_sample_state,
    other_component_state,
    other_sample_upstream,
    other_component_upstream,
    other_d_y,
    other_d_x,
    other_d_mu,
    other_d_stds,
    other_start,
    other_rows,
    other_partner_start,
    other_rows_per_split,
    other_partners,
    other_partner_eps,
    other_component_partner_mask,
    other_sample_partner_mask,
    programs,  # of the first pass
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTNERS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    """Writes the lost columns of every wanted gradient anew; of both roles, if any of them is; and
    in columns from which a row cannot be taken the rows that are most of them."""
    E = multiple(E, UNIT)
    tensors = y, x, mu, stds
    loss = of_total, of_terms, has_total, has_terms, term_stride, divisor
    other_range = other_start, other_rows, other_partner_start, other_rows_per_split, other_partners
    program = tl.program_id(0)
    if program < programs:
        _gradient_of_pairs(
            program,
            tensors,
            loss,
            (sample_eps, component_eps, partner_eps),
            (sample_mask, component_mask),
            (component_partner_mask, sample_partner_mask),
            (sample_state, component_state),
            (sample_upstream, component_upstream),
            counts,
            (d_y, d_x, d_mu, d_stds),
            (start, rows, partner_start, rows_per_split, partners),
            (S, E, tiles),
            EXCLUDE_DIAGONAL,
            ROWS,
            PARTNERS,
            FEATURES,
            LOOK,
        )
    else:
        if other_sample_mask is not None or other_component_mask is not None:
            _gradient_of_pairs(
                program - programs,
                tensors,
                loss,
                (other_sample_eps, other_component_eps, other_partner_eps),
                (other_sample_mask, other_component_mask),
                (other_component_partner_mask, other_sample_partner_mask),
                (other_sample_state, other_component_state),
                (other_sample_upstream, other_component_upstream),
                None,
                (other_d_y, other_d_x, other_d_mu, other_d_stds),
                other_range,
                (S, E, tiles),
                EXCLUDE_DIAGONAL,
                ROWS,
                PARTNERS,
                FEATURES,
                LOOK,
            )
