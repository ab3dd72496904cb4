"""The sums over all pairs, and their gradients, pair by pair: in the columns, one feature of one
position, that moments cannot serve. Their state is NaN, see `finish_kernel`.

In float64, where nothing but a ratio is squared. A program looks at LOOK columns at once; the lost
ones among them it takes in tiles of ROWS x PARTNERS x FEATURES.
"""

import triton
import triton.language as tl

from ._tiles import contributing, load, position, root_terms, store_rows, weighted


@triton.jit
def _lost(state, other_state, s, e, E, S=None):
    """Which columns are, in one of the states; either may be None. With S, also those from which a
    row cannot be taken."""
    at = s.to(tl.int64) * E + e
    found = e < 0
    if state is not None:
        if S is not None:
            state += 3 * S.to(tl.int64) * E
        value = tl.load(state + at, mask=e < E, other=0.0)
        found = found | (value != value)
        if S is not None:
            found = found | (value < 0)
    if other_state is not None:
        value = tl.load(other_state + at, mask=e < E, other=0.0)
        found = found | (value != value)
    return found


@triton.jit
def _next(lost, e, column, end):
    """The first column that is lost, from `column` on."""
    return tl.min(tl.where(lost & (e >= column), e, end), 0)


@triton.jit
def _root(sigma, eps):
    root, _ = root_terms(sigma, eps)
    return root


