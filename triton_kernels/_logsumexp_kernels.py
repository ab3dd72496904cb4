"""From the energies of all pairs to the terms of the loss, and back: one pass over them each."""

import triton
import triton.language as tl


@triton.jit
def _load(energies, base, size, here):
    """q, g and k of a tile of pairs: three matrices of `size`, one after the other."""
    at = energies + base
    q = tl.load(at, mask=here, other=0.0)
    g = tl.load(at + size, mask=here, other=0.0)
    k = tl.load(at + 2 * size, mask=here, other=0.0)
    return q, g, k


@triton.jit
def own_of(i, inside, own, origins):
    """The component of samples i that is their own, `own` after their origin or after i."""
    if origins is not None:
        return tl.load(origins + i, mask=inside, other=-1) + own
    else:
        return i + own


@triton.jit
def meets(mine, m, here, LEAVE_OUT: tl.constexpr):
    """Of a tile, which samples meet which components m."""
    met = here
    if LEAVE_OUT:
        met = here & (mine[:, None] != m[None, :])
    return met


@triton.jit
def term_of(upstream, at, j: tl.constexpr, samples, inside, EACH: tl.constexpr):
    """Gradients of a term of the samples: of each, or one of all."""
    if EACH:
        found = tl.load(upstream + at + j * samples, mask=inside, other=0.0)
        return found[:, None]
    else:
        return tl.load(upstream + at + j)


@triton.jit
def finite(most):
    """What is subtracted from densities: 0 where none or an infinite one is the largest."""
    return tl.where(tl.abs(most) == float("inf"), 0.0, most)


