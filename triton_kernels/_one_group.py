"""The moments of so few rows that those of a role are one group, see `_moments_rows.py`, and their
gradients: of a column all rows are in the registers of a thread.

Each pass reads them once, and the backward pass forms the moments again, which is less than to keep
them: nothing goes from forward to backward but a byte for each column, whether it is lost. A
program takes one position and some features of one mixture. Where there are two, the stds that it
reads are those of its components, which are samples of the other mixture.
"""

import triton
import triton.language as tl

from ._instructions import reciprocal
from ._moments_finish import pairs_of, sum_of_pairs
from ._moments_forward import load_eps
from ._moments_rows import (
    GROUP,
    centres,
    components_of,
    load_rows,
    log_sum,
    logs_of,
    samples_of,
    variance,
    where,
)
from ._tiles import load_mask, multiple, position


@triton.jit
def _first(a, rank_a, b, rank_b):
    return tl.where(rank_a < rank_b, a, b), tl.minimum(rank_a, rank_b)


@triton.jit
def _shift(rows, here, local):
    """Of a group the first row that is `here`, (FEATURES,); else 0. Lanes may share a group, and
    each reduces in an order of its own: of different ranks the result does not depend on it."""
    rank = tl.broadcast_to(tl.where(here, local, local + GROUP), rows.shape)
    shift, _ = tl.reduce(tl.reduce((rows, rank), 0, _first), 0, _first)
    return shift


@triton.jit
def _either(eps, other, swap, ACC: tl.constexpr):
    """Of this mixture, or of the other one."""
    if other is None:
        return load_eps(eps, ACC)
    else:
        return tl.where(swap, load_eps(other, ACC), load_eps(eps, ACC))


@triton.jit
def place_of(tiles, S, E, FEATURES: tl.constexpr, VECTOR: tl.constexpr):
    """Tile, position and mixture; which features, and whether they are any; rows of a group."""
    tile, s, mixture = position(tiles, S)
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    two = tl.arange(0, 2)
    local = two[:, None, None] + 2 * two[None, :, None]
    e = tl.max_contiguous(feature, VECTOR)[None, None, :]
    return tile, s, mixture, feature < E, local, e


@triton.jit
def _rows_of(
    tensors,  # y, x, mu, stds: (rows, S, E) strided
    masks,  # (rows, S) strided bool of both roles
    eps,  # of the components, and of what `own` are, or None
    ranges,  # start and number of the samples, of the components
    counts,  # of contributing samples, of components; of components that what is `own` meets
    at,  # position, which features, whether they are any, rows of a group
    OWN_STDS: tl.constexpr,
    APART: tl.constexpr,  # `own` are the samples, else the components in their other role
    SHARED: tl.constexpr,  # these have one eps and one mask in both roles
    ACC: tl.constexpr,
):
    """What a program reads. Samples: which are here, their y and the shift of it. Components: which
    are here, x + mu less its shifts, these, stds, v and 1 / v. `own`: which are here, stds, v."""
    y, x, mu, stds = tensors
    i_start, N = ranges[0]
    l_start, M = ranges[1]
    s, e, inside, local = at
    here_i = load_mask(masks[0], i_start + local, s, local < N) & (counts[1] > 0)
    here_l = load_mask(masks[1], l_start + local, s, local < M) & (counts[0] > 0)
    use_i, use_l = here_i & inside, here_l & inside
    sample = load_rows(y, i_start, s, local, e, use_i, ACC)
    x_rows = load_rows(x, l_start, s, local, e, use_l, ACC)
    mu_rows = load_rows(mu, l_start, s, local, e, use_l, ACC)
    y_shift = _shift(sample, here_i, local)
    x_shift, mu_shift = _shift(x_rows, here_l, local), _shift(mu_rows, here_l, local)
    centre = centres(x_rows, mu_rows, x_shift, mu_shift, here_l)
    here_own = here_l
    if OWN_STDS and not APART and not SHARED:
        here_own = load_mask(masks[0], l_start + local, s, local < M) & (counts[2] > 0)
        both = load_rows(stds, l_start, s, local, e, (here_own | here_l) & inside, ACC)
        sigma = tl.where(use_l, both, 0.0)
        sigma_own = tl.where(here_own, both, 0.0)
    else:
        sigma = load_rows(stds, l_start, s, local, e, use_l, ACC)
        sigma_own = sigma
    v = variance(sigma, eps[0], here_l)
    v_own = v
    if OWN_STDS and APART:
        here_own = here_i
        sigma_own = load_rows(stds, i_start, s, local, e, use_i, ACC)
    if OWN_STDS and not SHARED:
        v_own = variance(sigma_own, eps[1], here_own)
    samples = here_i, sample, y_shift
    components = here_l, centre, (x_shift, mu_shift), sigma, v, where(here_l, reciprocal(v))
    return samples, components, (here_own, sigma_own, v_own)


