"""Moments of both roles of rows whose partners are elsewhere, each for itself: as in
`_moments_forward.py`, with the same loop over rows, but with planes in place of a state, see
`_parts_finish.py`.
"""

import triton
import triton.language as tl

from ._moments_forward import load_eps
from ._moments_rows import moments_of_rows
from ._parts_finish import COUNTS, PLANES, shifts_of_roles, store_parts
from ._tiles import multiple, position


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M"),
        *("samples_per_split", "components_per_split", "splits", "partials", "S", "E", "tiles"),
    ],
    do_not_specialize_on_alignment=[
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        *("partial_sums", "split_samples", "counts"),
    ],
)
def parts_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    counts,  # (mixtures, 6, S) int32, see `meet_kernel`
    sample_eps,  # ()
    component_eps,  # ()
    other_sample_eps,  # of a second mixture, in which the roles of all rows are swapped
    other_component_eps,
    planes,  # (mixtures, 6, S, E); where there is one split
    parts,  # (mixtures, splits, 5, S, E) ACC, see `store_split`; where there are more
    split_samples,  # (mixtures, splits, S) ACC
    partial_sums,  # (mixtures, partials, 3) float64, times 2: of these rows with their partners
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
    TOGETHER: tl.constexpr,  # the samples of the one mixture are its components
    SHARED: tl.constexpr,  # in both roles rows have one eps, one mask, and so partners
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
    masks = (sample_mask, component_mask)
    n, m, shifts = shifts_of_roles(
        y, x, mu, counts, (sample_start, component_start), place, ACC, FEATURES
    )
    y_shift, x_shift, mu_shift = shifts
    eps_i, eps_l = load_eps(sample_eps, ACC), load_eps(component_eps, ACC)
    if TOGETHER:
        samples, components, log_i, log_l = moments_of_rows(
            tensors,
            shifts,
            (eps_i, eps_l),
            masks,
            (n, m),
            of_samples,
            place,
            OWN_STDS,
            SHARED,
            ACC,
            ROWS,
            FEATURES,
            VECTOR,
        )
    elif MIXTURES == 1:
        samples, _, log_i, _ = moments_of_rows(
            tensors,
            (y_shift, None, None),
            (eps_i, None),
            masks,
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
            masks,
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
        other_counts = counts + COUNTS * S
        other_n, other_m, other_shifts = shifts_of_roles(
            y, x, mu, other_counts, (component_start, sample_start), place, ACC, FEATURES
        )
        other_y_shift, other_x_shift, other_mu_shift = other_shifts
        samples, other_components, log_i, other_log_l = moments_of_rows(
            tensors,
            (y_shift, other_x_shift, other_mu_shift),
            (eps_i, load_eps(other_component_eps, ACC)),
            masks,
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
            masks,
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
        store_parts(
            other_samples,
            other_components,
            (other_log_i, other_log_l),
            other_shifts,
            (other_n, other_m),
            other_counts,
            planes + PLANES * S.to(tl.int64) * E,
            parts + 5 * splits.to(tl.int64) * S * E,
            split_samples + splits.to(tl.int64) * S,
            partial_sums + 3 * partials,
            split,
            splits,
            place,
        )
    store_parts(
        samples,
        components,
        (log_i, log_l),
        shifts,
        (n, m),
        counts,
        planes,
        parts,
        split_samples,
        partial_sums,
        split,
        splits,
        place,
    )
