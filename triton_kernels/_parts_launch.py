"""Launches of what `parts`, `merge` and `pull` consist of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fused_mi._building_blocks import Partners, Parts
from fused_mi._mixture import Mixture
from fused_mi._passes import Gradients, Pass
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from ._configs import (
    MERGE,
    MomentsTile,
    Tile,
    again_tile,
    ceil_div,
    enough_programs,
    finish_tile,
    moments_splits,
    splits,
)
from ._launch import accumulator, launch, strided, unit
from ._moments_launch import Inputs, reduce_sums, shared
from ._parts_again import parts_again_kernel
from ._parts_finish import parts_finish_kernel
from ._parts_forward import parts_kernel
from ._parts_merge import merge_kernel
from ._parts_pull import pull_kernel
from ._prepare import prepare


def together(mixtures: Sequence[Mixture]) -> bool:
    """Whether the samples of the one mixture are its components, and have variances: they are read
    once."""
    m = mixtures[0]
    alone = len(mixtures) == 1 and m.sample_rows == m.component_rows
    return alone and m.sample_eps is not None and m.exclude_diagonal


def counts_of(mixtures: Sequence[Mixture], partners: Sequence[Partners], stds: Tensor) -> Tensor:
    """(D, 6, S) int32, see `meet_kernel`."""
    first, other = mixtures[0], mixtures[-1]
    counts = torch.empty((len(mixtures), 6, stds.shape[1]), dtype=torch.int32, device=stds.device)
    one_mask = first.sample_mask is first.component_mask
    of_same_rows = first.sample_rows == other.component_rows
    prepare(stds, mixtures, counts, torch.float32, one_mask and of_same_rows, 0, partners=partners)
    return counts


def forward(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    found: Parts,
    tile: MomentsTile,
) -> Tensor:
    """Writes planes and sums of one mixture, or of two that are `swapped`; returns the counts, see
    `meet_kernel`."""
    D, _, S, E = found.planes.shape
    first, other = mixtures[0], mixtures[1] if D == 2 else None
    dtype = accumulation_dtype(*inputs)
    counts = counts_of(mixtures, partners, inputs[3])
    N, M = first.samples, first.components
    starts = first.sample_rows[0], first.component_rows[0]
    masks = strided(first.sample_mask), strided(first.component_mask)
    tiles = ceil_div(E, tile.FEATURES)
    split = moments_splits(N, M, tiles * S, tile.ROWS, found.planes.device)
    programs = tiles * S * split.parts
    merge = finish_tile(E, dtype)
    merge_tiles = ceil_div(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.parts > 1 else 0
    partial_sums = found.sums.new_empty((D, programs + merge_programs, 3))
    # Where there is one split, nothing goes there.
    shapes: tuple[tuple[int, ...], ...] = ((1,), (1,))
    if split.parts > 1:
        shapes = ((D, split.parts, 5, S, E), (D, split.parts, S))
    parts, split_samples = (inputs[0].new_empty(n, dtype=dtype) for n in shapes)
    both = together(mixtures)
    launch(
        parts_kernel,
        programs,
        *map(strided, inputs),
        *masks,
        counts,
        first.sample_eps,
        first.component_eps,
        None if other is None else other.sample_eps,
        None if other is None else other.component_eps,
        found.planes,
        parts,
        split_samples,
        partial_sums,
        *starts,
        N,
        M,
        split.samples,
        split.components,
        split.parts,
        partial_sums.shape[1],
        S,
        E,
        tiles,
        UNIT=unit(E),
        OWN_STDS=first.sample_eps is not None,
        MIXTURES=D,
        TOGETHER=both,
        SHARED=(both or D == 2) and shared(first, mixtures[-1]),
        ACC=accumulator(dtype),
        **tile._asdict(),
    )
    if merge_programs:
        launch(
            parts_finish_kernel,
            D * merge_programs,
            *map(strided, inputs[:3]),
            counts,
            parts,
            split_samples,
            found.planes,
            partial_sums[:, programs:],
            *starts,
            split.parts,
            partial_sums.shape[1],
            S,
            E,
            merge_tiles,
            UNIT=unit(E),
            **merge._asdict(),
        )
    again = again_tile(E)
    again_tiles = ceil_div(E, again.LOOK)
    sums = partial_sums.new_empty((D, again_tiles * S, 3))
    launch(
        parts_again_kernel,
        D * again_tiles * S,
        *map(strided, inputs),
        first.component_eps,
        None if other is None else other.component_eps,
        *masks,
        counts,
        found.planes,
        partial_sums,
        sums,
        *starts,
        N,
        M,
        partial_sums.shape[1],
        again_tiles * S,
        S,
        E,
        again_tiles,
        UNIT=unit(E),
        **again._asdict(),
    )
    reduce_sums(sums, found.sums)
    return counts


def merge_sets(
    planes: Tensor,
    counts: Tensor,
    met: Tensor | None,
    features: int,
    first: int,
    apart: bool,
    merged: Tensor,
) -> Tensor:
    """Writes what sets meet; returns (D, programs, 3), times 2: what that adds to q, or with `met`
    what lies within the components, and in how many columns the type has no room."""
    D, sets, _, n = planes.shape
    results = merged.shape[1]
    tiles = ceil_div(n, MERGE["BLOCK"])
    partial_sums = planes.new_empty((D, results * tiles, 3), dtype=torch.float64)
    launch(
        merge_kernel,
        D * results * tiles,
        planes,
        counts,
        merged,
        met,
        partial_sums,
        sets,
        n,
        counts.shape[2],
        features,
        first,
        tiles,
        UNIT=unit(n),
        APART=apart,
        **MERGE,
    )
    return partial_sums


def backward(
    upstream: Tensor,
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    planes: Tensor,
    plan: Gradients,
    tile: Tile,
) -> None:
    """Writes the gradients of `plan`."""
    _, S, E = inputs[0].shape
    tiles = ceil_div(E, tile.FEATURES)
    passes = [part for part in plan.passes if any(part[1])]
    for two in (passes[i : i + 2] for i in range(0, len(passes), 2)):
        of_passes: list[tuple[Any, ...]] = []
        items: list[int] = []
        for this, write in two:
            start, stop = this.rows
            count, per_split = splits(stop - start, tiles * S, tile.ROWS, planes.device)
            items.append(tiles * S * count)
            tensors = [t if here else None for t, here in zip(plan.tensors, write, strict=True)]
            of_roles = _of_roles(this, mixtures, partners, planes, upstream)
            of_passes.append((*of_roles, *tensors, start, stop - start, per_split))
        if not sum(items):
            continue
        one, *other = of_passes
        arguments = *one, *(other[0] if other else (None,) * len(one))
        flags = torch.empty(sum(items), dtype=torch.int32, device=planes.device)
        for careful in (False, True):
            programs = enough_programs(planes.device) if careful else len(flags)
            dtype = torch.float64 if careful else accumulation_dtype(*inputs)
            # Registers have room for fewer elements in float64, and items have the same rows.
            rows = max(tile.ROWS // 4, 1) if careful else tile.ROWS
            launch(
                pull_kernel,
                min(programs, len(flags)),
                *map(strided, inputs),
                flags,
                *arguments,
                items[0],
                len(flags),
                S,
                E,
                tiles,
                UNIT=unit(E),
                CAREFUL=careful,
                ACC=accumulator(dtype),
                **tile._replace(ROWS=rows)._asdict(),
            )


def _of_roles(
    this: Pass,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    planes: Tensor,
    upstream: Tensor,
) -> tuple[Any, ...]:
    """eps, masks, planes, upstream gradients and numbers of partners of a pass, as samples and as
    components; None where it lacks the role."""
    i, j = this.as_samples, this.as_components
    m, other = (None if d is None else mixtures[d] for d in (i, j))
    return (
        None if m is None else m.sample_eps,
        None if other is None else other.component_eps,
        None if m is None else strided(m.sample_mask),
        None if other is None else strided(other.component_mask),
        *(None if d is None else planes[d] for d in (i, j)),
        *(None if d is None else upstream[d] for d in (i, j)),
        None if i is None else partners[i].of_samples,
        None if j is None else partners[j].of_components,
    )