@triton.jit
def _met(here, there, index, partner, EXCLUDE_DIAGONAL: tl.constexpr):
    """Where rows meet their partners."""
    if EXCLUDE_DIAGONAL:
        return here & there & (index != partner)
    else:
        return here & there


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "N", "M", "rows_per_split", "S"],
    do_not_specialize_on_alignment=["component_eps", "partial_sums"],
)
def sums_of_pairs_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    state,  # (4, S, E)
    partial_sums,  # (programs, 3) float64, times 2: of q in the lost columns; 0; 0
    sample_start,
    component_start,
    N,
    M,
    rows_per_split,
    S,
    E,
    tiles,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTNERS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    ACC: tl.constexpr = tl.float64
    tile, s, split = position(tiles, S)
    first, end = split * rows_per_split, min((split + 1) * rows_per_split, N)
    q = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
    left, right = tile * LOOK, min((tile + 1) * LOOK, E)
    columns = left + tl.arange(0, LOOK)
    all_lost = _lost(state, None, s, columns, E)
    column = _next(all_lost, columns, left, right)
    while column < right:
        e = column + tl.arange(0, FEATURES)[None, None, :]
        lost = _lost(state, None, s, e, right)
        for begin in range(first, end, ROWS):
            index = begin + tl.arange(0, ROWS)[:, None, None]
            row = sample_start + index
            here = contributing(sample_active, index, s, S, end) & lost
            sample = load(y, row, s, e, here, ACC)
            for partner in range(0, M, PARTNERS):
                other = partner + tl.arange(0, PARTNERS)[None, :, None]
                at = component_start + other
                there = contributing(component_active, other, s, S, M) & lost
                use = _met(here, there, index, other, EXCLUDE_DIAGONAL)
                centre = load(x, at, s, e, there, ACC)
                offset = load(mu, at, s, e, there, ACC)
                sigma = load(stds, at, s, e, there, ACC)
                z = ((sample - centre) - offset) / _root(sigma, tl.load(component_eps).to(ACC))
                q += tl.where(use, z * z, 0.0)
        column = _next(all_lost, columns, column + FEATURES, right)
    sums = partial_sums + tl.program_id(0) * 3
    tl.store(sums, tl.sum(tl.sum(tl.sum(q, 2), 1), 0))
    tl.store(sums + 1, tl.zeros((), tl.float64))
    tl.store(sums + 2, tl.zeros((), tl.float64))


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "partner_start", "partners", "S"],
    do_not_specialize_on_alignment=[
        "sample_eps",
        "component_eps",
        "partner_eps",
        "sample_upstream",
        "component_upstream",
    ],
)
def gradient_of_pairs_kernel(
    y,  # arguments up to `tiles`: see gradient_kernel
    x,
    mu,
    stds,
    sample_eps,
    component_eps,
    sample_active,
    component_active,
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
    S,
    E,
    rows_per_split,
    tiles,
    partners,
    partner_eps,  # () of the components that these rows meet as samples
    component_partners,  # (partners, S) uint8: which rows they meet as samples
    sample_partners,  # (partners, S) uint8: which rows they meet as components
    counts,  # (4, S) int32, see Positions; where EXCLUDE_DIAGONAL
    SAMPLES: tl.constexpr,
    OWN_STDS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTNERS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    """Writes the lost columns of every wanted gradient anew; of both roles, if any of them is; and
    in columns from which a row cannot be taken the rows that are most of them."""
    ACC: tl.constexpr = tl.float64
    tile, s, split = position(tiles, S)
    first, end = split * rows_per_split, min((split + 1) * rows_per_split, rows)
    left, right = tile * LOOK, min((tile + 1) * LOOK, E)
    columns = left + tl.arange(0, LOOK)
    # There it is the same.
    other_state = None if EXCLUDE_DIAGONAL else component_state
    positions = S if EXCLUDE_DIAGONAL else None
    all_lost = _lost(sample_state, other_state, s, columns, E, positions)
    column = _next(all_lost, columns, left, right)
    while column < right:
        e = column + tl.arange(0, FEATURES)[None, None, :]
        lost = _lost(sample_state, other_state, s, e, right, positions) & (e < right)
        if EXCLUDE_DIAGONAL:
            plane = S.to(tl.int64) * E
            state = sample_state + s.to(tl.int64) * E + e
            n = tl.load(counts + s).to(ACC)
            first_row = start + tl.load(counts + 3 * S + s)
            mean_y = load(x, first_row, s, e, lost, ACC) + load(mu, first_row, s, e, lost, ACC)
            mean_y += tl.load(state, mask=lost, other=0.0).to(ACC)
            m2_y = tl.load(state + plane, mask=lost, other=0.0).to(ACC)
            weight = -tl.load(state + 3 * plane, mask=lost, other=0.0).to(ACC)
            eps = tl.load(component_eps).to(ACC)
        for begin in range(first, end, ROWS):
            index = begin + tl.arange(0, ROWS)[:, None, None]
            row = start + index
            redo = (index < end) & lost
            if EXCLUDE_DIAGONAL:
                here = contributing(component_active, index, s, S, end) & redo
                sigma = load(stds, row, s, e, here, ACC)
                # Of a half, with room for rounding.
                most = here & (weight * (sigma * sigma + eps) < 2.2)
                here = contributing(sample_active, index, s, S, end) & redo
                own = load(y, row, s, e, here, ACC) - mean_y
                most = most | (here & ((2.2 * own) * own * n > (n - 1.0) * m2_y))
                redo = redo & (most | (weight != weight))
            if tl.max(tl.max(tl.max(redo.to(tl.int32), 2), 1), 0) > 0:
                gradient_y = tl.zeros((ROWS, 1, FEATURES), ACC)
                gradient_c = tl.zeros((ROWS, 1, FEATURES), ACC)
                gradient_stds = tl.zeros((ROWS, 1, FEATURES), ACC)
                if SAMPLES:
                    here = contributing(sample_active, index, s, S, end) & redo
                    own_y = load(y, row, s, e, here, ACC)
                    eps_l = tl.load(partner_eps).to(ACC)
                    # In units of the least root no term overflows.
                    least = tl.zeros((ROWS, PARTNERS, FEATURES), ACC) + float("inf")
                    for partner in range(0, partners, PARTNERS):
                        other = partner + tl.arange(0, PARTNERS)[None, :, None]
                        at = partner_start + other
                        there = contributing(component_partners, other, s, S, partners) & lost
                        use = _met(here, there, index, other, EXCLUDE_DIAGONAL)
                        their_sigma = load(stds, at, s, e, there, ACC)
                        least = tl.where(use, tl.minimum(least, tl.abs(their_sigma)), least)
                    of_unit = tl.min(least, 1, keep_dims=True)
                    unit = _root(tl.where(of_unit < float("inf"), of_unit, 1.0), eps_l)
                    pull = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    count = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    for partner in range(0, partners, PARTNERS):
                        other = partner + tl.arange(0, PARTNERS)[None, :, None]
                        at = partner_start + other
                        there = contributing(component_partners, other, s, S, partners) & lost
                        use = _met(here, there, index, other, EXCLUDE_DIAGONAL)
                        their_x = load(x, at, s, e, there, ACC)
                        their_mu = load(mu, at, s, e, there, ACC)
                        their_sigma = load(stds, at, s, e, there, ACC)
                        ratio = unit / _root(their_sigma, eps_l)
                        term = ((own_y - their_x) - their_mu) * ratio * ratio
                        pull += tl.where(use, term, 0.0)
                        count += use.to(ACC)
                    of_all = tl.sum(pull, 1, keep_dims=True) / unit
                    of_all = weighted(tl.load(sample_upstream), of_all) / unit
                    gradient_y = tl.where(here, of_all, 0.0)
                    if OWN_STDS:
                        sigma = load(stds, row, s, e, here, ACC)
                        root = _root(sigma, tl.load(sample_eps).to(ACC))
                        upstream_k = tl.load(sample_upstream + 2)
                        of_all = weighted(upstream_k, tl.sum(count, 1, keep_dims=True))
                        gradient_stds += tl.where(here, sigma / root * of_all / root, 0.0)
                if COMPONENTS:
                    here = contributing(component_active, index, s, S, end) & redo
                    own_x = load(x, row, s, e, here, ACC)
                    own_mu = load(mu, row, s, e, here, ACC)
                    sigma = load(stds, row, s, e, here, ACC)
                    root = _root(sigma, tl.load(component_eps).to(ACC))
                    large, small = tl.maximum(root, 1.0), tl.minimum(root, 1.0)
                    distances = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    squares = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)  # over v, and over `large`
                    count = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
                    for partner in range(0, partners, PARTNERS):
                        other = partner + tl.arange(0, PARTNERS)[None, :, None]
                        at = partner_start + other
                        there = contributing(sample_partners, other, s, S, partners) & lost
                        use = _met(here, there, index, other, EXCLUDE_DIAGONAL)
                        their_y = load(y, at, s, e, there, ACC)
                        distance = (their_y - own_x) - own_mu
                        z = distance / root
                        distances += tl.where(use, distance, 0.0)
                        squares += tl.where(use, z * (z / large), 0.0)
                        count += use.to(ACC)
                    upstream_q = tl.load(component_upstream)
                    of_all = weighted(upstream_q, tl.sum(distances, 1, keep_dims=True) / root)
                    gradient_c = tl.where(here, -of_all / root, 0.0)
                    upstream_g = tl.load(component_upstream + 1)
                    of_all = weighted(upstream_g, tl.sum(count, 1, keep_dims=True) / large)
                    of_all -= weighted(upstream_q, tl.sum(squares, 1, keep_dims=True))
                    of_all = sigma / root * of_all / small
                    gradient_stds += tl.where(here & (sigma != 0), of_all, 0.0)
                store_rows(d_y, row, s, e, S, E, gradient_y, redo)
                store_rows(d_x, row, s, e, S, E, gradient_c, redo)
                store_rows(d_mu, row, s, e, S, E, gradient_c, redo)
                store_rows(d_stds, row, s, e, S, E, gradient_stds, redo)
        column = _next(all_lost, columns, column + FEATURES, right)
