"""What an energy has beside its distance: logs of variances, of rows and of pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fused_mi._mixture import Mixture, Rows
from fused_mi._precision import moments_dtype
from torch import Tensor

from ._configs import ceil_div
from ._launch import accumulator, launch, strided, unit
from ._pairs_configs import log_tile, logs_tile
from ._pairs_forward import here_at
from ._positions import Positions
from ._tiles import load, multiple, root_terms

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""y, x, mu, stds: (rows, S, E) each; mu None is 0."""


@triton.jit
def _exponent_and_rest(v, ACC: tl.constexpr):
    """`v = 2^exponent rest`, of regular numbers, the rest in float64 and in [1, 2)."""
    if tl.float64 == ACC:
        bits = v.to(tl.int64, bitcast=True)
        rest = (bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000
        return ((bits >> 52) - 1023).to(tl.int32), rest.to(tl.float64, bitcast=True)
    else:
        bits = v.to(tl.int32, bitcast=True)
        rest = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        return (bits >> 23) - 127, rest.to(tl.float64)


@triton.jit(do_not_specialize=["start", "rows", "S", "E"], do_not_specialize_on_alignment=["eps"])
def log_determinants_kernel(
    stds,  # (rows, S, E) strided
    eps,  # ()
    active,  # (rows, S) uint8
    logs,  # (rows, S) float64: 1/2 sum_e (log v + log 2 pi), 0 where not active
    irregular,  # (1,) int32, becomes 1 where a variance is out of range
    start,
    rows,
    S,
    E,
    UNIT: tl.constexpr,  # divides E
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
):
    LOG_2PI: tl.constexpr = 1.8378770664093453
    LN_2: tl.constexpr = 0.6931471805599453
    LEAST: tl.constexpr = 2.0**-504 if tl.float64 == ACC else 2.0**-62  # see `out_of_range`
    MOST: tl.constexpr = 2.0**504 if tl.float64 == ACC else 2.0**62
    E = multiple(E, UNIT)
    program = tl.program_id(0)
    row, s = program // S, program % S
    here = tl.load(active + program.to(tl.int64)) != 0
    sum_of_logs = tl.zeros((), tl.float64)
    if here:
        total = tl.zeros((FEATURES,), tl.float64)
        odd = tl.zeros((FEATURES,), tl.int32)
        eps_acc = tl.load(eps).to(ACC)
        # A product of rests of 512 variances, and one log: no more is rounded than float64 rounds.
        for first in range(0, E, 512 * FEATURES):
            product = tl.full((FEATURES,), 1.0, tl.float64)
            exponents = tl.zeros((FEATURES,), tl.int32)
            for begin in range(first, min(first + 512 * FEATURES, E), FEATURES):
                e = begin + tl.arange(0, FEATURES)
                sigma = load(stds, start + row, s, e, e < E, ACC)
                v = tl.where(e < E, sigma * sigma + eps_acc, 1.0)
                odd |= (~((v > LEAST) & (v < MOST))).to(tl.int32)
                exponent, rest = _exponent_and_rest(v, ACC)
                exponents += exponent
                product *= rest
            total += tl.log(product) + exponents.to(tl.float64) * LN_2
        sum_of_logs = tl.sum(total, 0) + E.to(tl.float64) * LOG_2PI
        if tl.max(odd, 0) > 0:
            tl.store(irregular, 1)
            total = tl.zeros((FEATURES,), tl.float64)
            eps_f64 = tl.load(eps).to(tl.float64)
            for begin in range(0, E, FEATURES):
                e = begin + tl.arange(0, FEATURES)
                inside = e < E
                sigma = load(stds, start + row, s, e, inside, tl.float64)
                _, terms = root_terms(sigma, eps_f64)
                total += tl.where(inside, terms, 0.0)
            sum_of_logs = tl.sum(total, 0)
    tl.store(logs + program.to(tl.int64), sum_of_logs / 2)


@triton.jit(do_not_specialize=["N", "M", "S", "tiles_m"])
def pair_logs_kernel(
    of_components,  # (M, S) float64, see `log_determinants_kernel`
    of_samples,  # (N, S) float64, or None
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    g,  # (N, M) float64, written
    k,  # (N, M) float64, written; 0 where samples have no stds of their own
    N,
    M,
    S,
    tiles_m,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of each pair the logs of its positions, in their order."""
    tile_n, tile_m = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    first_n, first_m = tile_n * ROWS, tile_m * COLUMNS
    local_n, local_m = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    of_g = tl.zeros((ROWS, COLUMNS), tl.float64)
    of_k = tl.zeros((ROWS, COLUMNS), tl.float64)
    for s in range(0, S):
        here_n = here_at(sample_active, first_n, local_n, N, s, S)
        here_m = here_at(component_active, first_m, local_m, M, s, S)
        at = (first_m.to(tl.int64) + local_m) * S + s
        log = tl.load(of_components + at, mask=here_m, other=0.0)
        of_g += tl.where(here_n[:, None], log[None, :], 0.0)
        if of_samples is not None:
            at = (first_n.to(tl.int64) + local_n) * S + s
            log = tl.load(of_samples + at, mask=here_n, other=0.0)
            of_k += tl.where(here_m[None, :], log[:, None], 0.0)
    n, m = first_n + local_n, first_m + local_m
    at = n.to(tl.int64)[:, None] * M + m[None, :]
    inside = (n < N)[:, None] & (m < M)[None, :]
    tl.store(g + at, of_g, mask=inside)
    tl.store(k + at, of_k, mask=inside)


def pair_logs(logs: tuple[Tensor, Tensor | None], where: Positions, g: Tensor, k: Tensor) -> None:
    N, M = g.shape
    tile = logs_tile(M)
    tiles_n, tiles_m = ceil_div(N, tile["ROWS"]), ceil_div(M, tile["COLUMNS"])
    launch(
        pair_logs_kernel,
        tiles_n * tiles_m,
        *logs,
        where.sample_active,
        where.component_active,
        g,
        k,
        N,
        M,
        where.sample_active.shape[1],
        tiles_m,
        **tile,
    )


def logs_of(inputs: Inputs, mixture: Mixture, where: Positions) -> tuple[Tensor, Tensor | None]:
    """Of the determinants of the components (M, S), and of the samples (N, S) where they have
    their own; see `log_determinants`."""
    rows, eps, active = mixture.component_rows, mixture.component_eps, where.component_active
    of_components = log_determinants(inputs, rows, eps, active, where.irregular)
    if mixture.sample_eps is None:
        return of_components, None
    rows, eps, active = mixture.sample_rows, mixture.sample_eps, where.sample_active
    return of_components, log_determinants(inputs, rows, eps, active, where.irregular)


def log_determinants(
    inputs: Inputs, rows: Rows, eps: Tensor, active: Tensor, irregular: Tensor
) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, S) in float64, 0 where not active."""
    stds = inputs[3]
    _, S, E = stds.shape
    start, stop = rows
    logs = torch.empty((stop - start, S), dtype=torch.float64, device=stds.device)
    launch(
        log_determinants_kernel,
        (stop - start) * S,
        strided(stds),
        eps,
        active,
        logs,
        irregular,
        start,
        stop - start,
        S,
        E,
        UNIT=unit(E),
        ACC=accumulator(dtype_of(inputs)),
        **log_tile(E),
    )
    return logs


def dtype_of(inputs: Inputs) -> torch.dtype:
    return moments_dtype(*(t for t in inputs if t is not None), exact=False)
