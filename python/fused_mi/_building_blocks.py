"""What the modules of a backend offer: the same functions in each, see those of `reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._mixture import Inputs, Mixture, Role, Rows, Scoring

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


class Own(NamedTuple):
    """The component of each sample that is its own."""

    first: int = 0  # of sample 0; the next one of sample 1
    of_samples: Tensor | None = None  # (N,) int64, in place of that; then their energies matter
    left_out: bool = True  # of those that a sample meets

    @classmethod
    def of(cls, scoring: Scoring) -> Own | None:
        """That of a call, where it matters."""
        if scoring.pairing == "leave_one_out":
            return cls()
        if scoring.origins is None:
            return None
        return cls(of_samples=scoring.origins, left_out=scoring.leave_origins_out)

    def of_rows(self, rows: Rows) -> Own:
        """That of some of the samples."""
        of_samples = None if self.of_samples is None else self.of_samples[slice(*rows)]
        return self._replace(first=self.first + rows[0], of_samples=of_samples)

    @staticmethod
    def partners(own: Own | None, components: int) -> int:
        """How many components take part in a mean over them."""
        return components - int(own is not None and own.of_samples is None)


class Logsumexp(Protocol):
    def logsumexp(self, energies: Tensor, own: Own | None) -> Tensor: ...

    def means(self, rows: Tensor, partners: int) -> Tensor: ...

    def logsumexp_backward(
        self, upstream: Tensor, energies: Tensor, rows: Tensor, own: Own | None
    ) -> Tensor: ...


class Online(Protocol):
    """`pairs` and `logsumexp` in one, for float32: energies are in no memory."""

    def online(
        self,
        inputs: Inputs,
        mixtures: Sequence[Mixture],
        own: Own | None,
        log_weights: Tensor | None,
        rows: Tensor,
    ) -> None: ...

    def online_backward(
        self,
        upstream: Tensor,
        inputs: Inputs,
        mixtures: Sequence[Mixture],
        own: Own | None,
        log_weights: Tensor | None,
        rows: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients: ...
