"""The loop over rows of "leave_one_out": the sum over all pairs of different rows, and the pair of
a row with itself is never in it; and the moments of both roles.

As in `_moments_rows.py` a group of four rows stays in the registers of one thread. Its twelve pairs
are summed directly; the pairs of two sets of rows follow from the moments of each (`join`). No term
is negative, so that nothing is lost where one row is nearly all of a sum. Deviations of samples and
of components are measured from one shift, the centre of the first component.

Where all rows contribute, nothing is selected. Elsewhere what does not contribute is not loaded: it
is 0, with a weight of 0 and a variance of 1.
"""

import triton
import triton.language as tl

from ._instructions import log2, reciprocal
from ._moments_rows import (
    careful_log2,
    inverse,
    load_centres,
    load_rows,
    log_total,
    merge,
    merge_streams,
    odd_columns,
    variance,
    where,
)
from ._tiles import contributing


@triton.jit
def _across(n, mean_y, m2_y, weight, mean_c, m2_c):
    """The sum over all pairs of some samples with some components."""
    distance = mean_y - mean_c
    return m2_y * weight + ((n * weight) * distance) * distance + n * m2_c


@triton.jit
def _inverse(weight):
    """The same as `inverse`, rounded, by one step of Newton's method."""
    over = inverse(weight)
    return over * (2.0 - weight * over)


@triton.jit
def _merge_samples(n, mean, m2, more, more_mean, more_m2):
    """As `merge`, by a rounded quotient: one for all features."""
    share = more * _inverse(n + more)
    step = more_mean - mean
    return n + more, mean + share * step, (m2 + more_m2) + ((n * share) * step) * step


@triton.jit
def join(q, n, mean_y, m2_y, weight, mean_c, m2_c, q_b, n_b, mean_yb, m2_yb, w_b, mean_cb, m2_cb):
    """Pairs and moments of two sets of rows as those of their union."""
    q += q_b + _across(n, mean_y, m2_y, w_b, mean_cb, m2_cb)
    q += _across(n_b, mean_yb, m2_yb, weight, mean_c, m2_c)
    n, mean_y, m2_y = _merge_samples(n, mean_y, m2_y, n_b, mean_yb, m2_yb)
    weight, mean_c, m2_c = merge(weight, mean_c, m2_c, w_b, mean_cb, m2_cb)
    return q, n, mean_y, m2_y, weight, mean_c, m2_c


@triton.jit
def join_streams(q, n, mean_y, m2_y, weight, mean_c, m2_c):
    """Pairs and moments (ROWS, FEATURES) of streams as those of their union (FEATURES,)."""
    q, _, _, _, _, _, _ = tl.reduce((q, n, mean_y, m2_y, weight, mean_c, m2_c), 0, join)
    n, mean_y, m2_y = merge_streams(n, mean_y, m2_y)
    weight, mean_c, m2_c = merge_streams(weight, mean_c, m2_c)
    return q, n, mean_y, m2_y, weight, mean_c, m2_c


@triton.jit
def _sum(a, b, c, d):
    return (a + b) + (c + d)


@triton.jit
def _three(c, p, y0, here0, y1, here1, y2, here2):
    """Pairs of one component with three samples."""
    d0, d1, d2 = y0 - c, y1 - c, y2 - c
    return p * (where(here0, d0) * d0 + (where(here1, d1) * d1 + where(here2, d2) * d2))


