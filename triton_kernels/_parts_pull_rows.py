"""The loop over rows of `_parts_pull.py`: gradients, elementwise, given the moments of partners, as
in `_moments_backward.py`, with planes in place of a state and of shifts."""

import triton
import triton.language as tl

from ._moments_backward import pull_of_own_stds, pulls_of_components
from ._tiles import (
    load,
    load_mask,
    position_of,
    root_terms,
    store_rows,
    variance_terms,
    weighted,
)


@triton.jit
def _planes_of(planes, at, plane, some, ACC: tl.constexpr):
    """A mean in two parts that are numbers of ACC, and what follows it."""
    mean = tl.load(planes + at, mask=some, other=0.0)
    rest = tl.load(planes + at + plane, mask=some, other=0.0)
    last = tl.load(planes + at + 2 * plane, mask=some, other=0.0)
    nearest = mean.to(ACC)
    return nearest, ((mean - nearest.to(mean.dtype)) + rest).to(ACC), last.to(ACC)


@triton.jit
def _outside(value, ACC: tl.constexpr):
    """Whether numbers >= 0 are out of range: 0 is not."""
    LARGEST: tl.constexpr = 2.0**100 if tl.float32 == ACC else 2.0**1000
    return (value != 0) & ~((value > 1.0 / LARGEST) & (value < LARGEST))


@triton.jit
def _odd(sigma, eps, use, ACC: tl.constexpr):
    """Where a variance is out of range."""
    LARGEST: tl.constexpr = 2.0**62 if tl.float32 == ACC else 2.0**505
    v = sigma * sigma + eps
    return use & ~((v > 1.0 / LARGEST) & (v < LARGEST))


@triton.jit
def _by_roots(
    upstreams, sigma, eps, from_mean, moments, use, PULL_C: tl.constexpr, PULL_STDS: tl.constexpr
):
    """As `pulls_of_components`, in float64 where nothing but a ratio is squared."""
    upstream_c, upstream_g = upstreams
    count, m2_y = moments
    root, _ = root_terms(sigma, eps)
    standardised = from_mean / root
    gradient_c = tl.zeros_like(sigma)
    gradient_stds = tl.zeros_like(sigma)
    if PULL_C:
        gradient_c = tl.where(use, weighted(upstream_c, count * standardised) / root, 0.0)
    if PULL_STDS:
        squares = m2_y / root / root + count * standardised * standardised
        pull = (upstream_g * count - weighted(upstream_c, squares)) / root
        gradient_stds = tl.where(use & (sigma != 0), (sigma / root) * pull, 0.0)
    return gradient_c, gradient_stds


