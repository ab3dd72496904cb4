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

    def least(self, stds: Tensor, roles: Sequence[Role], dtype: torch.dtype) -> list[Tensor]: ...


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


class Partners(NamedTuple):
    """How many rows, wherever they are, a row of one mixture meets at each position."""

    of_samples: Tensor  # (S,) integers: components
    of_components: Tensor  # (S,) integers: samples

    def contributing(self, mixture: Mixture) -> tuple[Tensor, Tensor]:
        """Positions of its samples (N, S) and components (M, S) that have weight in some pair."""
        m = mixture
        return (
            m.sample_mask[slice(*m.sample_rows)] & (self.of_samples > 0),
            m.component_mask[slice(*m.component_rows)] & (self.of_components > 0),
        )


class Parts(NamedTuple):
    """What rows of D mixtures tell those that they meet elsewhere; see `reference.parts`."""

    planes: Tensor  # (D, 6, S, E) in the dtype that travels
    counts: Tensor  # (D, S) integers: contributing samples
    components: Tensor  # (D, S) integers: contributing components
    sums: Tensor  # (D, 3) of what pairs with the partners add, see `parts`


class PartsAndPull(Protocol):
    def parts(
        self,
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        partners: Sequence[Partners],
        dtype: torch.dtype,
    ) -> Parts: ...

    def pull(
        self,
        upstream: Tensor,
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        partners: Sequence[Partners],
        planes: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients: ...

    def merge(
        self, planes: Tensor, counts: Tensor, features: int, first: int, apart: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def unite(
        self, planes: Tensor, counts: Tensor, met: Tensor, features: int
    ) -> tuple[Tensor, Tensor]: ...


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


class BuildingBlocks(NamedTuple):
    """The modules of one backend."""

    variance: Variance
    moments: Moments
    pairs: Pairs
    logsumexp: Logsumexp
    parts: PartsAndPull
    online: Online | None = None
