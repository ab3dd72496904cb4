"""Gradients of "leave_one_out" for a few rows, pair by pair: no row is taken from a sum, as among a
few any one may be nearly all of it, and nothing is read of the state.

A program takes one position, some features and some groups of four rows. A group stays in registers
while all rows come by as partners, four at a time, once from memory and then from the cache.
"""

import triton
import triton.language as tl

from ._instructions import reciprocal
from ._leave_one_out import shifts_of_centre
from ._moments_forward import load_eps
from ._moments_rows import load_centres, load_rows, variance, where
from ._terms import upstream_of
from ._tiles import contributing, multiple, position, store_rows, weighted

GROUP = tl.constexpr(4)


@triton.jit
def _meet(
    found,
    own,
    rows_of,
    other,
    OWN: tl.constexpr,  # the partners are the rows themselves
    WHOLE: tl.constexpr,
    PULL_Y: tl.constexpr,
    PULL_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """A group meets four partners: in its first role, and in its second."""
    tensors, shifts, eps_l, flags, part, place = rows_of
    y, x, mu, stds = tensors
    start, rows = part
    c_shift, x_shift, mu_shift = shifts
    sample, centre, precision, index = own
    s, S, e, inside = place
    local = tl.zeros((1, 1), tl.int32)
    pull_y, pull_c, squares = found
    for k in tl.static_range(GROUP):
        partner = other + k
        there_i = None
        there_l = None
        use_i = None
        use_l = None
        if not WHOLE:
            there_i = contributing(flags[0], local + partner, s, S, rows)
            there_l = contributing(flags[1], local + partner, s, S, rows)
            use_i, use_l = there_i & inside, there_l & inside
        row = start + partner
        if PULL_Y:
            sigma = load_rows(stds, row, s, local, e, use_l, ACC)
            weight = where(there_l, reciprocal(variance(sigma, eps_l, there_l)))
            theirs = load_centres(x, mu, x_shift, mu_shift, row, s, local, e, use_l, there_l, ACC)
            distance = sample - theirs
            if OWN:
                distance *= (index != partner).to(ACC)
            pull_y += weight * distance
        if PULL_C:
            theirs = load_rows(y, row, s, local, e, use_i, ACC) - where(there_i, c_shift)
            distance = theirs - centre
            if OWN:
                distance *= (index != partner).to(ACC)
            over = where(there_i, distance) * precision
            pull_c -= over
            squares += over * distance
    return pull_y, pull_c, squares


@triton.jit(
    do_not_specialize=[
        *("has_total", "has_terms", "term_stride", "divisor"),
        *("start", "rows", "rows_per_split", "S", "E", "tiles"),
    ],
    do_not_specialize_on_alignment=[
        *("of_total", "of_terms", "sample_eps", "component_eps", "upstream")
    ],
)
def gradient_of_few_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    of_total,  # up to `divisor` see `upstream_of`
    of_terms,
    has_total,
    has_terms,
    term_stride,
    divisor,
    sample_eps,  # (), or None
    component_eps,  # ()
    sample_active,  # (rows, S) uint8
    component_active,  # (rows, S) uint8
    counts,  # (4, S) int32, see Positions
    upstream,  # (3,) float64: gradients of the sums of q, g and k, or None
    d_y,  # (rows, S, E), written; None where there is nothing to write
    d_x,
    d_mu,
    d_stds,
    start,
    rows,
    rows_per_split,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    OWN_STDS: tl.constexpr,
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Every wanted gradient of all rows, see `gradient_kernel`."""
    E = multiple(E, UNIT)
    PULL_Y: tl.constexpr = d_y is not None
    PULL_STDS: tl.constexpr = d_stds is not None
    PULL_C: tl.constexpr = PULL_STDS or d_x is not None or d_mu is not None
    tile, s, split = position(tiles, S)
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    e = tl.max_contiguous(feature, VECTOR)[None, :]
    inside = (feature < E)[None, :]
    n, m, shifts = shifts_of_centre(x, mu, counts, start, (tile, s, S, E), ACC, FEATURES)
    c_shift, x_shift, mu_shift = shifts
    eps_i, eps_l = load_eps(sample_eps, ACC), load_eps(component_eps, ACC)
    loss = of_total, of_terms, has_total, has_terms, term_stride, divisor
    of_q, of_g, of_k = upstream_of(upstream, loss)
    of_q, of_g, of_k = of_q.to(ACC), of_g.to(ACC), of_k.to(ACC)
    tensors, flags = (y, x, mu, stds), (sample_active, component_active)
    rows_of = (tensors, shifts, eps_l, flags, (start, rows), (s, S, e, inside))
    all_here = ((tile + 1) * FEATURES <= E) & (n == rows) & (m == rows) & (rows % GROUP == 0)
    group = tl.arange(0, GROUP)[:, None]
    zeros = tl.zeros((GROUP, FEATURES), ACC)

    end = min((split + 1) * rows_per_split, rows)
    for first in range(split * rows_per_split, end, GROUP):
        index = first + group
        here_i = contributing(sample_active, index, s, S, rows)
        here_l = contributing(component_active, index, s, S, rows)
        use_i, use_l = here_i & inside, here_l & inside
        row = start + first
        sample, centre, sigma, precision = zeros, zeros, zeros, zeros
        if PULL_Y:
            sample = load_rows(y, row, s, group, e, use_i, ACC) - where(here_i, c_shift)
        if PULL_C:
            centre = load_centres(x, mu, x_shift, mu_shift, row, s, group, e, use_l, here_l, ACC)
            sigma = load_rows(stds, row, s, group, e, use_i | use_l if OWN_STDS else use_l, ACC)
            precision = where(here_l, reciprocal(variance(sigma, eps_l, here_l)))
        own = (sample, centre, precision, index)
        found = (zeros, zeros, zeros)
        found = _meet(found, own, rows_of, first, True, False, PULL_Y, PULL_C, ACC)
        for other in range(0, rows, GROUP):
            if other != first:
                if all_here:
                    found = _meet(found, own, rows_of, other, False, True, PULL_Y, PULL_C, ACC)
                else:
                    found = _meet(found, own, rows_of, other, False, False, PULL_Y, PULL_C, ACC)
        pull_y, pull_c, squares = found
        store = (index < rows) & inside
        pull = tl.where(here_i, weighted(of_q, pull_y), 0.0)
        store_rows(d_y, start + index, s, e, S, E, pull, store)
        pull = tl.where(here_l, weighted(of_q, pull_c), 0.0)
        store_rows(d_x, start + index, s, e, S, E, pull, store)
        store_rows(d_mu, start + index, s, e, S, E, pull, store)
        if PULL_STDS:
            pull = of_g * (n - here_i.to(tl.int32)).to(ACC) - weighted(of_q, squares)
            # A sigma of 0 must not meet an overflow.
            pull = tl.where(here_l & (sigma != 0), (sigma * precision) * pull, 0.0)
            if OWN_STDS:
                others = of_k * (m - here_l.to(tl.int32)).to(ACC)
                over = reciprocal(variance(sigma, eps_i, here_i))
                pull += tl.where(here_i, (sigma * over) * others, 0.0)
            store_rows(d_stds, start + index, s, e, S, E, pull, store)
