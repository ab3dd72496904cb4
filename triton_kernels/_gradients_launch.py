"""Launches of the backward pass of the moments: two, each of two passes over ranges of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fused_mi._mixture import Mixture
from fused_mi._passes import Gradients, Pass
from fused_mi._precision import accumulation_dtype
from fused_mi._warming import warming
from torch import Tensor

from . import _one_group_launch as _one_group
from ._configs import Tile, ceil_div, few, few_splits, few_tile, lost_tile, splits
from ._gradient_of_pairs import gradient_of_pairs_kernel
from ._launch import accumulator, launch, strided, unit
from ._leave_one_out_few import gradient_of_few_kernel
from ._moments_backward import gradient_kernel
from ._moments_launch import Inputs


class Upstream(NamedTuple):
    """Gradients of the loss () and of its terms (6,), and the divisor of the sums, see
    `upstream_of`."""

    total: Tensor | None
    terms: Tensor | None
    divisor: int

    def arguments(self) -> tuple[Any, ...]:
        """Of the kernels: never None, for what else they would be compiled for."""
        total, terms = self.total, self.terms
        some = terms if total is None else total
        here = int(total is not None), int(terms is not None)
        stride = 0 if terms is None else terms.stride(0)
        return some, some if terms is None else terms, *here, stride, self.divisor


class Active(NamedTuple):
    """Counts of all mixtures, see `settle_kernel`, and which rows may contribute: masks; of a
    mixture without its diagonal, contributing positions of its own rows."""

    counts: Tensor  # (mixtures, 4, S)
    samples: Tensor  # (rows, S)
    components: Tensor  # (rows, S)


Part = tuple[Pass, Sequence[bool]]
"""A pass, and which gradients it writes."""


def backward(
    upstream: Tensor | Upstream,
    inputs: Inputs,
    state: Tensor,
    mixtures: Sequence[Mixture],
    where: Active,
    plan: Gradients,
    tile: Tile,
) -> None:
    """Writes the gradients of `plan`; `upstream` may be that of the sums (mixtures, 3), float64."""
    _, S, E = inputs[0].shape
    lost = lost_tile(E)
    parts: list[Part] = [part for part in plan.passes if any(part[1])]
    of_sums = upstream if isinstance(upstream, Tensor) else None
    of_loss = (None,) * 6 if isinstance(upstream, Tensor) else upstream.arguments()
    common = *map(strided, inputs), *of_loss
    tiles, lost_tiles = ceil_div(E, tile.FEATURES), ceil_div(E, lost.LOOK)
    alone = mixtures[0].exclude_diagonal
    for two in (parts[i : i + 2] for i in range(0, len(parts), 2)):
        of_rows: list[tuple[Any, ...]] = []  # arguments of each pass, of either kernel
        of_pairs: list[tuple[Any, ...]] = []
        programs: list[int] = []
        lost_programs: list[int] = []
        for this, write in two:
            start, stop = this.rows
            roles, counts, partners = _roles(mixtures, where, this)
            first, last = _partners(mixtures, this)
            both = *roles, *_of_roles(state, this), *_of_roles(of_sums, this)
            tensors = [t if here else None for t, here in zip(plan.tensors, write, strict=True)]
            rows = *tensors, start, stop - start, first
            count, per_split = splits(stop - start, tiles * S, tile.ROWS, state.device)
            programs.append(tiles * S * count)
            of_rows.append((*both, *counts, *rows, per_split))
            count, per_split = splits(stop - start, lost_tiles * S, lost.ROWS, state.device)
            lost_programs.append(lost_tiles * S * count)
            of_pairs.append((*both, *rows, per_split, last - first, *partners))
        # No row is taken from a sum of a few.
        by_pairs = alone and few(mixtures[0].samples)
        if state.dtype == torch.uint8:
            _one_group.backward(of_sums, of_loss, inputs, mixtures, where.counts, plan)
        elif not by_pairs or warming():
            one, other = _one_and_other(of_rows)
            launch(
                gradient_kernel,
                sum(programs),
                *common,
                *one,
                *other,
                programs[0],
                S,
                E,
                tiles,
                UNIT=unit(E),
                EXCLUDE_DIAGONAL=alone,
                ACC=accumulator(accumulation_dtype(*inputs)),
                **tile._asdict(),
            )
        if by_pairs:
            _of_few(of_sums, of_loss, inputs, mixtures[0], where, plan, two[0][1])
        one, other = _one_and_other(of_pairs)
        launch(
            gradient_of_pairs_kernel,
            sum(lost_programs),
            *common,
            *one,
            where.counts[0] if alone else None,
            *other,
            lost_programs[0],
            S,
            E,
            lost_tiles,
            UNIT=unit(E),
            EXCLUDE_DIAGONAL=alone,
            **lost._asdict(),
        )


def _one_and_other(passes: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments of two passes, None for a second one that is not there."""
    one, *other = passes
    return one, other[0] if other else (None,) * len(one)


def _of_few(
    of_sums: Tensor | None,
    of_loss: tuple[Any, ...],
    inputs: Inputs,
    mixture: Mixture,
    where: Active,
    plan: Gradients,
    write: Sequence[bool],
) -> None:
    """Of "leave_one_out", pair by pair."""
    _, S, E = inputs[0].shape
    start, stop = mixture.sample_rows
    tile = few_tile(E, *inputs)
    tiles = ceil_div(E, tile.FEATURES)
    count, rows_per_split = few_splits(stop - start, tiles * S, inputs[0].device)
    launch(
        gradient_of_few_kernel,
        tiles * S * count,
        *map(strided, inputs),
        *of_loss,
        mixture.sample_eps,
        mixture.component_eps,
        where.samples,
        where.components,
        where.counts,
        None if of_sums is None else of_sums[0],
        *(tensor if here else None for tensor, here in zip(plan.tensors, write, strict=True)),
        start,
        stop - start,
        rows_per_split,
        S,
        E,
        tiles,
        UNIT=unit(E),
        OWN_STDS=mixture.sample_eps is not None,
        ACC=accumulator(accumulation_dtype(*inputs)),
        **tile._asdict(),
    )


def _partners(mixtures: Sequence[Mixture], this: Pass) -> tuple[int, int]:
    """The rows that those of a pass meet, in either role."""
    i, j = this.as_samples, this.as_components
    return mixtures[j].sample_rows if i is None else mixtures[i].component_rows  # type: ignore[index]


def _of_roles(tensor: Tensor | None, this: Pass) -> list[Tensor | None]:
    """Of a tensor (mixtures, ...) the parts of both roles, None where a pass lacks the role."""
    roles = this.as_samples, this.as_components
    return [None if d is None or tensor is None else tensor[d] for d in roles]


def _roles(mixtures: Sequence[Mixture], where: Active, this: Pass) -> tuple[tuple[Any, ...], ...]:
    """eps and masks of both roles, None where a pass lacks the role; their counts; eps and masks of
    the rows that they meet."""
    i, j = this.as_samples, this.as_components
    samples, components = strided(where.samples), strided(where.components)
    return (
        (
            None if i is None else mixtures[i].sample_eps,
            None if j is None else mixtures[j].component_eps,
            None if i is None else samples,
            None if j is None else components,
        ),
        tuple(_of_roles(where.counts, this)),
        (
            None if i is None else mixtures[i].component_eps,
            None if i is None else components,
            None if j is None else samples,
        ),
    )
