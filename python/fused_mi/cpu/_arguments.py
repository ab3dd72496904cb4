"""Tensors and mixtures as the raw operators take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._mixture import Mixture, flatten
from .._passes import Gradients


def with_rows(tensor: Tensor) -> Tensor:
    """With a contiguous last dimension: itself, or a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def constants(mixtures: Sequence[Mixture]) -> tuple[Any, ...]:
    """Masks, eps of components and of samples as numbers, rows, exclude_diagonal."""
    *masks, component_eps, sample_eps, rows, exclude_diagonal = flatten(mixtures)
    own = [] if sample_eps is None else sample_eps.tolist()
    return *masks, component_eps.tolist(), own, rows, exclude_diagonal


def numbers_of(plan: Gradients) -> list[int]:
    """Five numbers for each pass that writes: start, stop, the mixture of either role or -1, and a
    bit for each gradient."""
    numbers: list[int] = []
    for (rows, *roles), write in plan.passes:
        bits = sum(1 << i for i, writes in enumerate(write) if writes)
        numbers += [*rows, *(-1 if d is None else d for d in roles), bits] if bits else []
    return numbers
