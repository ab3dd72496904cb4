"""From moments of rows to the planes that tell others of them, merged where the batch is split.

Planes (6, S, E): mean, rest and m2 of the samples, mean, rest and weight of the components. A mean
is the nearest number of their type, and what is left of it: whoever merges them knows no shift.
Columns that are out of range, or lost to their shift, are NaN, and left to `_parts_again.py`.
"""

import triton
import triton.language as tl

from ._moments_finish import far
from ._splits import merged_splits, store_split
from ._tiles import load, multiple, position, store_sums, two_sum

PLANES = tl.constexpr(6)
COUNTS = tl.constexpr(6)
"""Rows of the counts of a mixture, see `meet_kernel`."""


@triton.jit
def shifts_of_roles(y, x, mu, counts, starts, place, ACC: tl.constexpr, FEATURES: tl.constexpr):
    """How many samples and components contribute, and the shifts (FEATURES,) of y, x and mu: their
    first contributing rows."""
    tile, s, S, E = place
    e = tile * FEATURES + tl.arange(0, FEATURES)
    n, m = tl.load(counts + s), tl.load(counts + S + s)
    i, j = starts[0] + tl.load(counts + 2 * S + s), starts[1] + tl.load(counts + 3 * S + s)
    of_y = load(y, i, s, e, (e < E) & (n > 0), ACC)
    some = (e < E) & (m > 0)
    return n, m, (of_y, load(x, j, s, e, some, ACC), load(mu, j, s, e, some, ACC))


@triton.jit
def store_mean(to, plane, high, low, lost, inside):
    """high + low, of which `high` is the larger one, as the nearest number and the rest."""
    OUT: tl.constexpr = to.dtype.element_ty
    nearest = high.to(OUT)
    rest = ((high - nearest.to(high.dtype)) + low).to(OUT)
    nan = float("nan")
    tl.store(to, tl.where(lost, nan, nearest), mask=inside)
    tl.store(to + plane, tl.where(lost, nan, rest), mask=inside)


@triton.jit
def store_weight(to, weight, some, inside):
    """NaN where float32 has no room for it: it has lost digits, or soon has."""
    if to.dtype.element_ty == tl.float32:
        weight = tl.where(some & (weight < 2.0**-100), float("nan"), weight)
    tl.store(to, weight.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _widened(value, planes):
    """For sums of a shift and what is from there."""
    if planes.dtype.element_ty == tl.float64:
        return value.to(tl.float64)
    else:
        return value


@triton.jit
def _store_planes(samples, components, shifts, counts, planes, place):
    """Returns the weighted squares of the components, added up where they are not lost."""
    tile, s, S, E = place
    y_shift, x_shift, mu_shift = shifts
    count, mean_y, m2_y = samples
    weight, mean_c, m2_c = components
    LARGEST: tl.constexpr = 2.0**100 if mean_c.dtype == tl.float32 else 2.0**1000
    INF: tl.constexpr = float("inf")
    e = tile * mean_c.shape[0] + tl.arange(0, mean_c.shape[0])
    plane = S.to(tl.int64) * E
    to = planes + s.to(tl.int64) * E + e
    some_i, some_l = (e < E) & (counts[0] > 0), (e < E) & (counts[1] > 0)

    lost = far(count, mean_y, y_shift + mean_y, m2_y)
    lost = some_i & (lost | ~((m2_y < LARGEST) & (tl.abs(mean_y) < INF)))
    mean_y, m2_y = tl.where(some_i, mean_y, 0.0), tl.where(some_i, m2_y, 0.0)
    high, low = two_sum(_widened(y_shift, planes), _widened(mean_y, planes))
    store_mean(to, plane, high, low, lost, e < E)
    tl.store(to + 2 * plane, m2_y.to(planes.dtype.element_ty), mask=e < E)

    c_shift, rest = two_sum(x_shift, mu_shift)
    delta = mean_c + rest
    # A sample is about sqrt v away from its component: the weights times that are their number.
    lost = far(weight, delta, c_shift + delta, m2_c + counts[1])
    lost = some_l & (lost | ~((m2_c < LARGEST) & (weight < LARGEST) & (tl.abs(delta) < INF)))
    delta, weight = tl.where(some_l, delta, 0.0), tl.where(some_l, weight, 0.0)
    high, low = two_sum(_widened(c_shift, planes), _widened(delta, planes))
    store_mean(to + 3 * plane, plane, high, low, lost, e < E)
    store_weight(to + 5 * plane, weight, some_l, e < E)
    return tl.sum(tl.where(some_l & ~lost, m2_c, 0.0), 0).to(tl.float64)


@triton.jit
def store_parts(
    samples,  # n, mean and m2 (FEATURES,)
    components,  # weight, mean and m2 (FEATURES,)
    logs,  # log v + log 2 pi of these rows, added up: of samples, of components
    shifts,
    numbers,  # how many samples and components contribute
    counts,  # (6, S) int32, see `meet_kernel`
    planes,  # where there is one split
    parts,  # (splits, 5, S, E), see `store_split`; where there are more
    split_samples,  # (splits, S)
    sums,
    split,
    splits,
    place,
):
    """Of one program of `parts_kernel`."""
    _, s, S, _ = place
    met_by_samples = tl.load(counts + 4 * S + s).to(tl.float64)
    met_by_components = tl.load(counts + 5 * S + s).to(tl.float64)
    within = tl.zeros((), tl.float64)
    if splits == 1:
        squares = _store_planes(samples, components, shifts, numbers, planes, place)
        within = met_by_components * squares
    else:
        store_split(samples, components, parts, split_samples, split, place)
    of_g, of_k = met_by_components * logs[1], met_by_samples * logs[0]
    store_sums(sums, tl.program_id(0), within, of_g, of_k)


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "splits", "partials", "S", "E", "tiles"],
    do_not_specialize_on_alignment=["partial_sums", "split_samples", "counts"],
)
def parts_finish_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    counts,  # (mixtures, 6, S) int32, see `meet_kernel`
    parts,  # (mixtures, splits, 5, S, E) ACC, see `store_split`
    split_samples,  # (mixtures, splits, S) ACC
    planes,  # (mixtures, 6, S, E)
    partial_sums,  # (mixtures, partials, 3) float64: what lies within the components, times 2; 0; 0
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
    counts += COUNTS * mixture * S
    parts += 5 * mixture * splits.to(tl.int64) * plane
    split_samples += mixture * splits.to(tl.int64) * S
    planes += PLANES * mixture * plane
    i_start = tl.where(mixture == 0, sample_start, component_start)
    l_start = tl.where(mixture == 0, component_start, sample_start)
    samples, components = merged_splits(parts, split_samples, splits, place, ROWS, FEATURES)
    n, m, shifts = shifts_of_roles(y, x, mu, counts, (i_start, l_start), place, ACC, FEATURES)
    squares = _store_planes(samples, components, shifts, (n, m), planes, place)
    within = tl.load(counts + 5 * S + s).to(tl.float64) * squares
    number = mixture * partials.to(tl.int64) + s * tiles + tile
    store_sums(partial_sums, number, within, 0.0, 0.0)
