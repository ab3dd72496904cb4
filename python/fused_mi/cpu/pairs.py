"""The energies of all pairs on a CPU: one call of the library for each direction, plain torch where
the library says that float64 has no room for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Mixture
from .._passes import gradients, nothing
from .._precision import moments_dtype
from ..reference import pairs as reference
from ._arguments import constants, numbers_of, with_rows
from ._library import operators, path


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """See `fused_mi.reference.pairs.pairs`."""
    shape = len(mixtures), 3, mixtures[0].samples, mixtures[0].components
    if energies is None:
        energies = torch.empty(shape, dtype=torch.float64)
    if nothing(y, mixtures):
        return energies.zero_()
    inputs = _inputs(y, x, mu, stds)
    if operators().pairs(*inputs, *constants(mixtures), _wide(inputs), path(), energies):
        return energies
    return reference.pairs(y, x, mu, stds, mixtures, energies)


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.pairs.pairs_backward`."""
    plan = gradients((y, x, mu, stds), mixtures, wanted)
    numbers, inputs = numbers_of(plan), _inputs(y, x, mu, stds)
    if not numbers or operators().pairs_backward(
        upstream.contiguous(),
        *inputs,
        *constants(mixtures),
        _wide(inputs),
        numbers,
        path(),
        *plan.tensors,
    ):
        return plan.tensors
    return reference.pairs_backward(upstream, y, x, mu, stds, None, mixtures, wanted)


def _inputs(
    y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With contiguous rows; a mu of 0 that takes no memory where there is none."""
    if mu is None:
        mu = x.new_zeros(x.shape[-1]).expand(x.shape)
    return with_rows(y), with_rows(x), with_rows(mu), with_rows(stds)


def _wide(inputs: Sequence[Tensor]) -> bool:
    """Whether sums and differences are taken in float64."""
    return moments_dtype(*inputs, exact=False) == torch.float64
