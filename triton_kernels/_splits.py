"""Moments of a batch that is split over programs: each one leaves those of its rows, another one
merges them. (splits, 5, S, E): mean and m2 of samples; weight, mean and m2 of components.
"""

import triton
import triton.language as tl

from ._moments_rows import merge, merge_streams


@triton.jit
def store_split(
    samples,  # n, mean and m2 (FEATURES,)
    components,  # weight, mean and m2 (FEATURES,)
    parts,  # (splits, 5, S, E)
    split_samples,  # (splits, S)
    split,
    place,
):
    tile, s, S, E = place
    n, mean_y, m2_y = samples
    weight, mean_c, m2_c = components
    e = tile * mean_c.shape[0] + tl.arange(0, mean_c.shape[0])
    plane = S.to(tl.int64) * E
    to = parts + split.to(tl.int64) * 5 * plane + s.to(tl.int64) * E + e
    tl.store(to, mean_y, mask=e < E)
    tl.store(to + plane, m2_y, mask=e < E)
    tl.store(to + 2 * plane, weight, mask=e < E)
    tl.store(to + 3 * plane, mean_c, mask=e < E)
    tl.store(to + 4 * plane, m2_c, mask=e < E)
    tl.store(split_samples + split.to(tl.int64) * S + s + tl.zeros_like(n).to(tl.int32), n)


@triton.jit
def merged_splits(
    parts,  # (splits, 5, S, E)
    split_samples,  # (splits, S)
    splits,
    place,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """n, mean and m2 of the samples; weight, mean and m2 of the components."""
    ACC: tl.constexpr = parts.dtype.element_ty
    tile, s, S, E = place
    e = (tile * FEATURES + tl.arange(0, FEATURES))[None, :]
    plane = S.to(tl.int64) * E
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    n, mean_y, m2_y = tl.zeros((ROWS, 1), ACC), zeros, zeros
    weight, mean_c, m2_c = zeros, zeros, zeros
    for begin in range(0, splits, ROWS):
        split = begin + tl.arange(0, ROWS)[:, None]
        use = (split < splits) & (e < E)
        of = parts + (split.to(tl.int64) * 5 * plane + s.to(tl.int64) * E + e)
        more = tl.load(split_samples + split.to(tl.int64) * S + s, mask=split < splits, other=0.0)
        mean, m2 = tl.load(of, use, 0.0), tl.load(of + plane, use, 0.0)
        n, mean_y, m2_y = merge(n, mean_y, m2_y, more, mean, m2)
        more, mean = tl.load(of + 2 * plane, use, 0.0), tl.load(of + 3 * plane, use, 0.0)
        weight, mean_c, m2_c = merge(
            weight, mean_c, m2_c, more, mean, tl.load(of + 4 * plane, use, 0.0)
        )
    return merge_streams(n, mean_y, m2_y), merge_streams(weight, mean_c, m2_c)