@triton.jit
def pull_rows(
    item,  # tile of features, position and range of rows
    tensors,
    eps,
    masks,
    planes,
    upstreams,
    counts,
    gradients,
    rows_of,
    sizes,
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Of the rows of one pass; arguments as those of the kernel, in tuples of both roles. Whether
    something is out of range."""
    y, x, mu, stds = tensors
    sample_eps, component_eps = eps
    sample_mask, component_mask = masks
    met_by_samples, met_by_components = counts
    d_y, d_x, d_mu, d_stds = gradients
    start, rows, rows_per_split = rows_of
    S, E, tiles = sizes
    SAMPLES: tl.constexpr = met_by_samples is not None
    COMPONENTS: tl.constexpr = met_by_components is not None
    OWN_STDS: tl.constexpr = sample_eps is not None
    PULL_Y: tl.constexpr = SAMPLES and d_y is not None
    PULL_OWN: tl.constexpr = SAMPLES and OWN_STDS and d_stds is not None
    PULL_C: tl.constexpr = COMPONENTS and (d_x is not None or d_mu is not None)
    PULL_STDS: tl.constexpr = COMPONENTS and d_stds is not None

    tile, s, split = position_of(item, tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)[None, :]
    inside_e = e < E
    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + e
    odd = tl.zeros((1, FEATURES), tl.int1)
    # Not None: Triton 3.6 takes no variable that is None into a tuple.
    upstream_g = tl.zeros((), ACC)
    m2_y = tl.zeros((1, FEATURES), ACC)
    if SAMPLES:
        components = tl.load(met_by_samples + s).to(tl.int32)
        some_i = (components > 0) & inside_e
    if COMPONENTS:
        samples = tl.load(met_by_components + s).to(tl.int32)
        some_l = (samples > 0) & inside_e
        eps_l = tl.load(component_eps).to(ACC)
    if PULL_Y:
        mean_c, rest_c, weight = _planes_of(planes[0], at + 3 * plane, plane, some_i, ACC)
        odd = odd | _outside(weight, ACC)
        upstream_y = tl.load(upstreams[0]).to(ACC)
    if PULL_OWN:
        eps_i = tl.load(sample_eps).to(ACC)
        upstream_k = tl.load(upstreams[0] + 2).to(ACC)
    if PULL_C or PULL_STDS:
        mean_y, rest_y, m2_y = _planes_of(planes[1], at, plane, some_l, ACC)
        odd = odd | _outside(m2_y, ACC)
        upstream_c = tl.load(upstreams[1]).to(ACC)
        upstream_g = tl.load(upstreams[1] + 1).to(ACC)

    end = min((split + 1) * rows_per_split, rows)
    found = tl.zeros((ROWS, FEATURES), tl.int1) | odd
    for begin in range(split * rows_per_split, end, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        row = start + index
        inside = (index < end) & inside_e
        here_i = tl.zeros((ROWS, 1), tl.int1)
        here_l = tl.zeros((ROWS, 1), tl.int1)
        if SAMPLES:
            here_i = load_mask(sample_mask, row, s, index < end) & (components > 0)
        if COMPONENTS:
            here_l = load_mask(component_mask, row, s, index < end) & (samples > 0)
        use_i = here_i & inside_e
        use_l = here_l & inside_e
        gradient_y = tl.zeros((ROWS, FEATURES), ACC)
        gradient_c = tl.zeros((ROWS, FEATURES), ACC)
        gradient_stds = tl.zeros((ROWS, FEATURES), ACC)

        if PULL_OWN or PULL_C or PULL_STDS:
            use = use_l
            if PULL_OWN:
                use = use | use_i
            sigma = load(stds, row, s, e, use, ACC)
            sigma = tl.where(use, sigma, 1.0)
        if PULL_Y:
            value = load(y, row, s, e, use_i, ACC)
            pull = ((value - mean_c) - rest_c) * weight
            gradient_y = tl.where(use_i, weighted(upstream_y, pull), 0.0)
        if PULL_C or PULL_STDS:
            value = load(x, row, s, e, use_l, ACC)
            offset = load(mu, row, s, e, use_l, ACC)
            from_mean = ((value - mean_y) + offset) - rest_y
            upstream_l = (upstream_c, upstream_g)
            met = samples.to(ACC)
            if CAREFUL:
                gradient_c, gradient_stds = _by_roots(
                    upstream_l, sigma, eps_l, from_mean, (met, m2_y), use_l, PULL_C, PULL_STDS
                )
            else:
                found = found | _odd(sigma, eps_l, use_l, ACC)
                precision, _ = variance_terms(sigma, eps_l)
                gradient_c, gradient_stds = pulls_of_components(
                    upstream_l,
                    sigma,
                    precision,
                    from_mean,
                    (met, m2_y, met),
                    None,
                    use_l,
                    PULL_C,
                    PULL_STDS,
                    False,
                )
        if PULL_OWN:
            met = components.to(ACC)
            if CAREFUL:
                root, _ = root_terms(sigma, eps_i)
                pull = (sigma / root) * (weighted(upstream_k, met) / root)
            else:
                found = found | _odd(sigma, eps_i, use_i, ACC)
                of_own, _ = variance_terms(sigma, eps_i)
                pull = pull_of_own_stds(sigma, of_own, upstream_k, met)
            gradient_stds += tl.where(use_i, pull, 0.0)

        if not CAREFUL:
            size = tl.abs(gradient_y) + tl.abs(gradient_c) + tl.abs(gradient_stds)
            found = found | ~(size < float("inf"))
        store_rows(d_y, row, s, e, S, E, gradient_y, inside)
        store_rows(d_x, row, s, e, S, E, gradient_c, inside)
        store_rows(d_mu, row, s, e, S, E, gradient_c, inside)
        store_rows(d_stds, row, s, e, S, E, gradient_stds, inside)
    return tl.max(tl.max(found.to(tl.int32), 1), 0)
