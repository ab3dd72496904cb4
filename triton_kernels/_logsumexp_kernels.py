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
def _met(i, m, here, own, LEAVE_OUT: tl.constexpr):
    """Of a tile, which samples i meet which components m."""
    met = here
    if LEAVE_OUT:
        met = here & (i[:, None] + own != m[None, :])
    return met


@triton.jit
def _finite(most):
    """What is subtracted from densities: 0 where none or an infinite one is the largest."""
    return tl.where(tl.abs(most) == float("inf"), 0.0, most)


@triton.jit(do_not_specialize=["N", "own", "tiles"])
def logsumexp_state_kernel(
    energies,  # (D, 3, N, M) float64
    state,  # (D, 4, N) float64
    N,
    M,
    own,
    LEAVE_OUT: tl.constexpr,
    tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each sample the log of the sum of exp(k - q - g), and the means of q, g and k."""
    direction, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    size = N.to(tl.int64) * M
    row = (direction * 3 * size + i.to(tl.int64) * M)[:, None]
    most = tl.full((ROWS,), float("-inf"), tl.float64)
    weights = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_q = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_g = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_k = tl.zeros((ROWS, COLUMNS), tl.float64)
    for begin in range(0, M, COLUMNS):
        m = begin + columns
        here = (i < N)[:, None] & (m < M)[None, :]
        q, g, k = _load(energies, row + m[None, :], size, here)
        met = _met(i, m, here, own, LEAVE_OUT)
        density = tl.where(met, k - q - g, float("-inf"))
        before = most
        most = tl.maximum(most, tl.max(density, 1))
        factor = tl.where(before == most, 1.0, tl.exp(before - most))[:, None]
        weight = tl.exp(density - _finite(most)[:, None])
        # 0 * inf: a component that is never chosen adds nothing.
        never = weight == 0
        weights = weights * factor + weight
        of_q = of_q * factor + tl.where(never, 0.0, weight * q)
        of_g = of_g * factor + tl.where(never, 0.0, weight * g)
        of_k = of_k * factor + tl.where(never, 0.0, weight * k)
    total = tl.sum(weights, 1)
    log_sum = _finite(most) + tl.log(total)
    # Not by the largest density, which may not see NaN.
    hopeless = (total == 0) & (i < N)
    if tl.max(hopeless.to(tl.int32), 0) > 0:  # every density is 0: equal responsibilities
        for begin in range(0, M, COLUMNS):
            m = begin + columns
            here = hopeless[:, None] & (m < M)[None, :]
            met = _met(i, m, here, own, LEAVE_OUT)
            q, g, k = _load(energies, row + m[None, :], size, met)
            weights += met.to(tl.float64)
            of_q += q
            of_g += g
            of_k += k
        total = tl.sum(weights, 1)
    at = state + (direction * 4 * N.to(tl.int64) + i)
    tl.store(at, log_sum, mask=i < N)
    tl.store(at + N, tl.sum(of_q, 1) / total, mask=i < N)
    tl.store(at + 2 * N.to(tl.int64), tl.sum(of_g, 1) / total, mask=i < N)
    tl.store(at + 3 * N.to(tl.int64), tl.sum(of_k, 1) / total, mask=i < N)


@triton.jit(do_not_specialize=["N", "partners"])
def logsumexp_means_kernel(
    state,  # (D, 4, N) float64
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
        log_sum, q, g = _load(state, direction * 4 * N.to(tl.int64) + i, N.to(tl.int64), inside)
        k = tl.load(state + (direction * 4 + 3) * N.to(tl.int64) + i, mask=inside, other=0.0)
        value += tl.where(inside, log_partners - log_sum, 0.0)
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


@triton.jit(do_not_specialize=["N", "own", "partners", "tiles_n", "tiles_m"])
def logsumexp_gradient_kernel(
    upstream,  # (D, 5) float64
    energies,  # (D, 3, N, M) float64
    state,  # (D, 4, N) float64
    gradient,  # (D, 3, N, M) float64
    N,
    M,
    own,
    LEAVE_OUT: tl.constexpr,
    partners,
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
    log_sum, mean_q, mean_g = _load(state, direction * 4 * samples + i, samples, i < N)
    mean_k = tl.load(state + (direction * 4 + 3) * samples + i, mask=i < N, other=0.0)
    at = upstream + direction * 5
    total, of_q, of_g = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    assignment, of_k = tl.load(at + 3), -tl.load(at + 4)
    met = _met(i, m, here, own, LEAVE_OUT)
    r = tl.exp(tl.where(met, k - q - g, float("-inf")) - log_sum[:, None])
    # Of the log-density, relative to r / N: a hopeless row has none, and equal responsibilities.
    of_density = (of_q - assignment) * (q - mean_q[:, None]) - total
    of_density += (of_g - assignment) * (g - mean_g[:, None])
    of_density += (of_k + assignment) * (k - mean_k[:, None])
    hopeless = (log_sum == float("-inf"))[:, None]
    r = tl.where(hopeless, met.to(tl.float64) / partners.to(tl.float64), r)
    of_density = tl.where(hopeless, 0.0, of_density)
    weight = r / samples.to(tl.float64)
    # Select: energies and upstream gradients may be infinite where nothing is chosen.
    never = r == 0
    to = gradient + base
    tl.store(to, tl.where(never, 0.0, weight * (of_q - of_density)), mask=here)
    tl.store(to + size, tl.where(never, 0.0, weight * (of_g - of_density)), mask=here)
    tl.store(to + 2 * size, tl.where(never, 0.0, weight * (of_k + of_density)), mask=here)
