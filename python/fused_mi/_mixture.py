"""Who meets whom: the rows, masks and eps of samples and components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._precision import accumulation_dtype, working_dtype
from ._types import Pairing

Rows = tuple[int, int]
"""A range of rows, start and stop."""

Role = tuple[Tensor, Rows]
"""A mask (rows, S), and which rows of it."""


class Mixture(NamedTuple):
    """The constants of a mixture: N samples scored against M components, each a range of rows of
    its tensors.

    A position has weight 1 in a pair where the masks of both are active, and 0 elsewhere.
    """

    sample_mask: Tensor  # (rows, S) bool
    component_mask: Tensor  # (rows, S) bool
    component_eps: Tensor  # 0-dim, added to the variance of the components
    sample_eps: Tensor | None  # 0-dim, the same for the samples' own; None leaves k at 0
    sample_rows: Rows
    component_rows: Rows
    exclude_diagonal: bool = False  # leave the pairs (i, i) out (N = M)

    @classmethod
    def of_all_rows(
        cls, sample_mask: Tensor, component_mask: Tensor, component_eps: Tensor
    ) -> Mixture:
        """Every sample against every component, samples without variances of their own."""
        rows = (0, sample_mask.shape[0]), (0, component_mask.shape[0])
        return cls(sample_mask, component_mask, component_eps, None, *rows)

    @property
    def samples(self) -> int:
        """N."""
        return self.sample_rows[1] - self.sample_rows[0]

    @property
    def components(self) -> int:
        """M."""
        return self.component_rows[1] - self.component_rows[0]

    def contributing(self) -> tuple[Tensor, Tensor]:
        """Positions of samples (N, S) and of components (M, S) that have weight in some pair.

        A position counts when it is active in its own row and in a partner's; with
        `exclude_diagonal` a row is no partner of itself. The rest is deselected, so that no value
        there, NaN included, has any influence.
        """
        sample_mask = self.sample_mask[slice(*self.sample_rows)]
        component_mask = self.component_mask[slice(*self.component_rows)]
        samples, components = sample_mask.long(), component_mask.long()
        partners_of_samples, partners_of_components = components.sum(0), samples.sum(0)
        if self.exclude_diagonal:
            partners_of_samples = partners_of_samples - components
            partners_of_components = partners_of_components - samples
        return sample_mask & (partners_of_samples > 0), component_mask & (
            partners_of_components > 0
        )


def directions(pairing: Pairing, batch: int) -> tuple[list[Rows], list[tuple[int, int]]]:
    """The parts of a batch, and which part is scored against which, by their indices.

    Indices, and no ranges as keys: in a compiled graph the batch size is no number that could be
    hashed or sorted.
    """
    if pairing == "leave_one_out":
        return [(0, batch)], [(0, 0)]
    parts = [(0, batch // 2), (batch // 2, batch)]
    return parts, [(0, 1)] if pairing == "sub_batch" else [(0, 1), (1, 0)]


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y: (rows, S, E) samples. x, mu, stds: (rows, S, E); component l is centred at x + mu with the
standard deviations stds. With `own_stds`, stds holds those of the samples too, in their rows."""

