"""The sums over all pairs from the moments of both roles, merged where the batch is split."""

import triton
import triton.language as tl

from ._instructions import reciprocal
from ._splits import merged_splits, store_split
from ._tiles import load, multiple, position, store_state, store_sums, two_sum


@triton.jit
def shifts_of(
    y,
    x,
    mu,
    counts,  # (4, S) int32, see Positions
    sample_start,
    component_start,
    place,
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """How many samples and components contribute, and the shifts (FEATURES,) of y, x and mu."""
    tile, s, S, E = place
    e = tile * FEATURES + tl.arange(0, FEATURES)
    n, m = tl.load(counts + s), tl.load(counts + S + s)
    some = (e < E) & (n > 0) & (m > 0)
    i = sample_start + tl.load(counts + 2 * S + s)
    j = component_start + tl.load(counts + 3 * S + s)
    of_y, of_x, of_mu = (
        load(y, i, s, e, some, ACC),
        load(x, j, s, e, some, ACC),
        load(mu, j, s, e, some, ACC),
    )
    return n, m, (of_y, of_x, of_mu)


@triton.jit
def far(weight, delta, mean, m2):
    """Whether the shift is further from the mean than 8 root mean squares of the rows; `m2` is
    their spread, and what else a difference from them is made of."""
    over = reciprocal(delta)  # of 0 it is inf, and what follows inf or NaN, which is not less
    of_mean = mean * over
    return (of_mean * of_mean) * weight + (m2 * over) * over < weight / 64


@triton.jit
def centre_of(moments, x_shift, mu_shift):
    """The shift of x + mu, rounded; from there, the mean of the components."""
    c_shift, rest = two_sum(x_shift, mu_shift)
    return c_shift, moments[1] + rest


@triton.jit
def pairs_of(samples, components, shifts, counts, some):
    """q, times 2, of each column; which columns are lost; where the mean of the components is from
    x + mu of the first row, rounded."""
    y_shift, x_shift, mu_shift = shifts
    n, mean_y, m2_y = samples
    weight, mean_c, m2_c = components
    LARGEST: tl.constexpr = 2.0**100 if mean_c.dtype == tl.float32 else 2.0**1000
    c_shift, delta_c = centre_of(components, x_shift, mu_shift)
    distance = (y_shift - c_shift) + (mean_y - delta_c)
    q = m2_y * weight + ((n * weight) * distance) * distance + n * m2_c
    lost = far(n, mean_y, y_shift + mean_y, m2_y)
    # A sample is about sqrt v away from its component: the weights times that are their number.
    lost |= far(weight, delta_c, c_shift + delta_c, m2_c + counts[1])
    lost |= ~(q < LARGEST)  # nor where a mean is not finite, as q is not
    return q, lost & some, delta_c


@triton.jit
def sum_of_pairs(q, some, lost):
    """Over the columns that are not lost."""
    return tl.sum(tl.where(some & ~lost, q, 0.0), 0).to(tl.float64)


@triton.jit
def _store_state(samples, components, shifts, counts, state, place):
    """Writes (4, S, E): delta, m2 of samples; delta, weight of components; NaN where lost. Deltas
    are means from y and from x + mu, rounded, of the first row. Returns q, times 2, added up over
    the other columns."""
    tile, _, _, E = place
    _, mean_y, m2_y = samples
    e = tile * mean_y.shape[0] + tl.arange(0, mean_y.shape[0])
    some = (e < E) & (counts[0] > 0) & (counts[1] > 0)
    q, lost, delta_c = pairs_of(samples, components, shifts, counts, some)
    store_state(state, place, lost, mean_y, m2_y, delta_c, components[0])
    return sum_of_pairs(q, some, lost)


@triton.jit
def store_moments(
    samples,  # n, mean and m2 (FEATURES,)
    components,  # weight, mean and m2 (FEATURES,)
    of_g,  # sums, times 2
    of_k,
    shifts,
    counts,
    state,  # where there is one split
    parts,  # (splits, 5, S, E), see `store_split`; where there are more
    split_samples,  # (splits, S)
    sums,
    split,
    splits,
    place,
):
    """Of one program of `accumulate_kernel`."""
    of_q = tl.zeros((), tl.float64)
    if splits == 1:
        of_q = _store_state(samples, components, shifts, counts, state, place)
    else:
        store_split(samples, components, parts, split_samples, split, place)
    store_sums(sums, tl.program_id(0), of_q, of_g, of_k)


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "splits", "partials", "S", "E", "tiles"],
    do_not_specialize_on_alignment=["partial_sums", "split_samples"],
)
def finish_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    counts,  # (mixtures, 4, S) int32, see `settle_kernel`
    parts,  # (mixtures, splits, 5, S, E) ACC, see `store_split`
    split_samples,  # (mixtures, splits, S) ACC
    state,  # (mixtures, 4, S, E) ACC
    partial_sums,  # (mixtures, partials, 3) float64: of q, times 2; 0; 0
    sample_start,  # of the first mixture; the second has the roles of all rows swapped
    component_start,
    splits,
    partials,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    E = multiple(E, UNIT)
    ACC: tl.constexpr = parts.dtype.element_ty
    tile, s, mixture = position(tiles, S)
    place = (tile, s, S, E)
    plane = S.to(tl.int64) * E
    counts += 4 * mixture * S
    parts += 5 * mixture * splits.to(tl.int64) * plane
    split_samples += mixture * splits.to(tl.int64) * S
    state += 4 * mixture * plane
    i_start = tl.where(mixture == 0, sample_start, component_start)
    l_start = tl.where(mixture == 0, component_start, sample_start)
    samples, components = merged_splits(parts, split_samples, splits, place, ROWS, FEATURES)
    n, m, shifts = shifts_of(y, x, mu, counts, i_start, l_start, place, ACC, FEATURES)
    of_q = _store_state(samples, components, shifts, (n, m), state, place)
    number = mixture * partials.to(tl.int64) + s * tiles + tile
    store_sums(partial_sums, number, of_q, 0.0, 0.0)
