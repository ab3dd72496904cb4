"""Energies of all pairs: true differences, a tile of samples times a tile of components.

The axis of the features comes first in a tile, so that each thread has a pair of rows to itself and
adds up over features in registers; the operands reach it through shared memory in vectors. Two
fused multiply-adds for each pair and feature: `z = y r - c r` with `r = 1 / sqrt(v)`, and `z * z`.
"""

import triton
import triton.language as tl

from ._tiles import cast, load, precision_scale, variance_terms


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "N", "M", "S", "chunks_per_split"],
    do_not_specialize_on_alignment=["component_eps"],
)
def distances_kernel(
    y,  # (rows, S, E)
    x,  # (rows, S, E)
    mu,  # (rows, S, E), or None
    stds,  # (rows, S, E)
    component_eps,  # ()
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    counts,  # (4, S) int32, see Positions
    parts,  # (splits, N, M) ACC: sums of z * z over a range of chunks
    y_stride_row,
    y_stride_s,
    y_stride_e,
    x_stride_row,
    x_stride_s,
    x_stride_e,
    mu_stride_row,
    mu_stride_s,
    mu_stride_e,
    stds_stride_row,
    stds_stride_s,
    stds_stride_e,
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    tiles_n,
    tiles_m,
    chunks_per_position,
    chunks_per_split,
    HAS_MU: tl.constexpr,
    ACC: tl.constexpr,
    SAMPLES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    FEATURES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    tile_n, tile_m = program % tiles_n, (program // tiles_n) % tiles_m
    split = program // tiles_n // tiles_m
    n = tile_n * SAMPLES + tl.arange(0, SAMPLES)
    m = tile_m * COMPONENTS + tl.arange(0, COMPONENTS)
    eps = tl.load(component_eps).to(ACC)
    total = tl.zeros((SAMPLES, COMPONENTS), ACC)
    for i in range(0, chunks_per_split):
        chunk = split * chunks_per_split + i
        s = chunk // chunks_per_position
        begin = (chunk % chunks_per_position) * CHUNK
        at_n, at_m = n.to(tl.int64) * S + s, m.to(tl.int64) * S + s
        here_n = tl.load(sample_active + at_n, mask=(n < N) & (s < S), other=0) != 0
        here_m = tl.load(component_active + at_m, mask=(m < M) & (s < S), other=0) != 0
        # A position that the whole tile skips is not read.
        some = tl.minimum(tl.max(here_n.to(tl.int32), 0), tl.max(here_m.to(tl.int32), 0))
        if some > 0:
            first = tl.zeros((1, 1), tl.int32) + component_start + tl.load(counts + 3 * S + s)
            within = tl.zeros((SAMPLES, COMPONENTS), ACC)
            for offset in range(0, min(CHUNK, E - begin), FEATURES):
                e = begin + offset + tl.arange(0, FEATURES)[:, None]
                row = sample_start + n[None, :]
                use = here_n[None, :] & (e < E)
                shift = load(x, first, s, e, x_stride_row, x_stride_s, x_stride_e, e < E, ACC)
                sample = load(y, row, s, e, y_stride_row, y_stride_s, y_stride_e, use, ACC)
                sample = tl.where(use, sample - shift, 0.0)
                row = component_start + m[None, :]
                use = here_m[None, :] & (e < E)
                centre = load(x, row, s, e, x_stride_row, x_stride_s, x_stride_e, use, ACC) - shift
                if HAS_MU:
                    centre += load(mu, row, s, e, mu_stride_row, mu_stride_s, mu_stride_e, use, ACC)
                sigma = load(
                    stds, row, s, e, stds_stride_row, stds_stride_s, stds_stride_e, use, ACC
                )
                precision, _, _ = variance_terms(tl.where(use, sigma, 1.0), eps, ACC)
                root = tl.where(use, tl.sqrt(precision), 0.0)
                centre = tl.where(use, centre * root, 0.0)
                z = sample[:, :, None] * root[:, None, :] - centre[:, None, :]
                within += tl.sum(z * z, 0)
            # Select here: an infinite sample must not reach a pair that lacks the position.
            total += tl.where(here_n[:, None] & here_m[None, :], within, 0.0)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (split.to(tl.int64) * N + n.to(tl.int64)[:, None]) * M + m[None, :]
    tl.store(parts + at, total, mask=inside)


@triton.jit(do_not_specialize=["size", "splits"], do_not_specialize_on_alignment=["component_eps"])
def add_splits_kernel(
    parts,  # (splits, size) ACC
    component_eps,  # ()
    energies,  # (size,) float64
    size,
    splits,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The splits in float64, in a fixed order; half of it, without the scale of the precisions."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    pointers = parts + i
    for _ in range(0, splits):
        total += tl.load(pointers, mask=i < size, other=0.0).to(tl.float64)
        pointers += size
    scale = precision_scale(tl.load(component_eps).to(ACC), ACC)
    tl.store(energies + i, total / scale / 2, mask=i < size)


@triton.jit(do_not_specialize=["start", "rows", "S"], do_not_specialize_on_alignment=["eps"])
def log_determinants_kernel(
    stds,  # (rows, S, E)
    eps,  # ()
    active,  # (rows, S) uint8
    logs,  # (rows, S) float64: 1/2 sum_e (log v + log 2 pi), 0 where not active
    stride_row,
    stride_s,
    stride_e,
    start,
    rows,
    S,
    E,
    ACC: tl.constexpr,
    FEATURES: tl.constexpr,
):
    program = tl.program_id(0)
    row, s = program // S, program % S
    here = tl.load(active + program.to(tl.int64)) != 0
    total = tl.zeros((FEATURES,), tl.float64)
    if here:
        eps_acc = tl.load(eps).to(ACC)
        for begin in range(0, E, FEATURES):
            e = begin + tl.arange(0, FEATURES)
            sigma = load(stds, start + row, s, e, stride_row, stride_s, stride_e, e < E, ACC)
            _, _, terms = variance_terms(tl.where(e < E, sigma, 1.0), eps_acc, ACC)
            total += tl.where(e < E, cast(terms, tl.float64), 0.0)
    tl.store(logs + program.to(tl.int64), tl.sum(total, 0) / 2)