@triton.jit(do_not_specialize=["N", "own", "tiles"])
def logsumexp_state_kernel(
    energies,  # (D, 3, N, M) float64
    state,  # (D, 5, N) float64
    N,
    M,
    own,
    origins,  # (N,) int64, or None
    LEAVE_OUT: tl.constexpr,
    tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each sample the log of the sum of exp(k - q - g), the means of q, g and k, and q + g of
    its origin."""
    direction, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i = tile * ROWS + tl.arange(0, ROWS)
    inside = i < N
    mine = own_of(i, inside, own, origins)
    columns = tl.arange(0, COLUMNS)
    size = N.to(tl.int64) * M
    row = (direction * 3 * size + i.to(tl.int64) * M)[:, None]
    most = tl.full((ROWS,), float("-inf"), tl.float64)
    weights = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_q = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_g = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_k = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_own = tl.zeros((ROWS, COLUMNS), tl.float64)
    found = tl.zeros((ROWS, COLUMNS), tl.int32)
    for begin in range(0, M, COLUMNS):
        m = begin + columns
        here = inside[:, None] & (m < M)[None, :]
        q, g, k = _load(energies, row + m[None, :], size, here)
        met = meets(mine, m, here, LEAVE_OUT)
        if origins is not None:
            at_own = here & (mine[:, None] == m[None, :])
            of_own = tl.where(at_own, q + g, of_own)
            found += at_own.to(tl.int32)
        density = tl.where(met, k - q - g, float("-inf"))
        before = most
        most = tl.maximum(most, tl.max(density, 1))
        factor = tl.where(before == most, 1.0, tl.exp(before - most))[:, None]
        weight = tl.exp(density - finite(most)[:, None])
        # 0 * inf: a component that is never chosen adds nothing.
        never = weight == 0
        weights = weights * factor + weight
        of_q = of_q * factor + tl.where(never, 0.0, weight * q)
        of_g = of_g * factor + tl.where(never, 0.0, weight * g)
        of_k = of_k * factor + tl.where(never, 0.0, weight * k)
    total = tl.sum(weights, 1)
    log_sum = finite(most) + tl.log(total)
    # Not by the largest density, which may not see NaN.
    hopeless = (total == 0) & inside
    if tl.max(hopeless.to(tl.int32), 0) > 0:  # every density is 0: equal responsibilities
        for begin in range(0, M, COLUMNS):
            m = begin + columns
            here = hopeless[:, None] & (m < M)[None, :]
            met = meets(mine, m, here, LEAVE_OUT)
            q, g, k = _load(energies, row + m[None, :], size, met)
            weights += met.to(tl.float64)
            of_q += q
            of_g += g
            of_k += k
        total = tl.sum(weights, 1)
    at = state + (direction * 5 * N.to(tl.int64) + i)
    tl.store(at, log_sum, mask=inside)
    tl.store(at + N, tl.sum(of_q, 1) / total, mask=inside)
    tl.store(at + 2 * N.to(tl.int64), tl.sum(of_g, 1) / total, mask=inside)
    tl.store(at + 3 * N.to(tl.int64), tl.sum(of_k, 1) / total, mask=inside)
    energy = tl.sum(of_own, 1)
    if origins is not None:  # NaN where there is no such component
        energy = tl.where(tl.sum(found, 1) > 0, energy, float("nan"))
    tl.store(at + 4 * N.to(tl.int64), energy, mask=inside)


@triton.jit(do_not_specialize=["N", "partners"])
def logsumexp_means_kernel(
    state,  # (D, 5, N) float64
    terms,  # (D, 5) float64
    N,
    partners,
    BLOCK: tl.constexpr,
):
    """The means over the samples, in a fixed order."""
    direction = tl.program_id(0)
    log_partners = tl.log(partners.to(tl.float64))
    value = tl.zeros((BLOCK,), tl.float64)
    of_q = tl.zeros((BLOCK,), tl.float64)
    of_g = tl.zeros((BLOCK,), tl.float64)
    of_k = tl.zeros((BLOCK,), tl.float64)
    assignment = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, N, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < N
        log_sum, q, g = _load(state, direction * 5 * N.to(tl.int64) + i, N.to(tl.int64), inside)
        k = tl.load(state + (direction * 5 + 3) * N.to(tl.int64) + i, mask=inside, other=0.0)
        of_own = tl.load(state + (direction * 5 + 4) * N.to(tl.int64) + i, mask=inside, other=0.0)
        # Where nothing is near, and the origin is not either, nothing is known.
        unknown = (log_sum == float("-inf")) & (of_own == float("inf"))
        value += tl.where(inside & ~unknown, log_partners - log_sum - of_own, 0.0)
        of_q += q
        of_g += g
        of_k += k
        # Minus the entropy of the responsibilities is their mean log: of k - q - g - log_sum.
        found = tl.where(log_sum == float("-inf"), 0.0, log_partners + (k - q - g - log_sum))
        assignment += tl.where(inside, found, 0.0)
    at = terms + direction * 5
    count = N.to(tl.float64)
    tl.store(at, tl.sum(value, 0) / count)
    tl.store(at + 1, tl.sum(of_q, 0) / count)
    tl.store(at + 2, tl.sum(of_g, 0) / count)
    tl.store(at + 3, tl.sum(assignment, 0) / count)
    tl.store(at + 4, -tl.sum(of_k, 0) / count)


@triton.jit(do_not_specialize=["N", "own", "equal", "tiles_n", "tiles_m"])
def logsumexp_gradient_kernel(
    upstream,  # (D, 5, N) float64, or (D, 5, 1)
    energies,  # (D, 3, N, M) float64
    state,  # (D, 5, N) float64
    gradient,  # (D, 3, N, M) float64
    N,
    M,
    own,
    origins,  # (N,) int64, or None
    LEAVE_OUT: tl.constexpr,
    EACH: tl.constexpr,
    equal,
    tiles_n,
    tiles_m,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of the energies: they are read once, and each of them is written once."""
    program = tl.program_id(0)
    tile_m, tile_n = program % tiles_m, (program // tiles_m) % tiles_n
    direction = program // tiles_m // tiles_n
    i, m = tile_n * ROWS + tl.arange(0, ROWS), tile_m * COLUMNS + tl.arange(0, COLUMNS)
    size, samples = N.to(tl.int64) * M, N.to(tl.int64)
    here = (i < N)[:, None] & (m < M)[None, :]
    base = direction * 3 * size + i.to(tl.int64)[:, None] * M + m[None, :]
    q, g, k = _load(energies, base, size, here)
    inside = i < N
    log_sum, mean_q, mean_g = _load(state, direction * 5 * samples + i, samples, inside)
    mean_k = tl.load(state + (direction * 5 + 3) * samples + i, mask=inside, other=0.0)
    at = direction * 5
    if EACH:
        at = direction * 5 * samples + i
    total = term_of(upstream, at, 0, samples, inside, EACH)
    of_q = term_of(upstream, at, 1, samples, inside, EACH)
    of_g = term_of(upstream, at, 2, samples, inside, EACH)
    assignment = term_of(upstream, at, 3, samples, inside, EACH)
    of_k = -term_of(upstream, at, 4, samples, inside, EACH)
    mine = own_of(i, inside, own, origins)
    met = meets(mine, m, here, LEAVE_OUT)
    r = tl.exp(tl.where(met, k - q - g, float("-inf")) - log_sum[:, None])
    # Of the log-density, relative to r: a hopeless row has none, and equal responsibilities.
    of_density = (of_q - assignment) * (q - mean_q[:, None]) - total
    of_density += (of_g - assignment) * (g - mean_g[:, None])
    of_density += (of_k + assignment) * (k - mean_k[:, None])
    hopeless = (log_sum == float("-inf"))[:, None]
    r = tl.where(hopeless, met.to(tl.float64) / equal.to(tl.float64), r)
    of_density = tl.where(hopeless, 0.0, of_density)
    # Select: energies and upstream gradients may be infinite where nothing is chosen.
    never = r == 0
    of_q = tl.where(never, 0.0, r * (of_q - of_density))
    of_g = tl.where(never, 0.0, r * (of_g - of_density))
    if origins is not None:
        own_energies = (mine[:, None] == m[None, :]) & ~hopeless
        of_q = tl.where(own_energies, of_q - total, of_q)
        of_g = tl.where(own_energies, of_g - total, of_g)
    to = gradient + base
    tl.store(to, of_q, mask=here)
    tl.store(to + size, of_g, mask=here)
    tl.store(to + 2 * size, tl.where(never, 0.0, r * (of_k + of_density)), mask=here)
