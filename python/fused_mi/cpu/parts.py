"""Moments of rows whose partners are elsewhere, on a CPU; plain torch where the library says that
float64 has no room for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Partners, Parts
from .._mixture import Mixture
from .._passes import gradients
from ..reference import parts as reference
from ..reference.parts import PLANES
from ._arguments import constants, numbers_of, with_rows
from ._library import operators, path


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
    D, (_, S, E) = len(mixtures), y.shape
    counts = torch.empty((D, 2, S), dtype=torch.int64)
    found = Parts(
        torch.empty((D, PLANES, S, E), dtype=dtype),
        counts[:, 0],
        counts[:, 1],
        torch.zeros((D, 3), dtype=torch.float64),
    )
    if S * E and operators().parts(
        *map(with_rows, (y, x, mu, stds)),
        *_elsewhere(mixtures),
        _numbers(partners),
        path(),
        found.planes,
        counts,
        found.sums,
    ):
        return found
    return reference.parts(y, x, mu, stds, mixtures, partners, dtype)


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
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, [m._replace(exclude_diagonal=False) for m in mixtures], wanted, True)
    numbers = numbers_of(plan)
    if not numbers or operators().pull(
        upstream.to(torch.float64).contiguous(),
        *map(with_rows, inputs),
        *_elsewhere(mixtures),
        _numbers(partners),
        planes.to(torch.float64).contiguous(),
        numbers,
        path(),
        *plan.tensors,
    ):
        return plan.tensors
    return reference.pull(upstream, *inputs, mixtures, partners, planes, wanted)


unite = reference.unite


def _elsewhere(mixtures: Sequence[Mixture]) -> tuple[object, ...]:
    """The constants of mixtures whose rows meet none of each other."""
    *found, _ = constants(mixtures)
    return tuple(found)


def _numbers(partners: Sequence[Partners]) -> Tensor:
    """(D, 2, S) int64."""
    return torch.stack([torch.stack(tuple(p)) for p in partners]).to(torch.int64).contiguous()


def merge(
    planes: Tensor, counts: Tensor, features: int, first: int, apart: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fused_mi.reference.parts.merge`."""
    D, sets, _, n = planes.shape
    merged = torch.empty((D, sets if apart else 1, PLANES, n), dtype=planes.dtype)
    sums = torch.zeros(D, dtype=torch.float64)
    room = operators().merge(
        planes.contiguous(), counts.contiguous(), features, first, apart, path(), merged, sums
    )
    return merged, sums, torch.tensor(room)
