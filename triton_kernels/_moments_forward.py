"""Moments of both roles in one pass over the inputs, and from them the sums over all pairs.

A program takes one position, some features and a part of the batch: its rows that are samples, then
those that are components; where rows have both roles, both in one loop (`_moments_rows.py`). Sums
of logs are complete with that. Where one program has the whole batch, q is too; otherwise moments
go to `finish_kernel`. `reduce` adds up the programs. No atomics: every number is written by one
program. Columns that are out of range are left to `_moments_of_pairs.py`.
"""

import triton
import triton.language as tl

from ._moments_finish import shifts_of, store_moments
from ._moments_rows import moments_of_rows
from ._tiles import multiple, position


@triton.jit
def load_eps(eps, ACC: tl.constexpr):
    if eps is None:
        return tl.zeros((), ACC)  # Triton 3.6 returns no None
    else:
        return tl.load(eps).to(ACC)


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M"),
        *("samples_per_split", "components_per_split", "splits", "partials", "S", "E", "tiles"),
    ],
    do_not_specialize_on_alignment=[
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        *("partial_sums", "split_samples"),
    ],
)
def accumulate_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    counts,  # (mixtures, 4, S) int32, see `settle_kernel`
    sample_eps,  # ()
    component_eps,  # ()
    other_sample_eps,  # of a second mixture, in which the roles of all rows are swapped
    other_component_eps,
    state,  # (mixtures, 4, S, E) ACC, see `store_state`; where there is one split
    parts,  # (mixtures, splits, 5, S, E) ACC, see `store_split`; where there are more
    split_samples,  # (mixtures, splits, S) ACC
    partial_sums,  # (mixtures, partials, 3) float64: of q, g, k, times 2
    sample_start,
    component_start,
    N,
    M,
    samples_per_split,
    components_per_split,
    splits,
    partials,
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    OWN_STDS: tl.constexpr,
    MIXTURES: tl.constexpr,
    SHARED: tl.constexpr,  # in both roles rows have one eps and one mask
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    E = multiple(E, UNIT)
    tile, s, split = position(tiles, S)
    first_i, first_l = min(split * samples_per_split, N), min(split * components_per_split, M)
    of_samples = (sample_start, N, first_i, min(first_i + samples_per_split, N))
    of_components = (component_start, M, first_l, min(first_l + components_per_split, M))
    tensors, place = (y, x, mu, stds), (tile, s, S, E)
    n, m, shifts = shifts_of(y, x, mu, counts, sample_start, component_start, place, ACC, FEATURES)
    y_shift, x_shift, mu_shift = shifts
    eps_i, eps_l = load_eps(sample_eps, ACC), load_eps(component_eps, ACC)
    if MIXTURES == 1:
        samples, _, log_i, _ = moments_of_rows(
            tensors,
            (y_shift, None, None),
            (eps_i, None),
            (sample_mask, component_mask),
            (n, None),
            of_samples,
            place,
            OWN_STDS,
            False,
            ACC,
            ROWS,
            FEATURES,
            VECTOR,
        )
        _, components, _, log_l = moments_of_rows(
            tensors,
            (None, x_shift, mu_shift),
            (None, eps_l),
            (sample_mask, component_mask),
            (None, m),
            of_components,
            place,
            False,
            False,
            ACC,
            ROWS,
            FEATURES,
            VECTOR,
        )
    else:
        other_n, other_m, other_shifts = shifts_of(
            y, x, mu, counts + 4 * S, component_start, sample_start, place, ACC, FEATURES
        )
        other_y_shift, other_x_shift, other_mu_shift = other_shifts
        samples, other_components, log_i, other_log_l = moments_of_rows(
            tensors,
            (y_shift, other_x_shift, other_mu_shift),
            (eps_i, load_eps(other_component_eps, ACC)),
            (sample_mask, component_mask),
            (n, other_m),
            of_samples,
            place,
            True,
            SHARED,
            ACC,
            ROWS,
            FEATURES,
            VECTOR,
        )
        other_samples, components, other_log_i, log_l = moments_of_rows(
            tensors,
            (other_y_shift, x_shift, mu_shift),
            (load_eps(other_sample_eps, ACC), eps_l),
            (sample_mask, component_mask),
            (other_n, m),
            of_components,
            place,
            True,
            SHARED,
            ACC,
            ROWS,
            FEATURES,
            VECTOR,
        )
        store_moments(
            other_samples,
            other_components,
            other_n * other_log_l,
            other_m * other_log_i,
            other_shifts,
            (other_n, other_m),
            state + 4 * S.to(tl.int64) * E,
            parts + 5 * splits.to(tl.int64) * S * E,
            split_samples + splits.to(tl.int64) * S,
            partial_sums + 3 * partials,
            split,
            splits,
            place,
        )
    store_moments(
        samples,
        components,
        n * log_l,
        m * log_i,
        shifts,
        (n, m),
        state,
        parts,
        split_samples,
        partial_sums,
        split,
        splits,
        place,
    )
