"""What several sets of rows (ranks, micro-batches) have told of themselves, as one.

Readable in `fused_mi.reference.parts`: weighted means and squares of sets merge as those of rows do
(Chan, Golub & LeVeque 1979). In float64, set after set in their order; columns are independent.
"""

import triton
import triton.language as tl

from ._tiles import multiple


@triton.jit
def _finite(value, to):
    return tl.abs(value.to(to.dtype.element_ty)) < float("inf")


@triton.jit
def _add(union, more, mean, rest):
    """One more set of a role: the mean of the union is `pivot + delta`, `between` the squares of
    the sets' own means."""
    weight, pivot, delta, between = union
    pivot = tl.where((weight == 0) & (more > 0), mean, pivot)
    total = weight + more
    share = tl.where(more > 0, more / tl.where(total > 0, total, 1.0), 0.0)
    step = ((mean - pivot) + rest) - delta
    between = tl.where(more > 0, between + ((weight * share) * step) * step, between)
    return total, pivot, tl.where(more > 0, delta + share * step, delta), between


@triton.jit
def _store(to, n, union, last, inside):
    """Three planes; where the type has no room for one of them."""
    _, pivot, delta, _ = union
    OUT: tl.constexpr = to.dtype.element_ty
    mean = (pivot + delta).to(OUT)
    rest = (pivot - mean.to(tl.float64)) + delta
    tl.store(to, mean, mask=inside)
    tl.store(to + n, rest.to(OUT), mask=inside)
    tl.store(to + 2 * n, last.to(OUT), mask=inside)
    # An input that has no room is NaN or infinite, and so is what becomes of it.
    return ~((tl.abs(mean) < float("inf")) & _finite(rest, to) & _finite(last, to))


@triton.jit(
    do_not_specialize=["sets", "n", "positions", "features", "first", "tiles"],
    do_not_specialize_on_alignment=["counts", "met", "partial_sums"],
)
def merge_kernel(
    planes,  # (mixtures, sets, 6, n)
    counts,  # (mixtures, sets, positions) samples
    merged,  # (mixtures, sets or 1, 6, n): what each set meets, or all of them
    met,  # (mixtures, positions): how many samples the components of all meet, or None
    partial_sums,  # (mixtures, programs, 3) float64, times 2: what that adds to q; lost columns; 0
    sets,
    n,
    positions,
    features,  # column i has the position (first + i) // features - first // features
    first,
    tiles,
    UNIT: tl.constexpr,  # divides n
    APART: tl.constexpr,  # each set meets all others, and not itself
    BLOCK: tl.constexpr,
):
    n = multiple(n, UNIT)
    results = sets
    if not APART:
        results = sets * 0 + 1
    tile, result = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    mixture, own = result // results, result % results
    of_set = n.to(tl.int64) * 6
    planes += mixture * sets * of_set
    counts += mixture * sets.to(tl.int64) * positions
    column = tile * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    position = (first + column) // features - first // features
    zeros = tl.zeros((BLOCK,), tl.float64)
    samples = (zeros, zeros, zeros, zeros)
    components = (zeros, zeros, zeros, zeros)
    squares = zeros
    for number in range(0, sets):
        use = inside
        if APART:
            use = inside & (number != own)
        of = planes + number * of_set + column
        at = counts + number * positions + position
        more = tl.load(at, mask=use, other=0).to(tl.float64)
        mean, rest = tl.load(of, use, 0.0).to(tl.float64), tl.load(of + n, use, 0.0).to(tl.float64)
        samples = _add(samples, more, mean, rest)
        squares += tl.load(of + 2 * n, use, 0.0).to(tl.float64)
        mean = tl.load(of + 3 * n, use, 0.0).to(tl.float64)
        rest = tl.load(of + 4 * n, use, 0.0).to(tl.float64)
        more = tl.load(of + 5 * n, use, 0.0).to(tl.float64)
        components = _add(components, more, mean, rest)
    count, pivot, delta, between = samples
    weight, pivot_c, delta_c, between_c = components
    squares += between
    to = merged + result * of_set + column
    lost = _store(to, n, samples, squares, inside) & inside
    lost = lost | (_store(to + 3 * n, n, components, weight, inside) & inside)
    if APART:  # the samples of one set with the components of the others
        of = planes + own * of_set + column
        at = counts + own * positions + position
        count = tl.load(at, mask=inside, other=0).to(tl.float64)
        pivot = tl.load(of, inside, 0.0).to(tl.float64)
        delta = tl.load(of + n, inside, 0.0).to(tl.float64)
        squares = tl.load(of + 2 * n, inside, 0.0).to(tl.float64)
    distance = (pivot - pivot_c) + (delta - delta_c)
    q = squares * weight + ((count * weight) * distance) * distance + count * between_c
    q = tl.where((count > 0) & (weight > 0), q, 0.0)
    if met is not None:
        at = met + mixture * positions + position
        q = tl.load(at, mask=inside, other=0).to(tl.float64) * between_c
    partial_sums += tl.program_id(0) * 3
    tl.store(partial_sums, tl.sum(q, 0))
    tl.store(partial_sums + 1, tl.sum(lost.to(tl.int32), 0).to(tl.float64))
    tl.store(partial_sums + 2, tl.zeros((), tl.float64))
