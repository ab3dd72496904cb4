"""The energies of a tile of pairs, all features of it, for kernels that keep none of them.

An energy is two numbers, a sum and what rounding took from it: densities of some thousand nats are
compared, and what tells them apart is small. In float32 that is as much as float64 for what is a
sum of float32 products, without the units that many GPUs have few of.
"""

import triton
import triton.language as tl

from ._pairs_forward import here_at, some_of, squares_of
from ._tiles import cast, two_sum


@triton.jit
def halves(value, ACC: tl.constexpr):
    """A float64 as two numbers, the first of which is infinite where it is."""
    high = value.to(ACC)
    low = (value - high.to(tl.float64)).to(ACC)
    return high, tl.where(tl.abs(high) < float("inf"), low, 0.0)


@triton.jit
def added(high, low, more, rest):
    """Two numbers each; what is infinite has no rest."""
    high, lost = two_sum(high, more)
    return high, tl.where(tl.abs(high) < float("inf"), low + (lost + rest), 0.0)


@triton.jit
def difference(high, low, other, rest):
    """Of two numbers each, as one: digits that they share are gone."""
    return (high - other) + (low - rest)


@triton.jit
def energies_of(
    y,
    x,
    mu,
    stds,
    component_eps,
    sample_active,
    component_active,
    shift,
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    of_components,
    of_samples,
    log_weights,
    first_n,
    first_m,
    UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    SAMPLES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
    AHEAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """q, g and k (SAMPLES, COMPONENTS), each as two numbers."""
    local_n, local_m = tl.arange(0, SAMPLES), tl.arange(0, COMPONENTS)
    n, m = first_n + local_n, first_m + local_m
    eps = tl.load(component_eps).to(ACC)
    zero = tl.zeros((SAMPLES, COMPONENTS), ACC)
    q, q_rest = zero, zero
    # One loop over positions and chunks: of two, one keeps in registers what the other skips.
    chunks = (E + CHUNK - 1) // CHUNK
    for chunk in range(0, S * chunks):
        s, begin = chunk // chunks, (chunk % chunks) * CHUNK
        here_n = here_at(sample_active, first_n, local_n, N, s, S)
        here_m = here_at(component_active, first_m, local_m, M, s, S)
        # As s >= 0; but addresses are not kept in registers from chunk to chunk.
        row_n, row_m = sample_start + n + (s >> 31), component_start + m + (s >> 31)
        if some_of(here_n, here_m) > 0:
            within = squares_of(
                *(y, x, mu, stds, shift, eps),
                *(row_n, row_m, here_n, here_m, s, begin, E),
                *(UNIT, EVEN, CAREFUL, ACC, FEATURES, VECTOR, AHEAD, CHUNK),
            )
            # Select here: an infinite sample must not reach a pair that lacks the position.
            within = tl.where(here_n[:, None] & here_m[None, :], within, 0.0)
            q, q_rest = added(q, q_rest, within, 0.0)
    g, g_rest, k, k_rest = zero, zero, zero, zero
    # As first_m >= 0; but no address of this loop is kept in registers over the one before it.
    S += first_m >> 31
    for s in range(0, S):
        here_n = here_at(sample_active, first_n, local_n, N, s, S)
        here_m = here_at(component_active, first_m, local_m, M, s, S)
        met = here_n[:, None] & here_m[None, :]
        at = (first_m.to(tl.int64) + local_m) * S + s
        log, rest = halves(tl.load(of_components + at, mask=here_m, other=0.0), ACC)
        log, rest = tl.where(met, log[None, :], 0.0), tl.where(met, rest[None, :], 0.0)
        g, g_rest = added(g, g_rest, log, rest)
        if of_samples is not None:
            at = (first_n.to(tl.int64) + local_n) * S + s
            log, rest = halves(tl.load(of_samples + at, mask=here_n, other=0.0), ACC)
            log, rest = tl.where(met, log[:, None], 0.0), tl.where(met, rest[:, None], 0.0)
            k, k_rest = added(k, k_rest, log, rest)
    if log_weights is not None:
        weight, rest = halves(tl.load(log_weights + m, mask=m < M, other=0.0), ACC)
        k, k_rest = zero + weight[None, :], zero + rest[None, :]
    return q / 2, q_rest / 2, g, g_rest, k, k_rest


@triton.jit
def density_of(q, q_rest, g, g_rest, k, k_rest, met):
    """k - q - g as two numbers, -infinity where a sample and a component do not meet."""
    high, rest = added(k, k_rest, -q, -q_rest)
    high, rest = added(high, rest, -g, -g_rest)
    return tl.where(met, high, float("-inf")), tl.where(met, rest, 0.0)


@triton.jit
def weighted_sum(weight, value):
    """Over components; 0 * inf: a component that is never chosen adds nothing."""
    return tl.sum(tl.where(weight == 0, 0.0, weight * value), 1)


@triton.jit
def wide(value):
    return cast(value, tl.float64)
