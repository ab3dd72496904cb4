"""The sums over all pairs, pair by pair: in the columns, one feature of one position, that moments
cannot serve. Their state is NaN, see `finish_kernel`.

In float64, where nothing but a ratio is squared. A program looks at LOOK columns at once; the lost
ones among them it takes in tiles of ROWS x PARTNERS x FEATURES.
"""

import triton
import triton.language as tl

from ._terms import sums_of
from ._tiles import load, load_mask, multiple, position, root_terms, store_sums


@triton.jit
def _is_lost(value):
    if value.dtype == tl.uint8:
        return value != 0
    else:
        return value != value


@triton.jit
def lost_of(state, other_state, s, e, E, S=None):
    """Which columns are, in one of the states or of the marks; either may be None. With S, also
    those from which a row cannot be taken."""
    at = s.to(tl.int64) * E + e
    found = e < 0
    if state is not None:
        if S is not None:
            state += 3 * S.to(tl.int64) * E
        value = tl.load(state + at, mask=e < E, other=0.0)
        found = found | _is_lost(value)
        if S is not None:
            found = found | (value < 0)
    if other_state is not None:
        value = tl.load(other_state + at, mask=e < E, other=0.0)
        found = found | _is_lost(value)
    return found


@triton.jit
def next_of(lost, e, column, end):
    """The first column that is lost, from `column` on."""
    return tl.min(tl.where(lost & (e >= column), e, end), 0)


@triton.jit
def root_of(sigma, eps):
    root, _ = root_terms(sigma, eps)
    return root


@triton.jit
def partners_at(
    first,
    role,  # of the partners: the row they begin at, how many, mask
    s,
    lost,
    here,  # which of the rows `index` contribute
    index,
    EXCLUDE_DIAGONAL: tl.constexpr,
    PARTNERS: tl.constexpr,
):
    """PARTNERS rows from `first` on, where they contribute in lost columns, and whom they meet."""
    start, count, mask = role
    other = first + tl.arange(0, PARTNERS)[None, :, None]
    at = start + other
    there = load_mask(mask, other if EXCLUDE_DIAGONAL else at, s, other < count) & lost
    use = here & there
    if EXCLUDE_DIAGONAL:
        use = use & (index != other)
    return at, there, use


@triton.jit(
    do_not_specialize=[
        *(
            "sample_start",
            "component_start",
            "N",
            "M",
            "rows_per_split",
            "splits",
            "S",
            "E",
            "tiles",
        ),
        *("partials", "programs"),
    ],
    do_not_specialize_on_alignment=[
        *("component_eps", "other_component_eps", "partial_sums", "sums")
    ],
)
def sums_of_pairs_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    other_component_eps,  # of a second mixture, in which the roles of all rows are swapped
    # (rows, S) strided bool; of the rows from the start where EXCLUDE_DIAGONAL: contributing ones
    sample_mask,
    component_mask,
    state,  # (mixtures, 4, S, E), or (mixtures, S, E) uint8: whether they are lost
    partial_sums,  # (mixtures, partials, 3) float64, of other kernels, with the logs of all columns
    # (mixtures, programs, 3) float64, times 2: what each program adds up of these, and of lost
    # columns q
    sums,
    sample_start,
    component_start,
    N,
    M,
    rows_per_split,
    splits,
    partials,
    programs,  # of a mixture
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    EXCLUDE_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    PARTNERS: tl.constexpr,
    FEATURES: tl.constexpr,
    LOOK: tl.constexpr,
):
    E = multiple(E, UNIT)
    ACC: tl.constexpr = tl.float64
    tile, s, split = position(tiles, S)
    mixture, split = split // splits, split % splits
    PLANES: tl.constexpr = 1 if state.dtype.element_ty == tl.uint8 else 4
    state += PLANES * mixture * S.to(tl.int64) * E
    eps = tl.load(component_eps)
    if other_component_eps is not None:
        swap = mixture == 1
        eps = tl.load(other_component_eps) if swap else eps
        N, M = tl.where(swap, M, N), tl.where(swap, N, M)
        i_start = tl.where(swap, component_start, sample_start)
        l_start = tl.where(swap, sample_start, component_start)
    else:
        i_start, l_start = sample_start, component_start
    first, end = split * rows_per_split, min((split + 1) * rows_per_split, N)
    q = tl.zeros((ROWS, PARTNERS, FEATURES), ACC)
    left, right = tile * LOOK, min((tile + 1) * LOOK, E)
    columns = left + tl.arange(0, LOOK)
    all_lost = lost_of(state, None, s, columns, E)
    column = next_of(all_lost, columns, left, right)
    while column < right:
        e = column + tl.arange(0, FEATURES)[None, None, :]
        lost = lost_of(state, None, s, e, right)
        for begin in range(first, end, ROWS):
            index = begin + tl.arange(0, ROWS)[:, None, None]
            row = i_start + index
            flag = index if EXCLUDE_DIAGONAL else row
            here = load_mask(sample_mask, flag, s, index < end) & lost
            sample = load(y, row, s, e, here, ACC)
            for partner in range(0, M, PARTNERS):
                role = (l_start, M, component_mask)
                at, there, use = partners_at(
                    partner, role, s, lost, here, index, EXCLUDE_DIAGONAL, PARTNERS
                )
                centre = load(x, at, s, e, there, ACC)
                offset = load(mu, at, s, e, there, ACC)
                sigma = load(stds, at, s, e, there, ACC)
                z = ((sample - centre) - offset) / root_of(sigma, eps.to(ACC))
                q += tl.where(use, z * z, 0.0)
        column = next_of(all_lost, columns, column + FEATURES, right)
    number = tl.program_id(0) - mixture * programs
    share = tl.cdiv(partials, programs)
    part = number * share, min((number + 1) * share, partials)
    partial_sums += mixture * partials.to(tl.int64) * 3
    # One warp's worth: no barrier, and a program seldom has more.
    of_q, of_g, of_k = sums_of(partial_sums, part, 32)
    of_q += tl.sum(q)
    store_sums(sums, tl.program_id(0), of_q, of_g, of_k)
