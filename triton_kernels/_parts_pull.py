"""Gradients of the sums over pairs with rows that are elsewhere.

In float32 where that has room for all of an item, a tile of features of some rows at one position.
Where it has not, a flag of the item says so, and a second launch writes it anew, in float64 by
roots and divisions.
"""

import triton
import triton.language as tl

from ._parts_pull_rows import pull_rows
from ._tiles import multiple


@triton.jit(
    do_not_specialize=[
        *("programs", "items", "S", "E", "tiles", "start", "rows", "rows_per_split"),
        *("other_start", "other_rows", "other_rows_per_split"),
    ],
    do_not_specialize_on_alignment=[
        *("sample_eps", "component_eps", "other_sample_eps", "other_component_eps"),
        *("sample_upstream", "component_upstream"),
        *("other_sample_upstream", "other_component_upstream"),
        *("met_by_samples", "met_by_components"),
        *("other_met_by_samples", "other_met_by_components"),
    ],
)
def pull_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided
    stds,  # (rows, S, E) strided
    flags,  # (items,) int32: whether something of an item is out of range
    sample_eps,  # ()
    component_eps,  # () of the mixture in which these rows are components
    sample_mask,  # (rows, S) strided bool, of the mixture in which these rows are samples
    component_mask,  # the same of the mixture in which they are components
    sample_planes,  # (6, S, E), of the same mixtures: what these rows meet, see `parts_kernel`
    component_planes,
    sample_upstream,  # (3,) float64, of the sums of the same mixtures
    component_upstream,
    met_by_samples,  # (S,) components, of the same mixtures; None: no such role
    met_by_components,  # (S,) samples
    d_y,  # (rows, S, E), written; None where there is nothing to write
    d_x,
    d_mu,
    d_stds,
    start,
    rows,
    rows_per_split,
    # the same of the rows of a second pass
    other_sample_eps,
    other_component_eps,
    other_sample_mask,
    other_component_mask,
    other_sample_planes,
    other_component_planes,
    other_sample_upstream,
    other_component_upstream,
    other_met_by_samples,
    other_met_by_components,
    other_d_y,
    other_d_x,
    other_d_mu,
    other_d_stds,
    other_start,
    other_rows,
    other_rows_per_split,
    programs,  # items of the first pass
    items,  # of both passes; a program has one, or where CAREFUL those with flags among many
    S,
    E,
    tiles,
    UNIT: tl.constexpr,  # divides E
    CAREFUL: tl.constexpr,  # after the same without: items that are out of range, in float64
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Every wanted gradient of `rows` rows from `start`, zeros where they lack the role."""
    E = multiple(E, UNIT)
    tensors = y, x, mu, stds
    # Tuples are made where they are taken: Triton 3.6 hands no None on in one.
    if CAREFUL:
        for item in range(tl.program_id(0), items, tl.num_programs(0)):
            if tl.load(flags + item) != 0:
                if item < programs:
                    pull_rows(
                        item,
                        tensors,
                        (sample_eps, component_eps),
                        (sample_mask, component_mask),
                        (sample_planes, component_planes),
                        (sample_upstream, component_upstream),
                        (met_by_samples, met_by_components),
                        (d_y, d_x, d_mu, d_stds),
                        (start, rows, rows_per_split),
                        (S, E, tiles),
                        CAREFUL,
                        ACC,
                        ROWS,
                        FEATURES,
                    )
                else:
                    if other_met_by_samples is not None or other_met_by_components is not None:
                        pull_rows(
                            item - programs,
                            tensors,
                            (other_sample_eps, other_component_eps),
                            (other_sample_mask, other_component_mask),
                            (other_sample_planes, other_component_planes),
                            (other_sample_upstream, other_component_upstream),
                            (other_met_by_samples, other_met_by_components),
                            (other_d_y, other_d_x, other_d_mu, other_d_stds),
                            (other_start, other_rows, other_rows_per_split),
                            (S, E, tiles),
                            CAREFUL,
                            ACC,
                            ROWS,
                            FEATURES,
                        )
    else:
        item = tl.program_id(0)
        found = tl.zeros((), tl.int32)
        if item < programs:
            found = pull_rows(
                item,
                tensors,
                (sample_eps, component_eps),
                (sample_mask, component_mask),
                (sample_planes, component_planes),
                (sample_upstream, component_upstream),
                (met_by_samples, met_by_components),
                (d_y, d_x, d_mu, d_stds),
                (start, rows, rows_per_split),
                (S, E, tiles),
                CAREFUL,
                ACC,
                ROWS,
                FEATURES,
            )
        else:
            if other_met_by_samples is not None or other_met_by_components is not None:
                found = pull_rows(
                    item - programs,
                    tensors,
                    (other_sample_eps, other_component_eps),
                    (other_sample_mask, other_component_mask),
                    (other_sample_planes, other_component_planes),
                    (other_sample_upstream, other_component_upstream),
                    (other_met_by_samples, other_met_by_components),
                    (other_d_y, other_d_x, other_d_mu, other_d_stds),
                    (other_start, other_rows, other_rows_per_split),
                    (S, E, tiles),
                    CAREFUL,
                    ACC,
                    ROWS,
                    FEATURES,
                )
        tl.store(flags + item, found)