@triton.jit
def mixture_of(
    tensors,
    masks,
    eps,  # of samples and components, and the same of a second mixture
    counts,
    rows,  # start of the samples and of the components, how many of each
    place,
    S,
    MIXTURES: tl.constexpr,
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """See `_rows_of`; and the ranges, the counts and the stabilisers of that mixture."""
    sample_eps, component_eps, other_sample_eps, other_component_eps = eps
    sample_start, component_start, N, M = rows
    _, s, mixture, inside, local, e = place
    APART: tl.constexpr = MIXTURES == 1
    swap = mixture == 1
    of_samples = tl.where(swap, component_start, sample_start), tl.where(swap, M, N)
    of_components = tl.where(swap, sample_start, component_start), tl.where(swap, N, M)
    own = mixture if APART else 1 - mixture
    n, m = tl.load(counts + 4 * mixture * S + s), tl.load(counts + (4 * mixture + 1) * S + s)
    met = tl.load(counts + (4 * own + 1) * S + s)
    eps_l = _either(component_eps, other_component_eps, swap, ACC)
    eps_own = eps_l  # not None: Triton 3.6 takes no variable that is None into a tuple
    if OWN_STDS:
        eps_own = _either(sample_eps, other_sample_eps, own == 1, ACC)
    numbers, ranges = (n, m, met), (of_samples, of_components)
    at = (s, e, inside[None, None, :], local)
    samples, components, own = _rows_of(
        tensors, masks, (eps_l, eps_own), ranges, numbers, at, OWN_STDS, APART, SHARED, ACC
    )
    return samples, components, own, numbers, ranges, (eps_l, eps_own)


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "programs", "S", "E", "tiles")
    ],
    do_not_specialize_on_alignment=[
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        "partial_sums",
    ],
)
def one_group_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    counts,  # (MIXTURES, 4, S) int32, see `settle_kernel`
    sample_eps,  # ()
    component_eps,  # ()
    other_sample_eps,  # of a second mixture, in which the roles of all rows are swapped
    other_component_eps,
    lost,  # (MIXTURES, S, E) uint8: columns that are left to `sums_of_pairs_kernel`
    partial_sums,  # (MIXTURES, programs, 3) float64: of q, g, k, times 2
    sample_start,
    component_start,
    N,
    M,
    programs,  # of a mixture
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    OWN_STDS: tl.constexpr,
    MIXTURES: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    E = multiple(E, UNIT)
    place = place_of(tiles, S, E, FEATURES, VECTOR)
    tile, s, mixture, inside, _, _ = place
    tensors, masks = (y, x, mu, stds), (sample_mask, component_mask)
    eps = (sample_eps, component_eps, other_sample_eps, other_component_eps)
    rows = (sample_start, component_start, N, M)
    samples, components, own, numbers, ranges, eps = mixture_of(
        tensors, masks, eps, counts, rows, place, S, MIXTURES, OWN_STDS, SHARED, ACC
    )
    here_i, sample, y_shift = samples
    here_l, centre, c_shifts, _, v, precision = components
    here_own, _, v_own = own
    n, m, met = numbers
    nobody = tl.zeros((1,), ACC)
    count, total, least, largest = logs_of(nobody, v, here_l)
    found = count[None, :], total[None, :], least[None, :], largest[None, :]
    of_rows, at = (ranges[1][0], M, 0, ranges[1][1]), (tile, s, S, E)
    log_l, odd = log_sum(found, stds, eps[0], component_mask, n > 0, of_rows, at, inside)
    log_own = log_l
    if not OWN_STDS:
        log_own = tl.zeros((), tl.float64)
    elif not SHARED:
        if MIXTURES == 1:
            of_rows = (ranges[0][0], N, 0, ranges[0][1])
        count, total, least, largest = logs_of(nobody, v_own, here_own)
        found = count[None, :], total[None, :], least[None, :], largest[None, :]
        log_own, of_own = log_sum(found, stds, eps[1], sample_mask, met > 0, of_rows, at, inside)
        odd = odd | of_own
    of_y = samples_of(nobody, sample - where(here_i, y_shift), here_i)
    weight, mean_c, m2_c = components_of(centre, precision)
    of_c = weight, tl.where(odd, float("nan"), mean_c), m2_c
    some = inside & (n > 0) & (m > 0)
    q, is_lost, _ = pairs_of(of_y, of_c, (y_shift, c_shifts[0], c_shifts[1]), (n, m), some)
    e = tile * FEATURES + tl.arange(0, FEATURES)
    tl.store(lost + (mixture * S + s).to(tl.int64) * E + e, is_lost.to(tl.uint8), mask=inside)
    number = s * tiles + tile
    to = partial_sums + 3 * (mixture.to(tl.int64) * programs + number)
    tl.store(to, sum_of_pairs(q, some, is_lost))
    tl.store(to + 1, n * log_l)
    if MIXTURES == 2:
        to = partial_sums + 3 * ((1 - mixture).to(tl.int64) * programs + number)
    tl.store(to + 2, met * log_own)
