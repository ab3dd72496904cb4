"""The moments on a CPU: one call of the library for each direction, plain torch where the library
says that float64 has no room for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Mixture
from .._passes import gradients, nothing
from .._precision import moments_dtype
from ..reference import moments as reference
from ._arguments import constants, numbers_of, with_rows
from ._library import operators, path


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`."""
    dtype = moments_dtype(y, x, mu, stds, exact=mixtures[0].exclude_diagonal)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64)
    if state is None:
        state = torch.empty((len(mixtures), 4, *y.shape[1:]), dtype=dtype)
    if nothing(y, mixtures):
        return sums.zero_(), state.zero_()
    inputs = map(with_rows, (y, x, mu, stds))
    if not operators().moments(*inputs, *constants(mixtures), path(), sums, state):
        sums, _ = reference.moments(y, x, mu, stds, mixtures)  # the state is NaN and stays so
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
    numbers = numbers_of(plan)
    if not numbers or operators().moments_backward(
        upstream.contiguous(),
        *map(with_rows, inputs),
        *constants(mixtures),
        state.contiguous(),
        numbers,
        path(),
        *plan.tensors,
    ):
        return plan.tensors
    return reference.moments_backward(upstream, *inputs, None, mixtures, wanted)
