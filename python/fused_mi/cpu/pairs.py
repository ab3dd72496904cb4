"""The energies of all pairs on a CPU: one call of the library for each direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.mixture import Mixture
from ..reference.passes import cover, passes, writes
from ..reference.variance import moments_dtype
from ._library import operators, path, with_rows
from .moments import _constants, _nothing


def pairs(
    y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor, mixtures: Sequence[Mixture]
) -> Tensor:
    """See `fused_mi.reference.pairs.pairs`."""
    shape = len(mixtures), 3, mixtures[0].samples, mixtures[0].components
    energies = torch.empty(shape, dtype=torch.float64)
    if _nothing(y, mixtures):
        return energies.zero_()
    inputs = _inputs(y, x, mu, stds)
    operators().pairs(*inputs, *_constants(mixtures), _wide(inputs), path(), energies)
    return energies


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
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    of_stds = components if mixtures[0].sample_eps is None else [*samples, *components]
    roles = (samples, components, components, of_stds)  # rows that have a gradient, of each input
    nothing = _nothing(y, mixtures)
    everything = [] if nothing else passes(mixtures)

    gradients: list[Tensor | None] = []
    numbers: list[int] = []
    for tensor, needed, of_role in zip((y, x, mu, stds), wanted, roles, strict=True):
        if tensor is None or not needed:
            gradients.append(None)
            continue
        written = [this.rows for this in everything if writes(this.rows, of_role)]
        new = torch.empty if cover(written, tensor.shape[0]) else torch.zeros
        gradients.append(new(tensor.shape, dtype=tensor.dtype))
    for this in everything:
        bits = sum(
            1 << i
            for i, (gradient, of_role) in enumerate(zip(gradients, roles, strict=True))
            if gradient is not None and writes(this.rows, of_role)
        )
        roles_of_pass = [-1 if d is None else d for d in this[1:]]
        numbers += [*this.rows, *roles_of_pass, bits] if bits else []
    if numbers:
        inputs = _inputs(y, x, mu, stds)
        operators().pairs_backward(
            upstream.contiguous(),
            *inputs,
            *_constants(mixtures),
            _wide(inputs),
            numbers,
            path(),
            *gradients,
        )
    return gradients


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
