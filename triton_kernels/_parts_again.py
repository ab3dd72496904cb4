"""Columns, one feature of one position, in which the moments of rows are out of range or lost to
their shift: their planes are NaN, see `_parts_finish.py`. Here they are in float64, as in
`fused_mi.reference.parts`: nothing but a deviation is squared, and components are measured from the
one that weighs most.
"""

import triton
import triton.language as tl

from ._moments_of_pairs import next_of
from ._parts_finish import COUNTS, PLANES, store_mean, store_weight
from ._terms import sums_of
from ._tiles import load, load_mask, multiple, position, root_terms, store_sums, two_sum


@triton.jit
def _is_nan(at, mask):
    value = tl.load(at, mask=mask, other=0.0)
    return value != value


@triton.jit
def _lighter(root, value, other_root, other_value):
    """The one of the smaller root."""
    first = root <= other_root
    return tl.where(first, root, other_root), tl.where(first, value, other_value)


@triton.jit
def _here(mask, start, index, rows, s, use):
    return load_mask(mask, start + index, s, index < rows) & use


@triton.jit
def _samples(y, role, shift_row, s, e, lost, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """Shift, mean from there and m2 of the samples (1, FEATURES)."""
    mask, start, rows = role
    ACC: tl.constexpr = tl.float64
    INF: tl.constexpr = float("inf")
    shift = load(y, start + shift_row, s, e, lost, ACC)
    shift = tl.where(tl.abs(shift) < INF, shift, 0.0)  # from infinity nothing is a difference
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    total, count, squares = zeros, zeros, zeros
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        here = _here(mask, start, index, rows, s, lost)
        total += tl.where(here, load(y, start + index, s, e, here, ACC) - shift, 0.0)
        count += here.to(ACC)
    mean = tl.sum(total, 0)[None, :] / tl.maximum(tl.sum(count, 0)[None, :], 1.0)
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        here = _here(mask, start, index, rows, s, lost)
        from_mean = (load(y, start + index, s, e, here, ACC) - shift) - mean
        squares += tl.where(here, from_mean * from_mean, 0.0)
    m2 = tl.sum(squares, 0)[None, :]
    return shift, mean, tl.where(tl.abs(mean) == INF, INF, m2)


@triton.jit
def _root_and_precision(stds, row, s, e, here, eps):
    sigma = load(stds, row, s, e, here, tl.float64)
    root, _ = root_terms(tl.where(here, sigma, 1.0), eps)
    return root, 1.0 / root / root


@triton.jit
def _components(x, mu, stds, eps, role, s, e, lost, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """Shift, mean from there, weight and m2 of the components (1, FEATURES)."""
    mask, start, rows = role
    ACC: tl.constexpr = tl.float64
    INF: tl.constexpr = float("inf")
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    least, heaviest, weights, means, squares = zeros + INF, zeros, zeros, zeros, zeros
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        here = _here(mask, start, index, rows, s, lost)
        root, precision = _root_and_precision(stds, start + index, s, e, here, eps)
        value = load(x, start + index, s, e, here, ACC)
        weights += tl.where(here, precision, 0.0)
        lighter = here & (root < least) & (tl.abs(value) < INF)
        least, heaviest = tl.where(lighter, root, least), tl.where(lighter, value, heaviest)
    nearest = tl.reduce((least, heaviest), 0, _lighter)
    shift = nearest[1][None, :]
    weight = tl.sum(weights, 0)[None, :]
    over = 1.0 / tl.where(weight > 0, weight, 1.0)
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        here = _here(mask, start, index, rows, s, lost)
        _, precision = _root_and_precision(stds, start + index, s, e, here, eps)
        value = load(x, start + index, s, e, here, ACC) - shift
        value += load(mu, start + index, s, e, here, ACC)
        means += tl.where(here, (precision * over) * value, 0.0)
    mean = tl.sum(means, 0)[None, :]
    for begin in range(0, rows, ROWS):
        index = begin + tl.arange(0, ROWS)[:, None]
        here = _here(mask, start, index, rows, s, lost)
        _, precision = _root_and_precision(stds, start + index, s, e, here, eps)
        value = load(x, start + index, s, e, here, ACC) - shift
        from_mean = (value + load(mu, start + index, s, e, here, ACC)) - mean
        squares += tl.where(here, precision * (from_mean * from_mean), 0.0)
    m2 = tl.sum(squares, 0)[None, :]
    return shift, mean, weight, tl.where(tl.abs(mean) == INF, INF, m2)


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "partials", "programs", "S", "E", "tiles"),
    ],
    do_not_specialize_on_alignment=[
        *("component_eps", "other_component_eps", "partial_sums", "sums", "counts"),
    ],
)
def parts_again_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    other_component_eps,  # of a second mixture, in which the roles of all rows are swapped
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    counts,  # (mixtures, 6, S) int32, see `meet_kernel`
    planes,  # (mixtures, 6, S, E): NaN in lost columns
    partial_sums,  # (mixtures, partials, 3) float64, of `parts_kernel`
    sums,  # (mixtures, programs, 3) float64, times 2: what each program adds up of these, and more
    sample_start,
    component_start,
    N,
    M,
    partials,
    programs,  # of a mixture
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    E = multiple(E, UNIT)
    tile, s, mixture = position(tiles, S)
    plane = S.to(tl.int64) * E
    planes += PLANES * mixture * plane + s.to(tl.int64) * E
    counts += COUNTS * mixture * S
    eps = tl.load(component_eps)
    i_start, l_start = sample_start, component_start
    if other_component_eps is not None:
        swap = mixture == 1
        eps = tl.load(other_component_eps) if swap else eps
        N, M = tl.where(swap, M, N), tl.where(swap, N, M)
        i_start = tl.where(swap, component_start, sample_start)
        l_start = tl.where(swap, sample_start, component_start)
    n, m = tl.load(counts + s), tl.load(counts + S + s)
    first_i = tl.load(counts + 2 * S + s)
    met = tl.load(counts + 5 * S + s).to(tl.float64)
    left, right = tile * LOOK, min((tile + 1) * LOOK, E)
    columns = left + tl.arange(0, LOOK)
    all_lost = _is_nan(planes + columns, columns < E)
    all_lost = all_lost | _is_nan(planes + 3 * plane + columns, columns < E)
    within = tl.zeros((1, FEATURES), tl.float64)
    column = next_of(all_lost, columns, left, right)
    while column < right:
        e = column + tl.arange(0, FEATURES)[None, :]
        to = planes + e
        lost = _is_nan(to, (e < right) & (n > 0))
        shift, mean, m2 = _samples(
            y, (sample_mask, i_start, N), first_i, s, e, lost, ROWS, FEATURES
        )
        high, low = two_sum(shift, mean)
        store_mean(to, plane, high, low, e < 0, lost)
        tl.store(to + 2 * plane, m2.to(planes.dtype.element_ty), mask=lost)
        lost = _is_nan(to + 3 * plane, (e < right) & (m > 0))
        role = (component_mask, l_start, M)
        shift, mean, weight, m2 = _components(
            x, mu, stds, eps.to(tl.float64), role, s, e, lost, ROWS, FEATURES
        )
        high, low = two_sum(shift, mean)
        store_mean(to + 3 * plane, plane, high, low, e < 0, lost)
        store_weight(to + 5 * plane, weight, lost, lost)
        within += tl.where(lost, m2, 0.0)
        column = next_of(all_lost, columns, column + FEATURES, right)
    number = tl.program_id(0) - mixture * programs
    share = tl.cdiv(partials, programs)
    part = number * share, min((number + 1) * share, partials)
    partial_sums += mixture * partials.to(tl.int64) * 3
    # One warp's worth: no barrier, and a program seldom has more.
    of_q, of_g, of_k = sums_of(partial_sums, part, 32)
    of_q += met * tl.sum(within)
    store_sums(sums, tl.program_id(0), of_q, of_g, of_k)
