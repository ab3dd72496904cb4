"""The gradients of so few rows that those of a role are one group, see `_one_group.py`."""

import triton
import triton.language as tl

from ._instructions import reciprocal
from ._moments_backward import pull_of_own_stds, pulls_of_components
from ._moments_finish import centre_of
from ._moments_rows import components_of, samples_of, where
from ._one_group import mixture_of, place_of
from ._terms import upstream_of
from ._tiles import multiple, store_rows, two_sum, weighted


@triton.jit(
    do_not_specialize=[
        *("has_total", "has_terms", "term_stride", "divisor"),
        *("sample_start", "component_start", "N", "M", "S", "E", "tiles"),
    ],
    do_not_specialize_on_alignment=[
        *("of_total", "of_terms", "upstream"),
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
    ],
)
def one_group_gradient_kernel(
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
    sample_mask,  # up to `other_component_eps` see `one_group_kernel`
    component_mask,
    counts,
    sample_eps,
    component_eps,
    other_sample_eps,
    other_component_eps,
    upstream,  # (MIXTURES, 3) float64: gradients of the sums of q, g and k, or None
    d_y,  # (rows, S, E), written; None where there is nothing to write
    d_x,
    d_mu,
    d_stds,
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    OWN_STDS: tl.constexpr,
    MIXTURES: tl.constexpr,
    SHARED: tl.constexpr,
    ZEROS: tl.constexpr,  # rows have a gradient of 0 where they lack the role
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Every wanted gradient of all rows, see `gradient_kernel`."""
    E = multiple(E, UNIT)
    PULL_STDS: tl.constexpr = d_stds is not None
    PULL_OWN: tl.constexpr = PULL_STDS and OWN_STDS
    PULL_C: tl.constexpr = d_x is not None or d_mu is not None
    place = place_of(tiles, S, E, FEATURES, VECTOR)
    _, s, mixture, inside, local, e = place
    tensors, masks = (y, x, mu, stds), (sample_mask, component_mask)
    eps = (sample_eps, component_eps, other_sample_eps, other_component_eps)
    rows = (sample_start, component_start, N, M)
    samples, components, own, numbers, ranges, _ = mixture_of(
        tensors, masks, eps, counts, rows, place, S, MIXTURES, PULL_OWN, SHARED, ACC
    )
    here_i, sample, y_shift = samples
    here_l, centre, c_shifts, sigma, _, precision = components
    here_own, sigma_own, v_own = own
    n, _, met = numbers
    loss = of_total, of_terms, has_total, has_terms, term_stride, divisor
    if upstream is not None:
        of_q, of_g, of_k = upstream_of(upstream + 3 * mixture, loss)
        if MIXTURES == 2:
            _, _, of_k = upstream_of(upstream + 3 * (1 - mixture), loss)
    else:
        of_q, of_g, of_k = upstream_of(upstream, loss)
    of_q, of_g, of_k = of_q.to(ACC), of_g.to(ACC), of_k.to(ACC)
    inside_e = inside[None, None, :]
    i_start, N = ranges[0]
    l_start, M = ranges[1]
    store_i, store_l = (local < N) & inside_e, (local < M) & inside_e
    row_i, row_l = i_start + local, l_start + local
    zeros = tl.zeros_like(sigma)

    of_c = components_of(centre, precision)
    c_shift, delta_c = centre_of(of_c, c_shifts[0], c_shifts[1])
    if d_y is not None:
        pull = ((sample - c_shift) - delta_c) * of_c[0]
        pull = tl.where(here_i, weighted(of_q, pull), 0.0)
        store_rows(d_y, row_i, s, e, S, E, pull, store_i)
        if ZEROS:
            store_rows(d_y, row_l, s, e, S, E, zeros, store_l)
    of_own = zeros
    if PULL_OWN:
        over = precision if SHARED else reciprocal(v_own)
        of_own = pull_of_own_stds(sigma_own, over, of_k, met.to(ACC))
        of_own = tl.where(here_own, of_own, 0.0)
    if PULL_C or PULL_STDS:
        _, mean_y, m2_y = samples_of(tl.zeros((1,), ACC), sample - where(here_i, y_shift), here_i)
        own_shift, own_rest = two_sum(c_shifts[0], c_shifts[1])
        from_mean = centre + ((own_rest - mean_y) + (own_shift - y_shift))
        count = n.to(ACC)
        of_x, of_stds = pulls_of_components(
            (of_q, of_g),
            sigma,
            precision,
            from_mean,
            (count, m2_y, count),
            None,
            here_l,
            PULL_C,
            PULL_STDS,
            False,
        )
        store_rows(d_x, row_l, s, e, S, E, of_x, store_l)
        store_rows(d_mu, row_l, s, e, S, E, of_x, store_l)
        if ZEROS:
            store_rows(d_x, row_i, s, e, S, E, zeros, store_i)
            store_rows(d_mu, row_i, s, e, S, E, zeros, store_i)
        if MIXTURES == 2:
            of_stds += of_own
        store_rows(d_stds, row_l, s, e, S, E, of_stds, store_l)
        if ZEROS:
            store_rows(d_stds, row_i, s, e, S, E, of_own, store_i)
