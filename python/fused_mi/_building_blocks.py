"""What the modules of a backend offer: the same functions in each, see those of `reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ._mixture import Mixture, Role

Gradients = list[Tensor | None]
"""Of the inputs; None where none is wanted."""


class Variance(Protocol):
    def variance(
        self,
        stds: Tensor,
        roles: Sequence[Role],
        dtype: torch.dtype,
        safety_factor: float,
    ) -> list[Tensor]: ...


class Moments(Protocol):
    def moments(
        self,
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def moments_backward(
        self,
        upstream: Tensor,
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        state: Tensor,
        mixtures: Sequence[Mixture],
        wanted: Sequence[bool],
    ) -> Gradients: ...


class Pairs(Protocol):
    def pairs(
        self,
        y: Tensor,
        x: Tensor,
        mu: Tensor | None,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        energies: Tensor | None = None,
    ) -> Tensor: ...

    def pairs_backward(
        self,
        upstream: Tensor,
        y: Tensor,
        x: Tensor,
        mu: Tensor | None,
        stds: Tensor,
        state: None,
        mixtures: Sequence[Mixture],
        wanted: Sequence[bool],
    ) -> Gradients: ...


class Logsumexp(Protocol):
    def logsumexp(self, energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]: ...

    def logsumexp_backward(
        self, upstream: Tensor, energies: Tensor, state: Tensor, own: int | None
    ) -> Tensor: ...
