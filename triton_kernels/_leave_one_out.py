"""Every row against all others: the sums over all pairs in one pass over the inputs, see
`_leave_one_out_rows.py`, and the moments of both roles, from which the backward pass takes a row
away.

A program takes one position, some features and a part of the batch. Where one program has the whole
batch, it is complete with that; otherwise pairs and moments go to `leave_one_out_finish_kernel`.
"""

import triton
import triton.language as tl

from ._leave_one_out_rows import join, join_streams, pairs_of_rows
from ._moments_finish import far
from ._moments_forward import load_eps
from ._tiles import load, multiple, position, store_state, store_sums

PARTS = tl.constexpr(9)


@triton.jit
def shifts_of_centre(x, mu, counts, start, place, ACC: tl.constexpr, FEATURES: tl.constexpr):
    """How many samples and components contribute, and the shifts: the centre of the first
    component, rounded, and two parts of it whose sum is exactly that."""
    tile, s, S, E = place
    e = tile * FEATURES + tl.arange(0, FEATURES)
    n, m = tl.load(counts + s), tl.load(counts + S + s)
    some = (e < E) & (n > 0) & (m > 0)
    j = start + tl.load(counts + 3 * S + s)
    of_x, of_mu = load(x, j, s, e, some, ACC), load(mu, j, s, e, some, ACC)
    c_shift = of_x + of_mu
    # The sum without its larger part is exact.
    larger = tl.abs(of_x) >= tl.abs(of_mu)
    x_shift = tl.where(larger, of_x, c_shift - of_mu)
    mu_shift = tl.where(larger, c_shift - of_x, of_mu)
    return n, m, (c_shift, x_shift, mu_shift)


@triton.jit
def _store_state(moments, ends, c_shift, counts, state, place, few):
    """Writes (4, S, E), see `_store_state` in `_moments_finish.py`, but both means from the centre
    of the first component; NaN where pairs or moments are not good enough; the weight times -1
    where the backward pass cannot take some row from them. Returns q, times 2, added up over all
    columns but the former."""
    q, n, mean_y, m2_y, weight, mean_c, m2_c = moments
    heaviest, lowest, highest = ends
    tile, _, _, E = place
    ACC: tl.constexpr = q.dtype
    LARGEST: tl.constexpr = 2.0**100 if tl.float32 == ACC else 2.0**1000
    e = tile * q.shape[0] + tl.arange(0, q.shape[0])
    some = (e < E) & (counts[0] > 0) & (counts[1] > 0)
    step = mean_y - mean_c
    lost = far(n, mean_y, c_shift + mean_y, m2_y + (n * step) * step)
    # A sample is about sqrt v away from its component: the weights times that are their number.
    lost |= far(weight, mean_c, c_shift + mean_c, m2_c + counts[1])
    lost |= ~(q < LARGEST) | ~(tl.abs(mean_c) + tl.abs(mean_y) < float("inf"))
    lost &= some
    # One row is more than half of what it is to be taken from.
    own = tl.maximum(highest - mean_y, mean_y - lowest)
    most = ((2.0 * own) * own * n > (n - 1.0) * m2_y) | (2.0 * heaviest > weight)
    sign = tl.where(most & (few == 0), -1.0, 1.0).to(ACC)
    store_state(state, place, lost, mean_y, m2_y, mean_c, sign * weight)
    return tl.sum(tl.where(some & ~lost, q, 0.0), 0).to(tl.float64)


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "splits", "few", "S", "E", "tiles"],
    do_not_specialize_on_alignment=["sample_eps", "component_eps", "partial_sums"],
)
def leave_one_out_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_eps,  # (), or None
    component_eps,  # ()
    sample_active,  # (rows, S) uint8
    component_active,  # (rows, S) uint8
    counts,  # (4, S) int32, see Positions
    state,  # (4, S, E), see `_store_state`; where there is one split
    parts,  # (splits, 9, S, E) ACC: as of `join` without n, largest 1 / v, lowest and highest y
    split_samples,  # (splits, S) ACC: contributing samples
    partial_sums,  # (programs, 3) float64: of q, g, k, times 2
    start,
    rows,
    rows_per_split,
    splits,
    few,  # 1 where the backward pass takes no row from a sum, else 0
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,  # rows have one eps and the same contributing positions in both roles
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    E = multiple(E, UNIT)
    tile, s, split = position(tiles, S)
    place = (tile, s, S, E)
    n, m, shifts = shifts_of_centre(x, mu, counts, start, place, ACC, FEATURES)
    first = split * rows_per_split
    moments, ends, of_g, of_k = pairs_of_rows(
        (y, x, mu, stds),
        shifts,
        (load_eps(sample_eps, ACC), load_eps(component_eps, ACC)),
        (sample_active, component_active),
        (n, m),
        (start, rows, first, min(first + rows_per_split, rows)),
        place,
        OWN_STDS,
        SHARED,
        ACC,
        ROWS,
        FEATURES,
        VECTOR,
    )
    of_q = tl.zeros((), tl.float64)
    if splits == 1:
        of_q = _store_state(moments, ends, shifts[0], (n, m), state, place, few)
    else:
        q, count, mean_y, m2_y, weight, mean_c, m2_c = moments
        heaviest, lowest, highest = ends
        e = tile * FEATURES + tl.arange(0, FEATURES)
        plane = S.to(tl.int64) * E
        to = parts + split.to(tl.int64) * PARTS * plane + s.to(tl.int64) * E + e
        tl.store(to, q, mask=e < E)
        tl.store(to + plane, mean_y, mask=e < E)
        tl.store(to + 2 * plane, m2_y, mask=e < E)
        tl.store(to + 3 * plane, weight, mask=e < E)
        tl.store(to + 4 * plane, mean_c, mask=e < E)
        tl.store(to + 5 * plane, m2_c, mask=e < E)
        tl.store(to + 6 * plane, heaviest, mask=e < E)
        tl.store(to + 7 * plane, lowest, mask=e < E)
        tl.store(to + 8 * plane, highest, mask=e < E)
        tl.store(split_samples + split.to(tl.int64) * S + s, tl.max(count, 0))
    store_sums(partial_sums, tl.program_id(0), of_q, of_g, of_k)