@triton.jit
def _of_group(found, y, c, p, here):
    """Pairs and moments of four rows; `here` says which of them are samples."""
    _, n, _, _, _, _, _ = found
    q = _three(c[0], p[0], y[1], here[1], y[2], here[2], y[3], here[3])
    q += _three(c[1], p[1], y[0], here[0], y[2], here[2], y[3], here[3])
    q += _three(c[2], p[2], y[0], here[0], y[1], here[1], y[3], here[3])
    q += _three(c[3], p[3], y[0], here[0], y[1], here[1], y[2], here[2])
    if here[0] is None:
        more = tl.zeros_like(n) + 4
        mean_y = _sum(y[0], y[1], y[2], y[3]) * 0.25
    else:
        ACC: tl.constexpr = n.dtype
        more = _sum(here[0].to(ACC), here[1].to(ACC), here[2].to(ACC), here[3].to(ACC))
        mean_y = _sum(y[0], y[1], y[2], y[3]) * _inverse(tl.maximum(more, 1.0))
    d0, d1 = y[0] - where(here[0], mean_y), y[1] - where(here[1], mean_y)
    d2, d3 = y[2] - where(here[2], mean_y), y[3] - where(here[3], mean_y)
    m2_y = _sum(d0 * d0, d1 * d1, d2 * d2, d3 * d3)
    weight = _sum(p[0], p[1], p[2], p[3])
    of_all = inverse(weight)
    mean_c = _sum(p[0] * c[0], p[1] * c[1], p[2] * c[2], p[3] * c[3]) * of_all
    d0, d1, d2, d3 = c[0] - mean_c, c[1] - mean_c, c[2] - mean_c, c[3] - mean_c
    # What the mean lacks by rounding counts where one row has most of the weight.
    t0, t1, t2, t3 = p[0] * d0, p[1] * d1, p[2] * d2, p[3] * d3
    m2_c = _sum(t0 * d0, t1 * d1, t2 * d2, t3 * d3)
    mean_c += _sum(t0, t1, t2, t3) * of_all
    return q, more, mean_y, m2_y, weight, mean_c, m2_c


