"""The moments on a GPU and their gradients: of one or two mixtures over the same rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from fused_mi._mixture import Mixture
from fused_mi._passes import gradients, nothing
from fused_mi._precision import accumulation_dtype, moments_dtype
from fused_mi._warming import warming
from torch import Tensor

from . import _one_group_launch as _one_group
from ._configs import candidates, moments_tiles
from ._gradients_launch import Active, Upstream, backward
from ._launch import unit
from ._moments_launch import Inputs, Terms, forward, leave_one_out, reduce, swapped
from ._positions import positions
from ._prepare import counts_of
from ._tune import best


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor | None = None,
    terms: Terms | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`.

    Args:
        state: of one group of rows, see `one_group`, it may be (D, S, E) uint8, for lost columns.
        terms: written as well.
        counts: (mixtures, 4, S), see `settle_kernel`, where they are known; those of a mixture
            without its diagonal are written.
    """
    inputs = (y, x, mu, stds)
    _, S, E = y.shape
    exact = mixtures[0].exclude_diagonal
    dtype = moments_dtype(*inputs, exact=exact)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64, device=y.device)
    if state is None:
        state = torch.empty((len(mixtures), 4, S, E), dtype=dtype, device=y.device)
    if nothing(y, mixtures):
        reduce(sums.zero_()[:, None], sums, mixtures, terms)
        return sums, state.zero_()
    both = swapped(mixtures)
    tiles = moments_tiles(E, *inputs, both=both or exact)
    if exact:
        where = positions(mixtures[0], None if counts is None else counts[0])
        run = functools.partial(leave_one_out, inputs, mixtures, where, sums, state, terms)
        run(best(_key("forward", inputs, mixtures), tiles, run, y.device))
        return sums, state
    if counts is None:
        counts = counts_of(mixtures, stds, both)
    if state.dtype == torch.uint8:
        if warming():
            moments(*inputs, mixtures, None, terms, counts)
        _one_group.forward(inputs, mixtures, counts, sums, state, terms)
        return sums, state
    together = len(mixtures) if both else 1
    at_once = terms if together == len(mixtures) else None
    for d in range(0, len(mixtures), together):
        of = slice(d, d + together)
        of_these = inputs, mixtures[of], counts[of], sums[of], state[of], at_once
        run = functools.partial(forward, *of_these)
        run(best(_key("forward", inputs, mixtures[of]), tiles, run, y.device))
    if at_once is not terms:
        reduce(2 * sums[:, None], sums, mixtures, terms)
    return sums, state


def moments_backward(
    upstream: Tensor | Upstream,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
    counts: Tensor | None = None,
) -> list[Tensor | None]:
    """See `fused_mi.reference.moments.moments_backward`; or from the gradients of the loss."""
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, mixtures, wanted)
    if not plan.passes:
        return plan.tensors
    few = state.dtype == torch.uint8
    if few and warming():
        shape = len(mixtures), 4, *y.shape[1:]
        many = state.new_zeros(shape, dtype=accumulation_dtype(*inputs))
        moments_backward(upstream, *inputs, many, mixtures, wanted, counts)
    if mixtures[0].exclude_diagonal:
        found = positions(mixtures[0])
        where = Active(found.counts[None], found.sample_active, found.component_active)
    else:
        first = mixtures[0]
        if counts is None:
            counts = counts_of(mixtures, stds, swapped(mixtures))
        where = Active(counts, first.sample_mask, first.component_mask)
    if isinstance(upstream, Tensor):
        upstream = upstream.contiguous()
    run = functools.partial(backward, upstream, inputs, state, mixtures, where, plan)
    key = _key("gradient", inputs, mixtures, *wanted)
    tiles = candidates(y.shape[2], *inputs, heavy=accumulation_dtype(*inputs) == torch.float64)
    run(tiles[0] if few else best(key, tiles, run, y.device))
    return plan.tensors


def _key(name: str, inputs: Inputs, mixtures: Sequence[Mixture], *flags: bool) -> tuple[Any, ...]:
    """What the fastest tile depends on; sizes by powers of two, for new batches find it too."""
    rows, S, E = inputs[0].shape
    sizes = (rows.bit_length(), (S * E).bit_length(), E.bit_length(), unit(E))
    both = mixtures[0].exclude_diagonal, len(mixtures)
    return (name, *sizes, *(str(t.dtype) for t in inputs), *both, *flags)
