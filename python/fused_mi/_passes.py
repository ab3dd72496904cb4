"""Which rows are read in which role, and which rows of which gradient a pass writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._mixture import Mixture, Rows


class Pass(NamedTuple):
    """One pass over a range of rows, with the index of the mixture in which they are samples, and
    of that in which they are components."""

    rows: Rows
    as_samples: int | None
    as_components: int | None


def passes(mixtures: Sequence[Mixture]) -> list[Pass]:
    """Passes that read every row once, for one role or for both.

    Raises:
        NotImplementedError: two ranges of rows overlap in part, or a range has a role twice.
    """
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    if mixtures[0].exclude_diagonal and samples != components:
        raise NotImplementedError(f"exclude_diagonal needs the same rows: {samples}, {components}")
    for roles in (samples, components):
        if len(set(roles)) != len(roles):
            raise NotImplementedError(f"rows are in one role in several mixtures: {roles}")
    if mixtures[0].sample_eps is not None:
        for a in samples:
            for b in components:
                if a != b and not _disjoint(a, b):
                    raise NotImplementedError(f"rows of samples and components overlap: {a}, {b}")
    both = [
        Pass(rows, d, components.index(rows) if rows in components else None)
        for d, rows in enumerate(samples)
    ]
    return both + [Pass(rows, None, d) for d, rows in enumerate(components) if rows not in samples]


def nothing(y: Tensor, mixtures: Sequence[Mixture]) -> bool:
    """Whether there is no element or no pair."""
    return not y.shape[1] * y.shape[2] or any(m.samples * m.components == 0 for m in mixtures)


class Gradients(NamedTuple):
    """What a backward pass writes, by which passes."""

    # of y, x, mu and stds, None where there is none; 0 where no pass writes
    tensors: list[Tensor | None]
    # each pass, and which of the tensors it writes in its rows, values or zeros
    passes: list[tuple[Pass, list[bool]]]


def gradients(
    inputs: Sequence[Tensor | None],
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
    apart: bool = False,
) -> Gradients:
    """Fresh gradients of `inputs` (y, x, mu, stds), not filled where passes write every row; all 0,
    and no passes, where there is no element or no pair. `apart`: partners are elsewhere.

    Raises:
        NotImplementedError: see `passes`.
    """
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    of_stds = components if mixtures[0].sample_eps is None else [*samples, *components]
    roles = (samples, components, components, of_stds)  # rows that have a gradient, of each input
    y = inputs[0]
    empty = y is None or (
        not any(t is not None and t.numel() for t in inputs) if apart else nothing(y, mixtures)
    )
    everything = [] if empty else passes(mixtures)
    tensors: list[Tensor | None] = []
    for tensor, needed, of_role in zip(inputs, wanted, roles, strict=True):
        if tensor is None or not needed:
            tensors.append(None)
        else:
            written = [p.rows for p in everything if _writes(p.rows, of_role, tensor)]
            new = torch.empty if _cover(written, tensor.shape[0]) else torch.zeros
            tensors.append(new(tensor.shape, dtype=tensor.dtype, device=tensor.device))
    return Gradients(
        tensors,
        [
            (
                this,
                [
                    tensor is not None and _writes(this.rows, of_role, tensor)
                    for tensor, of_role in zip(tensors, roles, strict=True)
                ],
            )
            for this in everything
        ],
    )


def _writes(rows: Rows, of_role: Sequence[Rows], tensor: Tensor) -> bool:
    """Whether a pass over `rows` writes the gradient of a tensor in which the rows `of_role` have
    one: its values, or zeros where no other pass writes those rows and the tensor has them."""
    free = rows[1] <= tensor.shape[0] and all(_disjoint(rows, other) for other in of_role)
    return rows in of_role or free


def _cover(ranges: Sequence[Rows], rows: int) -> bool:
    """Whether the disjoint `ranges` have all of `rows` rows."""
    return sum(stop - start for start, stop in ranges) == rows


def _disjoint(a: Rows, b: Rows) -> bool:
    return a[1] <= b[0] or b[1] <= a[0]
