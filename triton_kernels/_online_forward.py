"""The log-sum-exp over components while their energies are found: a program takes some samples past
its share of the components, tile by tile, and keeps a few numbers of each sample.

They are in memory between two tiles, where they take no registers from the loop over features, and
in float64: the sum of a tile is one of float32, and rounded once.
"""

import triton
import triton.language as tl

from ._logsumexp_kernels import finite, meets, own_of
from ._online_energies import added, density_of, energies_of, weighted_sum, wide
from ._tiles import multiple

NUMBERS = tl.constexpr(6)
"""Of a sample and a share: the largest density; relative to it, the sum of the weights and weighted
sums of q, g and k; and the energy of the sample's origin."""


@triton.jit
def _rescaled(at, later, factor):
    """A sum as far as it is known, relative to another density."""
    before = tl.load(at, mask=later, other=0.0)
    return tl.where(factor == 0, 0.0, before * factor)


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E", "own"),
        *("tiles_n", "tiles_m", "tiles_per_split", "splits"),
    ],
    do_not_specialize_on_alignment=["component_eps", "origins", "log_weights"],
)
def online_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided, or None
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    shift,  # (S, E) in the dtype of x, see `shift_of`
    irregular,  # (1,) int32, becomes 1 where a sum is too large; where CAREFUL, 0: nothing to do
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    of_components,  # (M, S) float64: logs of their determinants
    of_samples,  # (N, S) float64, the same of the samples' own; or None
    log_weights,  # (M,) float64 in place of those, or None
    own,  # see `own_of`
    origins,  # (N,) int64, or None
    LEAVE_OUT: tl.constexpr,
    parts,  # (splits, NUMBERS, N) float64
    tiles_n,
    tiles_m,
    tiles_per_split,
    splits,
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
    first, stop, step = tl.program_id(0), tl.program_id(0) + 1, 1
    if CAREFUL:
        # Mostly nothing to do: few programs, which otherwise do the work of all.
        stop, step = tiles_n * splits, tl.num_programs(0)
        if tl.load(irregular) == 0:
            return
    for program in range(first, stop, step):
        split = program // tiles_n
        begin = split * tiles_per_split
        for tile_m in range(begin, min(begin + tiles_per_split, tiles_m)):
            # As tile_m >= 0; but nothing of the samples is kept in registers from tile to tile.
            first_n = (program % tiles_n + (tile_m >> 31)) * SAMPLES
            first_m = tile_m * COMPONENTS
            q, q_rest, g, g_rest, k, k_rest = energies_of(
                *(y, x, mu, stds, component_eps, sample_active, component_active, shift),
                *(sample_start, component_start, N, M, S, E),
                *(of_components, of_samples, log_weights, first_n, first_m),
                *(UNIT, EVEN, CAREFUL, ACC, SAMPLES, COMPONENTS, FEATURES, VECTOR, AHEAD, CHUNK),
            )
            n, m = first_n + tl.arange(0, SAMPLES), first_m + tl.arange(0, COMPONENTS)
            inside = n < N
            here = inside[:, None] & (m < M)[None, :]
            if not CAREFUL:
                odd = tl.max(tl.max((here & ~(q < 2.0**100)).to(tl.int32), 1), 0)
                tl.store(irregular, 1, mask=odd > 0)
            mine = own_of(n, inside, own, origins)
            met = meets(mine, m, here, LEAVE_OUT)
            density, rest = density_of(q, q_rest, g, g_rest, k, k_rest, met)
            samples = N.to(tl.int64)
            at = parts + split * NUMBERS * samples + n
            later = inside & (tile_m > begin)
            before = tl.load(at, mask=later, other=float("-inf"))
            most = tl.maximum(before.to(ACC), tl.max(density, 1))
            weight = tl.exp((density - finite(most)[:, None]) + rest)
            # As long as every density is 0, responsibilities are equal; the first other drops them.
            none = (most == float("-inf"))[:, None] & (density == float("-inf"))
            weight = tl.where(none, met.to(ACC), weight)
            most = wide(most)
            factor = tl.where(before == most, 1.0, tl.exp(before - finite(most)))
            tl.store(at, most, mask=inside)
            to = at + samples
            total = tl.load(to, mask=later, other=0.0) * factor
            tl.store(to, total + wide(tl.sum(weight, 1)), mask=inside)
            to += samples
            total = _rescaled(to, later, factor)
            tl.store(to, total + wide(weighted_sum(weight, q)), mask=inside)
            to += samples
            total = _rescaled(to, later, factor)
            tl.store(to, total + wide(weighted_sum(weight, g)), mask=inside)
            if (of_samples is not None) or (log_weights is not None):
                total = _rescaled(to + samples, later, factor)
                tl.store(to + samples, total + wide(weighted_sum(weight, k)), mask=inside)
            if origins is not None:
                to += 2 * samples
                energy, rest = added(q, q_rest, g, g_rest)
                at_own = here & (mine[:, None] == m[None, :])
                energy = tl.sum(tl.where(at_own, energy, 0.0), 1)
                rest = tl.sum(tl.where(at_own, rest, 0.0), 1)
                total = tl.load(to, mask=later, other=0.0) + (wide(energy) + wide(rest))
                tl.store(to, total, mask=inside)
            tl.debug_barrier()  # the next tile reads what this one wrote


