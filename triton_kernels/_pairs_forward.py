"""Energies of all pairs: true differences, a tile of samples times a tile of components.

The axis of the features comes first in a tile, so that each thread has a pair of rows to itself and
adds up over features in registers; the operands reach it through shared memory in vectors. Two
fused multiply-adds for each pair and feature: `z = y r - c r` with `r = 1 / sqrt(v)`, and `z * z`.

Features are loaded in vectors, so that the memory sees long pieces of each row, and computed in as
many parts: a part has one element of each vector, which takes no more than to name registers.
"""

import triton
import triton.language as tl

from ._tiles import cast, corner, multiple, root_terms


@triton.jit
def inverse_root(sigma, eps, CAREFUL: tl.constexpr):
    """`1 / sqrt(sigma^2 + eps)`, or where CAREFUL the root itself, see `times`."""
    if CAREFUL:
        root, _ = root_terms(sigma, eps)
        return root
    else:
        return tl.rsqrt(sigma * sigma + eps)


@triton.jit
def times(value, root, CAREFUL: tl.constexpr):
    """A value times the inverse root: by a division where that could be infinite."""
    if CAREFUL:
        return value / root
    else:
        return value * root


@triton.jit
def _fetch(
    at_y,
    at_x,
    at_mu,
    at_stds,
    at_shift,
    here_n,
    here_m,
    f,
    left,
    HAS_MU: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A tile as it lies in memory, of the `left` features that are left."""
    inside = left > 0
    if not EVEN:
        inside = f < left
    use_n, use_m = here_n[None, :] & inside, here_m[None, :] & inside
    of_x = tl.load(at_x, mask=use_m, other=0.0)
    of_mu = of_x
    if HAS_MU:
        of_mu = tl.load(at_mu, mask=use_m, other=0.0)
    return (
        tl.load(at_y, mask=use_n, other=0.0),
        of_x,
        of_mu,
        tl.load(at_stds, mask=use_m, other=1.0),
        tl.load(at_shift, mask=inside, other=0.0),
    )


@triton.jit
def _parts(tile, FEATURES: tl.constexpr):
    """(VECTOR FEATURES, ROWS) as VECTOR tiles (FEATURES, ROWS), for VECTOR = 1 or 4."""
    ROWS: tl.constexpr = tile.shape[1]
    if tile.shape[0] == FEATURES:
        return (tile,)
    else:
        vectors = tl.permute(tl.reshape(tile, (FEATURES, 2, 2, ROWS)), (0, 3, 1, 2))
        even, odd = tl.split(vectors)
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        return first, second, third, fourth


@triton.jit
def _against(sample, root, centre, SHAPE: tl.constexpr, CAREFUL: tl.constexpr):
    """`sample root - centre` of SHAPE (FEATURES, SAMPLES, COMPONENTS), where centres are products;
    where CAREFUL, `(sample - centre) / root`.

    Root and product cross the shared memory as one number of 64 bits: fewer barriers and registers.
    """
    if CAREFUL:
        return (sample[:, :, None] - centre[:, None, :]) / root[:, None, :]
    if root.dtype == tl.float32:
        low = root.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        both = low | (centre.to(tl.int32, bitcast=True).to(tl.int64) << 32)
        both = tl.broadcast_to(both[:, None, :], SHAPE)
        root = both.to(tl.int32).to(tl.float32, bitcast=True)
        centre = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    else:
        root, centre = root[:, None, :], centre[:, None, :]
    return sample[:, :, None] * root - centre


@triton.jit
def here_at(active, first, local, rows, s, S):
    """Which rows of a tile, from `first` on, contribute at s, of flags (rows, S); none beyond the
    last position."""
    # S, as s >= 0; but offsets that depend on s are not kept in registers over an inner loop.
    step = S + (s >> 31)
    base = active + first.to(tl.int64) * S + s
    left = tl.where(s < S, rows - first, 0)
    return tl.load(base + local * step, mask=local < left, other=0) != 0


@triton.jit
def some_of(here_n, here_m):
    """1 where a tile has both roles at a position; else it is not read."""
    return tl.minimum(tl.max(here_n.to(tl.int32), 0), tl.max(here_m.to(tl.int32), 0))


@triton.jit
def squares_of(
    y,
    x,
    mu,
    stds,
    shift,
    eps,
    row_n,
    row_m,
    here_n,
    here_m,
    s,
    begin,
    E,
    UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
    AHEAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sums of z * z of a tile of pairs over a chunk, whose first feature is `begin`."""
    HAS_MU: tl.constexpr = mu is not None
    LOADED: tl.constexpr = VECTOR * FEATURES
    SHAPE: tl.constexpr = (FEATURES, here_n.shape[0], here_m.shape[0])
    f = tl.arange(0, LOADED)[:, None]
    e = begin + f
    at_y = corner(y, row_n[None, :], s, e)
    at_x = corner(x, row_m[None, :], s, e)
    at_mu = at_x
    if HAS_MU:
        at_mu = corner(mu, row_m[None, :], s, e)
    at_stds = corner(stds, row_m[None, :], s, e)
    at_shift = shift + s.to(tl.int64) * E + e
    within = tl.zeros((SHAPE[1], SHAPE[2]), ACC)
    left = multiple(min(CHUNK, E - begin), UNIT)
    if AHEAD:
        of_y, of_x, of_mu, of_stds, of_shift = _fetch(
            at_y, at_x, at_mu, at_stds, at_shift, here_n, here_m, f, left, HAS_MU, EVEN
        )
    for _ in range(0, left, LOADED):
        if not AHEAD:
            of_y, of_x, of_mu, of_stds, of_shift = _fetch(
                at_y, at_x, at_mu, at_stds, at_shift, here_n, here_m, f, left, HAS_MU, EVEN
            )
        origin = cast(of_shift, ACC)
        sample = cast(of_y, ACC) - origin
        centre = cast(of_x, ACC) - origin
        if HAS_MU:
            centre += cast(of_mu, ACC)
        root = inverse_root(cast(of_stds, ACC), eps, CAREFUL)
        if not CAREFUL:
            centre *= root
        left -= LOADED
        at_y += LOADED * y[3]
        at_x += LOADED * x[3]
        if HAS_MU:
            at_mu += LOADED * mu[3]
        at_stds += LOADED * stds[3]
        at_shift += LOADED
        if AHEAD:  # the next tile is on its way while this one is computed
            of_y, of_x, of_mu, of_stds, of_shift = _fetch(
                at_y, at_x, at_mu, at_stds, at_shift, here_n, here_m, f, left, HAS_MU, EVEN
            )
        samples, roots = _parts(sample, FEATURES), _parts(root, FEATURES)
        centres = _parts(centre, FEATURES)
        for part in tl.static_range(VECTOR):
            z = _against(samples[part], roots[part], centres[part], SHAPE, CAREFUL)
            within += tl.sum(z * z, 0)
    return within


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E"),
        *("chunks_per_position", "chunks_per_split"),
    ],
    do_not_specialize_on_alignment=["component_eps"],
)
def distances_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided, or None
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    shift,  # (S, E) in the dtype of x, see `shift_of`
    irregular,  # (1,) int32, becomes 1 where a sum is infinite; where CAREFUL, 0: nothing to do
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    parts,  # (splits, N, M): sums of z * z over a range of chunks; where CAREFUL, their roots
    tiles_n,
    tiles_m,
    chunks_per_position,
    chunks_per_split,
    UNIT: tl.constexpr,  # divides E
    EVEN: tl.constexpr,  # VECTOR * FEATURES divides E
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    SAMPLES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
    AHEAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    E = multiple(E, UNIT)
    if CAREFUL:  # noqa: SIM102 (decided at compile time)
        if tl.load(irregular) == 0:
            return
    program = tl.program_id(0)
    tile_n, tile_m = program % tiles_n, (program // tiles_n) % tiles_m
    split = program // tiles_n // tiles_m
    local_n, local_m = tl.arange(0, SAMPLES), tl.arange(0, COMPONENTS)
    n, m = tile_n * SAMPLES + local_n, tile_m * COMPONENTS + local_m
    eps = tl.load(component_eps).to(ACC)
    total = tl.zeros((SAMPLES, COMPONENTS), ACC)
    for i in range(0, chunks_per_split):
        chunk = split * chunks_per_split + i
        s = chunk // chunks_per_position
        begin = (chunk % chunks_per_position) * CHUNK
        here_n = here_at(sample_active, tile_n * SAMPLES, local_n, N, s, S)
        here_m = here_at(component_active, tile_m * COMPONENTS, local_m, M, s, S)
        if some_of(here_n, here_m) > 0:
            within = squares_of(
                *(y, x, mu, stds, shift, eps),
                *(sample_start + n, component_start + m, here_n, here_m, s, begin, E),
                *(UNIT, EVEN, CAREFUL, ACC, FEATURES, VECTOR, AHEAD, CHUNK),
            )
            # Select here: an infinite sample must not reach a pair that lacks the position.
            total += tl.where(here_n[:, None] & here_m[None, :], within, 0.0)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (split.to(tl.int64) * N + n.to(tl.int64)[:, None]) * M + m[None, :]
    if CAREFUL:  # the sum may be beyond the range of the parts
        tl.store(parts + at, tl.sqrt(total).to(parts.dtype.element_ty), mask=inside)
    else:
        tl.store(parts + at, total, mask=inside)
        odd = tl.max(tl.max((inside & ~(total < float("inf"))).to(tl.int32), 1), 0)
        tl.store(irregular, 1, mask=odd > 0)


@triton.jit(do_not_specialize=["size", "splits"])
def add_splits_kernel(
    parts,  # (splits, size) float32 or float64
    irregular,  # (1,) int32: whether they are roots
    energies,  # (size,) float64
    size,
    splits,
    BLOCK: tl.constexpr,
):
    """Half the sum of the splits in float64, in a fixed order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    careful = tl.load(irregular) != 0
    pointers = parts + i
    for _ in range(0, splits):
        part = tl.load(pointers, mask=i < size, other=0.0).to(tl.float64)
        total += tl.where(careful, part * part, part)
        pointers += size
    tl.store(energies + i, total / 2, mask=i < size)
