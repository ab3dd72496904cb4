"""The moments on a GPU, and the launches of the backward pass: of one or two mixtures over the same
rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from fused_mi._mixture import Mixture, Rows
from fused_mi._passes import Gradients, Pass, gradients, nothing
from fused_mi._precision import accumulation_dtype, moments_dtype
from torch import Tensor

from ._configs import (
    Tile,
    candidates,
    few,
    few_splits,
    few_tile,
    lost_tile,
    moments_tiles,
    splits,
)
from ._launch import accumulator, launch, strided
from ._leave_one_out_few import gradient_of_few_kernel
from ._moments_backward import gradient_kernel
from ._moments_launch import Inputs, forward, leave_one_out, swapped
from ._moments_of_pairs import gradient_of_pairs_kernel
from ._positions import Positions, positions
from ._tune import best


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`."""
    inputs = (y, x, mu, stds)
    _, S, E = y.shape
    exact = mixtures[0].exclude_diagonal
    dtype = moments_dtype(*inputs, exact=exact)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64, device=y.device)
    if state is None:
        state = torch.empty((len(mixtures), 4, S, E), dtype=dtype, device=y.device)
    if nothing(y, mixtures):
        return sums.zero_(), state.zero_()
    where = [positions(m) for m in mixtures]
    together = len(mixtures) if swapped(mixtures) else 1
    launches: Callable[..., None] = forward
    tiles = moments_tiles(E, *inputs, both=together == 2 or exact)
    if exact:
        launches = leave_one_out
    for d in range(0, len(mixtures), together):
        of = slice(d, d + together)
        run = functools.partial(launches, inputs, mixtures[of], where[of], sums[of], state[of])
        run(best(_key("forward", inputs, mixtures[of]), tiles, run, y.device))
    return sums, state


def moments_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.moments.moments_backward`."""
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, mixtures, wanted)
    if not plan.passes:
        return plan.tensors
    where = [positions(m) for m in mixtures]
    run = functools.partial(_gradients, upstream.contiguous(), inputs, state, mixtures, where, plan)
    key = _key("gradient", inputs, mixtures, *wanted)
    tiles = candidates(y.shape[2], *inputs, heavy=accumulation_dtype(*inputs) == torch.float64)
    run(best(key, tiles, run, y.device))
    return plan.tensors


def _gradients(
    upstream: Tensor,
    inputs: Inputs,
    state: Tensor,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    plan: Gradients,
    tile: Tile,
) -> None:
    _, S, E = inputs[0].shape
    lost = lost_tile(E)
    tiles, lost_tiles = triton.cdiv(E, tile.FEATURES), triton.cdiv(E, lost.LOOK)
    for this, write in plan.passes:
        if not any(write):
            continue
        i, j = this.as_samples, this.as_components
        start, stop = this.rows
        first, last = _partners(mixtures, this)
        *roles, of_samples, of_components = _roles(mixtures, where, this)
        common = (
            *map(strided, inputs),
            *roles,
            *_of_roles(state, this),
            *_of_roles(upstream, this),
            *(tensor if here else None for tensor, here in zip(plan.tensors, write, strict=True)),
            start,
            stop - start,
            first,
            S,
            E,
        )
        flags = _flags(mixtures, this)
        by_pairs = flags["EXCLUDE_DIAGONAL"] and few(stop - start)
        if by_pairs:
            _gradients_of_few(upstream[0], inputs, mixtures[0], where[0], plan, write)
        # The batch of `warmup` compiles what larger ones need.
        if not by_pairs or stop - start <= 2:
            count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, upstream.device)
            launch(
                gradient_kernel,
                0 if by_pairs else tiles * S * count,
                *common,
                rows_per_split,
                tiles,
                of_samples,
                of_components,
                **flags,
                ACC=accumulator(accumulation_dtype(*inputs)),
                **tile._asdict(),
            )
        count, rows_per_split = splits(stop - start, lost_tiles * S, lost.ROWS, upstream.device)
        launch(
            gradient_of_pairs_kernel,
            lost_tiles * S * count,
            *common,
            rows_per_split,
            lost_tiles,
            last - first,
            None if i is None else mixtures[i].component_eps,
            None if i is None else where[i].component_active,
            None if j is None else where[j].sample_active,
            of_samples if mixtures[0].exclude_diagonal else None,
            **flags,
            **lost._asdict(),
        )


def _gradients_of_few(
    upstream: Tensor,
    inputs: Inputs,
    mixture: Mixture,
    where: Positions,
    plan: Gradients,
    write: Sequence[bool],
) -> None:
    """Of "leave_one_out", pair by pair."""
    _, S, E = inputs[0].shape
    start, stop = mixture.sample_rows
    tile = few_tile(E, *inputs)
    tiles = triton.cdiv(E, tile.FEATURES)
    count, rows_per_split = few_splits(stop - start, tiles * S, upstream.device)
    launch(
        gradient_of_few_kernel,
        tiles * S * count,
        *map(strided, inputs),
        mixture.sample_eps,
        mixture.component_eps,
        where.sample_active,
        where.component_active,
        where.counts,
        upstream,
        *(tensor if here else None for tensor, here in zip(plan.tensors, write, strict=True)),
        start,
        stop - start,
        rows_per_split,
        S,
        E,
        tiles,
        OWN_STDS=mixture.sample_eps is not None,
        ACC=accumulator(accumulation_dtype(*inputs)),
        **tile._asdict(),
    )


def _partners(mixtures: Sequence[Mixture], this: Pass) -> Rows:
    """The rows that those of a pass meet, in either role."""
    i, j = this.as_samples, this.as_components
    return mixtures[j].sample_rows if i is None else mixtures[i].component_rows  # type: ignore[index]


def _of_roles(tensor: Tensor, this: Pass) -> list[Tensor | None]:
    """Of a tensor (mixtures, ...) the parts of both roles, None where a pass lacks the role."""
    return [None if d is None else tensor[d] for d in (this.as_samples, this.as_components)]


def _key(name: str, inputs: Inputs, mixtures: Sequence[Mixture], *flags: bool) -> tuple[Any, ...]:
    """What the fastest tile depends on; sizes by powers of two, for new batches find it too."""
    rows, S, E = inputs[0].shape
    sizes = (rows.bit_length(), (S * E).bit_length(), E.bit_length(), E % 16 == 0)
    both = mixtures[0].exclude_diagonal, len(mixtures)
    return (name, *sizes, *(str(t.dtype) for t in inputs), *both, *flags)


def _roles(
    mixtures: Sequence[Mixture], where: Sequence[Positions], this: Pass
) -> tuple[Tensor | None, ...]:
    """eps, active positions and counts of both roles, None where a pass lacks the role."""
    i, j = this.as_samples, this.as_components
    return (
        None if i is None else mixtures[i].sample_eps,
        None if j is None else mixtures[j].component_eps,
        None if i is None else where[i].sample_active,
        None if j is None else where[j].component_active,
        None if i is None else where[i].counts,
        None if j is None else where[j].counts,
    )


def _flags(mixtures: Sequence[Mixture], this: Pass) -> dict[str, Any]:
    i, j = this.as_samples, this.as_components
    return {
        "SAMPLES": i is not None,
        "OWN_STDS": i is not None and mixtures[i].sample_eps is not None,
        "COMPONENTS": j is not None,
        "EXCLUDE_DIAGONAL": mixtures[0].exclude_diagonal,
    }