@triton.jit
def _row(
    tensors,
    shifts,
    eps,
    at,
    here_i,
    here_l,
    inside,
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """y, x + mu and 1 / v of a row for each stream, and the variances of both roles."""
    y, x, mu, stds = tensors
    c_shift, x_shift, mu_shift = shifts
    row, s, local, e = at
    use_i = here_i if here_i is None else here_i & inside
    use_l = here_l if here_l is None else here_l & inside
    with_stds = use_l
    if OWN_STDS and use_l is not None:
        with_stds = use_i | use_l
    sample = load_rows(y, row, s, local, e, use_i, ACC) - where(here_i, c_shift)
    centre = load_centres(x, mu, x_shift, mu_shift, row, s, local, e, use_l, here_l, ACC)
    sigma = load_rows(stds, row, s, local, e, with_stds, ACC)
    if OWN_STDS and not SHARED:
        sigma_l = sigma if use_l is None else tl.where(use_l, sigma, 0.0)
        v_l = variance(sigma_l, eps[1], here_l)
        v_i = variance(sigma if use_i is None else tl.where(use_i, sigma, 0.0), eps[0], here_i)
    else:
        v_l = variance(sigma, eps[1], here_l)
        v_i = v_l
    return sample, centre, where(here_l, reciprocal(v_l)), v_l, v_i


@triton.jit
def _outside(v, here, other):
    """v of rows that do not have the other role."""
    return tl.where(here & ~other, v, 1.0)


@triton.jit
def _add_logs(found, v, here, other, LEAST: tl.constexpr):
    """Of products of two variances: half as many logarithms."""
    total, alone, count, count_alone, least, largest = found
    if LEAST:
        least = tl.minimum(least, tl.minimum(tl.minimum(v[0], v[1]), tl.minimum(v[2], v[3])))
    largest = tl.maximum(largest, tl.maximum(tl.maximum(v[0], v[1]), tl.maximum(v[2], v[3])))
    total += log2(v[0] * v[1]) + log2(v[2] * v[3])
    if here[0] is None:
        count += 4
    else:
        ACC: tl.constexpr = count.dtype
        count += _sum(here[0].to(ACC), here[1].to(ACC), here[2].to(ACC), here[3].to(ACC))
        if other is not None:
            a, b = _outside(v[0], here[0], other[0]), _outside(v[1], here[1], other[1])
            c, d = _outside(v[2], here[2], other[2]), _outside(v[3], here[3], other[3])
            alone += log2(a * b) + log2(c * d)
            a, b = (here[0] & ~other[0]).to(ACC), (here[1] & ~other[1]).to(ACC)
            c, d = (here[2] & ~other[2]).to(ACC), (here[3] & ~other[3]).to(ACC)
            count_alone += _sum(a, b, c, d)
    return total, alone, count, count_alone, least, largest


@triton.jit
def _add_group(
    found,
    tensors,
    shifts,
    eps,
    at,
    here_i,
    here_l,
    inside,
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Four rows for each stream; `here` are None where all of them contribute."""
    moments, ends, sample_logs, component_logs = found
    row, s, local, e = at
    ROWS: tl.constexpr = local.shape[0]
    y0, c0, p0, v0, u0 = _row(
        tensors, shifts, eps, at, here_i[0], here_l[0], inside, OWN_STDS, SHARED, ACC
    )
    at = (row + ROWS, s, local, e)
    y1, c1, p1, v1, u1 = _row(
        tensors, shifts, eps, at, here_i[1], here_l[1], inside, OWN_STDS, SHARED, ACC
    )
    at = (row + 2 * ROWS, s, local, e)
    y2, c2, p2, v2, u2 = _row(
        tensors, shifts, eps, at, here_i[2], here_l[2], inside, OWN_STDS, SHARED, ACC
    )
    at = (row + 3 * ROWS, s, local, e)
    y3, c3, p3, v3, u3 = _row(
        tensors, shifts, eps, at, here_i[3], here_l[3], inside, OWN_STDS, SHARED, ACC
    )
    component_logs = _add_logs(
        component_logs, (v0, v1, v2, v3), here_l, None if SHARED else here_i, False
    )
    if OWN_STDS and not SHARED:
        sample_logs = _add_logs(sample_logs, (u0, u1, u2, u3), here_i, here_l, True)
    heaviest, lowest, highest = ends
    heaviest = tl.maximum(heaviest, tl.maximum(tl.maximum(p0, p1), tl.maximum(p2, p3)))
    group = _of_group(moments, (y0, y1, y2, y3), (c0, c1, c2, c3), (p0, p1, p2, p3), here_i)
    a0, a1, a2, a3 = y0, y1, y2, y3
    if here_i[0] is not None:
        # In place of what does not contribute; of a group without samples the mean is 0, which may
        # make a column that no row dominates look as if.
        of_group = group[2]
        a0, a1 = tl.where(here_i[0], y0, of_group), tl.where(here_i[1], y1, of_group)
        a2, a3 = tl.where(here_i[2], y2, of_group), tl.where(here_i[3], y3, of_group)
    lowest = tl.minimum(lowest, tl.minimum(tl.minimum(a0, a1), tl.minimum(a2, a3)))
    highest = tl.maximum(highest, tl.maximum(tl.maximum(a0, a1), tl.maximum(a2, a3)))
    ends = (heaviest, lowest, highest)
    q, n, mean_y, m2_y, weight, mean_c, m2_c = moments
    q_b, n_b, mean_yb, m2_yb, w_b, mean_cb, m2_cb = group
    moments = join(
        q, n, mean_y, m2_y, weight, mean_c, m2_c, q_b, n_b, mean_yb, m2_yb, w_b, mean_cb, m2_cb
    )
    return moments, ends, sample_logs, component_logs


@triton.jit
def _log_sums(found, stds, eps, flags, other, part, place, inside):
    """Sums of log v + log 2 pi, in float64, of all rows of a role and of those that do not have the
    other role; and the columns in which a v is out of range."""
    start, _, begin, end = part
    tile, s, S, _ = place
    total, alone, count, count_alone, least, largest = found
    odd = odd_columns(least, largest, inside)
    if tl.max(odd.to(tl.int32), 0) > 0:
        total, alone = tl.zeros_like(total), tl.zeros_like(alone)
        e = (tile * inside.shape[0] + tl.arange(0, inside.shape[0]))[None, :]
        stream = tl.arange(0, total.shape[0])[:, None]
        for first in range(begin, end, total.shape[0]):
            here = contributing(flags, first + stream, s, S, end)
            use = here & inside[None, :]
            sigma = load_rows(stds, start + first, s, stream, e, use, eps.dtype)
            logs = tl.where(use, careful_log2(sigma, eps), 0.0)
            total += logs
            if other is not None:
                alone += tl.where(contributing(other, first + stream, s, S, end), 0.0, logs)
    return log_total(total, count, inside), log_total(alone, count_alone, inside), odd


@triton.jit
def _four_flags(flags, first, s, S, end, ROWS: tl.constexpr):
    stream = first + tl.arange(0, ROWS)[:, None]
    return (
        contributing(flags, stream, s, S, end),
        contributing(flags, stream + ROWS, s, S, end),
        contributing(flags, stream + 2 * ROWS, s, S, end),
        contributing(flags, stream + 3 * ROWS, s, S, end),
    )


@triton.jit
def pairs_of_rows(
    tensors,  # y, x, mu, stds: (rows, S, E) strided
    shifts,  # (FEATURES,) of y and x + mu, of x, of mu
    eps,  # of samples and of components; None where there is no such variance
    flags,  # (rows, S) uint8 of both roles: which rows contribute
    counts,  # of all rows, how many contribute at s, in both roles
    part,  # start of `rows` rows, whose flags these are; rows; begin and end of a range of them
    place,  # tile of features, s, S, E
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,  # both roles have the variances and the flags of the components
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Pairs and moments, as of `join`, NaN in columns that are out of range; the largest 1 / v and
    the ends of the samples; and log v + log 2 pi, summed over the pairs of these rows with all, of
    components and of samples."""
    BLOCK: tl.constexpr = 4 * ROWS
    start, rows, begin, end = part
    tile, s, S, E = place
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    inside = feature < E
    # No wider than that, or the threads of a warp would have different rows.
    e = tl.max_contiguous(feature, VECTOR)[None, :]
    inside_e = inside[None, :]
    local = tl.arange(0, ROWS)[:, None]
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    nobody = tl.zeros((ROWS, 1), ACC)
    far = zeros + float("inf")
    no_logs = (zeros, zeros, nobody, nobody, zeros + 1.0, zeros + 1.0)
    moments = (zeros, nobody, zeros, zeros, zeros, zeros, zeros)
    found = (moments, (zeros, far, -far), no_logs, no_logs)

    whole = begin
    if ((tile + 1) * FEATURES <= E) & (counts[0] == rows) & (counts[1] == rows):
        whole = begin + (end - begin) // BLOCK * BLOCK
    all4 = (None, None, None, None)
    for first in range(begin, whole, BLOCK):
        at = (start + first, s, local, e)
        found = _add_group(found, tensors, shifts, eps, at, all4, all4, None, OWN_STDS, SHARED, ACC)
    for first in range(whole, end, BLOCK):
        here_l = _four_flags(flags[1], first, s, S, end, ROWS)
        here_i = here_l
        if not SHARED:
            here_i = _four_flags(flags[0], first, s, S, end, ROWS)
        at = (start + first, s, local, e)
        found = _add_group(
            found, tensors, shifts, eps, at, here_i, here_l, inside_e, OWN_STDS, SHARED, ACC
        )
    moments, ends, sample_logs, component_logs = found
    total, alone, count, count_alone, _, largest = component_logs
    component_logs = (total, alone, count, count_alone, inverse(ends[0]), largest)

    other = None if SHARED else flags[0]
    log_l, alone, odd = _log_sums(
        component_logs, tensors[3], eps[1], flags[1], other, part, place, inside
    )
    of_g = (counts[0] - 1).to(tl.float64) * log_l + alone
    of_k = tl.zeros((), tl.float64)
    if SHARED and OWN_STDS:
        of_k = of_g
    elif OWN_STDS:
        log_i, alone, odd_i = _log_sums(
            sample_logs, tensors[3], eps[0], flags[0], flags[1], part, place, inside
        )
        odd = odd | odd_i
        of_k = (counts[1] - 1).to(tl.float64) * log_i + alone
    q, n, mean_y, m2_y, weight, mean_c, m2_c = moments
    q, n, mean_y, m2_y, weight, mean_c, m2_c = join_streams(
        q, n + zeros, mean_y, m2_y, weight, mean_c, m2_c
    )
    mean_c = tl.where(odd, float("nan"), mean_c)
    heaviest, lowest, highest = ends
    ends = (tl.max(heaviest, 0), tl.min(lowest, 0), tl.max(highest, 0))
    return (q, n, mean_y, m2_y, weight, mean_c, m2_c), ends, of_g, of_k
