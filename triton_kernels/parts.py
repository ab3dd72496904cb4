"""The moments of rows whose partners are elsewhere, on a GPU: what ranks and micro-batches tell one
another, what they meet, and the gradients from that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fused_mi._building_blocks import Partners, Parts
from fused_mi._mixture import Mixture
from fused_mi._passes import gradients
from fused_mi._precision import accumulation_dtype
from fused_mi.reference.parts import PLANES
from torch import Tensor

from ._configs import candidates, moments_tiles
from ._moments_launch import Inputs, reduce_sums, swapped
from ._parts_launch import backward, forward, merge_sets, together


def parts(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    dtype: torch.dtype,
) -> Parts:
    """See `fused_mi.reference.parts.parts`."""
    inputs: Inputs = (y, x, mu, stds)
    D, (_, S, E) = len(mixtures), y.shape
    empty = not S * E * sum(m.samples + m.components for m in mixtures)
    new = y.new_zeros if empty else y.new_empty
    found = Parts(
        new((D, PLANES, S, E), dtype=dtype),
        new((D, S), dtype=torch.int32),
        new((D, S), dtype=torch.int32),
        new((D, 3), dtype=torch.float64),
    )
    if empty:
        return found
    step = D if swapped(mixtures) else 1
    tile = moments_tiles(E, *inputs, both=step == 2 or together(mixtures))[0]
    of_each = []
    for d in range(0, D, step):
        of = slice(d, d + step)
        one = Parts(*(t[of] for t in found))
        of_each.append(forward(inputs, mixtures[of], partners[of], one, tile))
    counts = of_each[0] if len(of_each) == 1 else torch.cat(of_each)
    return found._replace(counts=counts[:, 0], components=counts[:, 1])


def pull(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    planes: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.parts.pull`."""
    inputs: Inputs = (y, x, mu, stds)
    plan = gradients(inputs, [m._replace(exclude_diagonal=False) for m in mixtures], wanted, True)
    if plan.passes:
        heavy = accumulation_dtype(*inputs) == torch.float64
        tile = candidates(y.shape[2], *inputs, heavy=heavy)[0]
        backward(upstream.to(torch.float64), inputs, mixtures, partners, planes, plan, tile)
    return plan.tensors


def merge(
    planes: Tensor, counts: Tensor, features: int, first: int, apart: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fused_mi.reference.parts.merge`."""
    D, sets, _, n = planes.shape
    merged = planes.new_empty((D, sets if apart else 1, PLANES, n))
    sums = planes.new_zeros((D, 3), dtype=torch.float64)
    if n:
        sets_of = planes.contiguous(), counts.contiguous()
        reduce_sums(merge_sets(*sets_of, None, features, first, apart, merged), sums)
    return merged, sums[:, 0], (sums[:, 1] == 0).all()


def unite(planes: Tensor, counts: Tensor, met: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.parts.unite`."""
    D, _, _, n = planes.shape
    whole = planes.new_empty((D, 1, PLANES, n))
    sums = planes.new_empty((D, 3), dtype=torch.float64)
    sets_of = planes.contiguous(), counts.contiguous(), met.contiguous()
    reduce_sums(merge_sets(*sets_of, features, 0, False, whole), sums)
    return whole[:, 0], sums[:, 0]