AnyInputs = Inputs | tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""With the log weights (M,) of the components, where they have any."""


class Scoring(NamedTuple):
    """What an operator takes beside its tensors: who is scored against whom, and how."""

    sample_mask: Tensor  # (N, S) bool
    component_mask: Tensor | None = None  # (M, S) bool; None: active everywhere
    origins: Tensor | None = None  # (N,) int64, components that samples come from: see `Own`
    pairing: str = "all"  # or a `Pairing` of one batch; "all": rows of y against rows of x
    own_stds: bool = False  # samples have variances of their own: k
    reduction: str = "mean"  # see `Reduction`
    safety_factor: float = 0.0  # of the least variance; negative: minus the stabiliser itself
    leave_origins_out: bool = False

    def rows(self, samples: int, components: int) -> list[tuple[Rows, Rows]]:
        """Samples and components of each mixture."""
        if self.pairing == "all":
            return [((0, samples), (0, components))]
        parts, pairs_of_parts = directions(self.pairing, samples)  # type: ignore[arg-type]
        return [(parts[i], parts[j]) for i, j in pairs_of_parts]

    def components(self, x: Tensor) -> Tensor:
        """The mask of the components (M, S)."""
        if self.component_mask is not None:
            return self.component_mask
        return self.sample_mask.new_ones(()).expand(x.shape[:2])


class Sizes(NamedTuple):
    """How many mixtures there are, and the samples and components of each."""

    mixtures: int
    samples: int
    components: int

    @classmethod
    def of(cls, scoring: Scoring, inputs: AnyInputs) -> Sizes:
        rows = scoring.rows(inputs[0].shape[0], inputs[1].shape[0])
        (start, stop), (first, last) = rows[0]
        return cls(len(rows), stop - start, last - first)


def positions_of_samples(scoring: Scoring, samples: int, components: int) -> Tensor:
    """How many positions weigh in a pair (D, N): of each sample the mean over its pairs."""
    found = []
    for of_samples, (start, stop) in scoring.rows(samples, components):
        active = scoring.sample_mask[slice(*of_samples)].to(
            working_dtype(scoring.sample_mask.device)
        )
        partners = stop - start - int(scoring.pairing == "leave_one_out")
        if scoring.component_mask is not None:
            of_components = scoring.component_mask[start:stop].sum(0, dtype=active.dtype)
            if scoring.pairing == "leave_one_out":
                of_components = of_components - 1
            active = active * (of_components / partners)
        found.append(active.sum(1))
    return torch.stack(found)


def half_of_positions(scoring: Scoring, inputs: AnyInputs) -> Tensor:
    """d/2 of a loss, d the features that weigh in a pair: the mean over the scored pairs, N of them
    for "sum"; of each sample for "none"."""
    (N, _, E), M = inputs[0].shape, inputs[1].shape[0]
    of_samples = positions_of_samples(scoring, N, M) * E / 2
    if scoring.reduction == "none":
        return of_samples.flatten()
    half = of_samples.mean()
    return half * of_samples.shape[1] if scoring.reduction == "sum" else half


def mixtures_of(
    scoring: Scoring,
    inputs: AnyInputs,
    variance: Callable[..., Any],
    rows: list[tuple[Rows, Rows]] | None = None,
) -> list[Mixture]:
    """The mixtures with their stabilisers, found by `variance`, see `reference.variance`. `rows` of
    samples and components: those that are here, of a batch that is not all here."""
    y, x, _, stds = inputs[:4]
    sample_mask, component_mask = scoring.sample_mask, scoring.components(x)
    if rows is None:
        rows = scoring.rows(y.shape[0], x.shape[0])
    roles = [(component_mask, components) for _, components in rows]
    # With one mask, the rows that are samples of one mixture are components of a mixture.
    shared = scoring.component_mask is not None and scoring.pairing != "sub_batch"
    if scoring.own_stds and not shared:
        roles += [(sample_mask, samples) for samples, _ in rows]
    eps = variance(stds, roles, accumulation_dtype(*inputs), scoring.safety_factor)
    of_components, of_samples = eps[: len(rows)], eps[len(rows) :]
    if not scoring.own_stds:
        of_samples = [None] * len(rows)
    elif shared:
        of_samples = of_components[::-1]
    exclude_diagonal = scoring.pairing == "leave_one_out"
    return [
        Mixture(
            sample_mask,
            component_mask,
            of_components[d],
            of_samples[d],
            *of_roles,
            exclude_diagonal=exclude_diagonal,
        )
        for d, of_roles in enumerate(rows)
    ]


Constants = tuple[Tensor, Tensor, Tensor, Tensor | None, Sequence[int], bool]
"""Mixtures as arguments of an operator: both masks, eps of components and of samples (D,), four row
bounds each (4 * D: samples, components), exclude_diagonal."""


def flatten(mixtures: Sequence[Mixture]) -> Constants:
    """Mixtures over the same masks as the arguments of an operator."""
    first = mixtures[0]
    sample_eps = [m.sample_eps for m in mixtures if m.sample_eps is not None]
    rows = [bound for m in mixtures for bound in (*m.sample_rows, *m.component_rows)]
    return (
        first.sample_mask,
        first.component_mask,
        _vector([m.component_eps for m in mixtures]),
        _vector(sample_eps) if sample_eps else None,
        rows,
        first.exclude_diagonal,
    )


def _vector(scalars: Sequence[Tensor]) -> Tensor:
    return scalars[0].reshape(1) if len(scalars) == 1 else torch.stack(list(scalars))