@triton.jit
def _joined(at, factor, inside):
    part = tl.load(at, mask=inside, other=0.0)
    return tl.where(factor == 0, 0.0, part * factor)


@triton.jit(
    do_not_specialize=["N", "M", "splits"],
    do_not_specialize_on_alignment=["origins", "state"],
)
def online_finish_kernel(
    parts,  # (splits, NUMBERS, N) float64
    state,  # (5, N) float64, see `logsumexp_state_kernel`
    origins,  # (N,) int64, or None
    N,
    M,
    splits,
    HAS_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The numbers of each sample, of all shares in their order."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, samples = n < N, N.to(tl.int64)
    most = tl.full((BLOCK,), float("-inf"), tl.float64)
    at = parts + n
    for _ in range(0, splits):
        most = tl.maximum(most, tl.load(at, mask=inside, other=0.0))
        at += NUMBERS * samples
    total = tl.zeros((BLOCK,), tl.float64)
    of_q = tl.zeros((BLOCK,), tl.float64)
    of_g = tl.zeros((BLOCK,), tl.float64)
    of_k = tl.zeros((BLOCK,), tl.float64)
    energy = tl.zeros((BLOCK,), tl.float64)
    at = parts + n
    for _ in range(0, splits):
        found = tl.load(at, mask=inside, other=0.0)
        factor = tl.where(found == most, 1.0, tl.exp(found - finite(most)))
        total += tl.load(at + samples, mask=inside, other=0.0) * factor
        of_q += _joined(at + 2 * samples, factor, inside)
        of_g += _joined(at + 3 * samples, factor, inside)
        if HAS_K:
            of_k += _joined(at + 4 * samples, factor, inside)
        if origins is not None:
            energy += tl.load(at + 5 * samples, mask=inside, other=0.0)
        at += NUMBERS * samples
    log_sum = tl.where(most == float("-inf"), most, most + tl.log(total))
    # A weight that is NaN belongs to no density that is the largest.
    log_sum = tl.where(total == total, log_sum, total)
    if origins is not None:  # NaN where there is no such component
        mine = tl.load(origins + n, mask=inside, other=0)
        energy = tl.where((mine >= 0) & (mine < M), energy, float("nan"))
    to = state + n
    tl.store(to, log_sum, mask=inside)
    tl.store(to + samples, of_q / total, mask=inside)
    tl.store(to + 2 * samples, of_g / total, mask=inside)
    tl.store(to + 3 * samples, of_k / total, mask=inside)
    tl.store(to + 4 * samples, energy, mask=inside)
