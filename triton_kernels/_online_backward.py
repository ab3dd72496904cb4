"""What the pairs of a block weigh in the gradients, from energies that are found once more; and
sums of gradients, of programs that shared the components.

Gradients follow by the kernels of the pairs, which read the weights: an energy has all features,
and its weight is known before the first feature of a gradient.
"""

import triton
import triton.language as tl

from ._logsumexp_kernels import meets, own_of, term_of
from ._online_energies import density_of, difference, energies_of, halves
from ._tiles import cast, multiple


@triton.jit
def _mean(state, n, inside, ACC: tl.constexpr):
    """Of samples, as two numbers."""
    return halves(tl.load(state + n, mask=inside, other=0.0)[:, None], ACC)


@triton.jit
def _store(matrix, at, value):
    if matrix is not None:
        tl.store(matrix + at, value.to(matrix.dtype.element_ty))


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E", "own"),
        *("samples", "equal", "tiles_n", "tiles_m"),
    ],
    do_not_specialize_on_alignment=[
        *("component_eps", "sample_active", "component_active", "of_components", "of_samples"),
        *("log_weights", "origins", "upstream", "state"),
    ],
)
def weigh_kernel(
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
    N,  # of the block
    M,
    S,
    E,
    of_components,  # (M, S) float64: logs of their determinants
    of_samples,  # (N, S) float64, the same of the samples' own; or None
    log_weights,  # (M,) float64 in place of those, or None
    own,  # see `own_of`
    origins,  # (N,) int64, or None
    LEAVE_OUT: tl.constexpr,
    upstream,  # (5, samples) float64 from the first of the block on, or (5, 1)
    EACH: tl.constexpr,
    state,  # (5, samples) float64 from the first of the block on
    samples,  # of the mixture
    equal,  # components that a sample meets
    by_sample,  # (tiles_n SAMPLES, tiles_m COMPONENTS) of q, written, 0 outside; or None
    by_component,  # the same transposed
    of_g,  # as by_sample, of g
    of_k,
    tiles_n,
    tiles_m,
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
    """The gradients of the energies of a block, see `logsumexp_gradient_kernel`."""
    E = multiple(E, UNIT)
    first, stop, step = tl.program_id(0), tl.program_id(0) + 1, 1
    if CAREFUL:
        # Mostly nothing to do: few programs, which otherwise do the work of all.
        stop, step = tiles_n * tiles_m, tl.num_programs(0)
        if tl.load(irregular) == 0:
            return
    for program in range(first, stop, step):
        first_n, first_m = (program % tiles_n) * SAMPLES, (program // tiles_n) * COMPONENTS
        q, q_rest, g, g_rest, k, k_rest = energies_of(
            *(y, x, mu, stds, component_eps, sample_active, component_active, shift),
            *(sample_start, component_start, N, M, S, E),
            *(of_components, of_samples, log_weights, first_n, first_m),
            *(UNIT, EVEN, CAREFUL, ACC, SAMPLES, COMPONENTS, FEATURES, VECTOR, AHEAD, CHUNK),
        )
        # As N >= 0; but these are not kept in registers over the loop over features.
        first_n, first_m = first_n + (N >> 31), first_m + (N >> 31)
        n, m = first_n + tl.arange(0, SAMPLES), first_m + tl.arange(0, COMPONENTS)
        inside = n < N
        here = inside[:, None] & (m < M)[None, :]
        if not CAREFUL:
            odd = tl.max(tl.max((here & ~(q < 2.0**100)).to(tl.int32), 1), 0)
            tl.store(irregular, 1, mask=odd > 0)
        mine = own_of(n, inside, own, origins)
        met = meets(mine, m, here, LEAVE_OUT)
        density, rest = density_of(q, q_rest, g, g_rest, k, k_rest, met)
        length = samples.to(tl.int64)
        log_sum, of_rest = _mean(state, n, inside, ACC)
        hopeless = log_sum == float("-inf")
        r = tl.exp(difference(density, rest, log_sum, of_rest))
        r = tl.where(hopeless, met.to(ACC) / equal.to(ACC), r)
        at = n if EACH else 0
        width = length if EACH else 1
        total = cast(term_of(upstream, at, 0, width, inside, EACH), ACC)
        of_q = cast(term_of(upstream, at, 1, width, inside, EACH), ACC)
        of_logs = cast(term_of(upstream, at, 2, width, inside, EACH), ACC)
        assignment = cast(term_of(upstream, at, 3, width, inside, EACH), ACC)
        of_own = -cast(term_of(upstream, at, 4, width, inside, EACH), ACC)
        # Of the log-density, relative to r: a hopeless row has none, and equal responsibilities.
        mean, of_rest = _mean(state + length, n, inside, ACC)
        of_density = (of_q - assignment) * difference(q, q_rest, mean, of_rest) - total
        mean, of_rest = _mean(state + 2 * length, n, inside, ACC)
        of_density += (of_logs - assignment) * difference(g, g_rest, mean, of_rest)
        mean, of_rest = _mean(state + 3 * length, n, inside, ACC)
        of_density += (of_own + assignment) * difference(k, k_rest, mean, of_rest)
        of_density = tl.where(hopeless, 0.0, of_density)
        # Select: energies and upstream gradients may be infinite where nothing is chosen.
        never = (r == 0) | ~here
        of_q = tl.where(never, 0.0, r * (of_q - of_density))
        of_logs = tl.where(never, 0.0, r * (of_logs - of_density))
        if origins is not None:
            at_own = here & (mine[:, None] == m[None, :]) & ~hopeless
            of_q = tl.where(at_own, of_q - total, of_q)
            of_logs = tl.where(at_own, of_logs - total, of_logs)
        to = n.to(tl.int64)[:, None] * (tiles_m * COMPONENTS) + m[None, :]
        _store(by_sample, to, of_q)
        _store(of_g, to, of_logs)
        _store(of_k, to, tl.where(never, 0.0, r * (of_own + of_density)))
        _store(by_component, m.to(tl.int64)[None, :] * (tiles_n * SAMPLES) + n[:, None], of_q)


@triton.jit(
    do_not_specialize=["size", "splits", "add"], do_not_specialize_on_alignment=["gradient"]
)
def add_gradients_kernel(
    parts,  # (splits, size)
    irregular,  # (1,) int32; where CAREFUL, 0: nothing to do
    gradient,  # (size,), written
    size,  # in 64 bits
    splits,
    add,  # not 0: on top of what is there
    CAREFUL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the splits, in a fixed order."""
    if CAREFUL:  # noqa: SIM102 (decided at compile time)
        if tl.load(irregular) == 0:
            return
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    total = tl.zeros((BLOCK,), tl.float32)
    at = parts + i
    for _ in range(0, splits):
        total += tl.load(at, mask=inside, other=0.0)
        at += size
    total += cast(tl.load(gradient + i, mask=inside & (add != 0), other=0.0), tl.float32)
    tl.store(gradient + i, cast(total, gradient.dtype.element_ty), mask=inside)