@triton.jit(
    do_not_specialize=["start", "splits", "few", "S", "E", "tiles"],
    do_not_specialize_on_alignment=["partial_sums"],
)
def leave_one_out_finish_kernel(
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    counts,  # (4, S) int32, see Positions
    parts,  # (splits, 9, S, E) ACC
    split_samples,  # (splits, S) ACC
    state,  # (4, S, E)
    partial_sums,  # (programs, 3) float64: of q, times 2; 0; 0
    start,
    splits,
    few,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    E = multiple(E, UNIT)
    ACC: tl.constexpr = parts.dtype.element_ty
    tile, s, _ = position(tiles, S)
    place = (tile, s, S, E)
    e = (tile * FEATURES + tl.arange(0, FEATURES))[None, :]
    plane = S.to(tl.int64) * E
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    q, n, mean_y, m2_y = zeros, tl.zeros((ROWS, 1), ACC), zeros, zeros
    weight, mean_c, m2_c, heaviest = zeros, zeros, zeros, zeros
    INF: tl.constexpr = float("inf")
    lowest, highest = zeros + INF, zeros - INF
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)[:, None]
        use = (split < splits) & (e < E)
        of = parts + (split.to(tl.int64) * PARTS * plane + s.to(tl.int64) * E + e)
        more = tl.load(split_samples + split.to(tl.int64) * S + s, mask=split < splits, other=0.0)
        q, n, mean_y, m2_y, weight, mean_c, m2_c = join(
            q,
            n,
            mean_y,
            m2_y,
            weight,
            mean_c,
            m2_c,
            tl.load(of, use, 0.0),
            more,
            tl.load(of + plane, use, 0.0),
            tl.load(of + 2 * plane, use, 0.0),
            tl.load(of + 3 * plane, use, 0.0),
            tl.load(of + 4 * plane, use, 0.0),
            tl.load(of + 5 * plane, use, 0.0),
        )
        heaviest = tl.maximum(heaviest, tl.load(of + 6 * plane, use, 0.0))
        lowest = tl.minimum(lowest, tl.load(of + 7 * plane, use, INF))
        highest = tl.maximum(highest, tl.load(of + 8 * plane, use, -INF))
    moments = join_streams(q, n + zeros, mean_y, m2_y, weight, mean_c, m2_c)
    ends = (tl.max(heaviest, 0), tl.min(lowest, 0), tl.max(highest, 0))
    n, m, shifts = shifts_of_centre(x, mu, counts, start, place, ACC, FEATURES)
    of_q = _store_state(moments, ends, shifts[0], (n, m), state, place, few)
    store_sums(partial_sums, tl.program_id(0), of_q, 0.0, 0.0)
