"""The moments on a CPU: one call of the library for each direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.mixture import Mixture
from ..reference.passes import cover, passes, writes
from ..reference.variance import moments_dtype
from ._library import operators, path, with_rows


def moments(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixtures: Sequence[Mixture]
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`."""
    dtype = moments_dtype(y, x, mu, stds, exact=mixtures[0].exclude_diagonal)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64)
    state = torch.empty((len(mixtures), 4, *y.shape[1:]), dtype=dtype)
    if _nothing(y, mixtures):
        return sums.zero_(), state.zero_()
    inputs = map(with_rows, (y, x, mu, stds))
    operators().moments(*inputs, *_constants(mixtures), path(), sums, state)
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
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    of_stds = components if mixtures[0].sample_eps is None else [*samples, *components]
    roles = (samples, components, components, of_stds)  # rows that have a gradient, of each input
    nothing = _nothing(y, mixtures)
    everything = [] if nothing else passes(mixtures)

    gradients: list[Tensor | None] = []
    numbers: list[int] = []
    for tensor, needed, of_role in zip(inputs, wanted, roles, strict=True):
        written = [this.rows for this in everything if writes(this.rows, of_role)]
        new = torch.empty if cover(written, tensor.shape[0]) else torch.zeros
        gradients.append(new(tensor.shape, dtype=tensor.dtype) if needed else None)
    for this in everything:
        bits = sum(
            1 << i
            for i, (needed, of_role) in enumerate(zip(wanted, roles, strict=True))
            if needed and writes(this.rows, of_role)
        )
        roles_of_pass = [-1 if d is None else d for d in this[1:]]
        numbers += [*this.rows, *roles_of_pass, bits] if bits else []
    if numbers:
        operators().moments_backward(
            upstream.contiguous(),
            *map(with_rows, inputs),
            *_constants(mixtures),
            state.contiguous(),
            numbers,
            path(),
            *gradients,
        )
    return gradients


def _nothing(y: Tensor, mixtures: Sequence[Mixture]) -> bool:
    """Whether there is no element or no pair."""
    return not y.shape[1] * y.shape[2] or any(m.samples * m.components == 0 for m in mixtures)


def _constants(mixtures: Sequence[Mixture]) -> tuple[Any, ...]:
    """Masks, eps of components and of samples, rows, exclude_diagonal."""
    first = mixtures[0]
    return (
        first.sample_mask,
        first.component_mask,
        [m.component_eps.item() for m in mixtures],
        [m.sample_eps.item() for m in mixtures if m.sample_eps is not None],
        [bound for m in mixtures for bound in (*m.sample_rows, *m.component_rows)],
        first.exclude_diagonal,
    )
