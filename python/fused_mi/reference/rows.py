"""Rows of a tensor in plain torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._mixture import Mixture, Rows
from .streaming import Block, slices


def first_active_row(values: Tensor, mask: Tensor) -> Tensor:
    """Row of `values` (rows, S, E) that is the first active one at each position of `mask` (rows,
    S): (S, E), else 0, as where it is not finite.

    A constant to autograd: every use of it as a shift cancels.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    row = mask.long().argmax(0)
    first = values.detach()[row, torch.arange(values.shape[1], device=values.device)]
    # From an infinite row nothing is a difference.
    return torch.where(mask.any(0)[:, None] & first.isfinite(), first, 0)


def heaviest_row(values: Tensor, roots: Tensor, mask: Tensor) -> Tensor:
    """Of each column of `values` (rows, S, E) the finite active one whose `roots` (rows, S, E), of
    variances, is the least: (S, E), else 0; `mask` (rows, S).

    A mean that weighs by the inverse variances is no farther from it than from anything else that
    weighs. A constant to autograd, as above.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    values = values.detach()
    counts = mask[..., None] & values.isfinite()
    row = torch.where(counts, roots.detach(), math.inf).argmin(0, keepdim=True)
    return torch.where(counts.gather(0, row), values.gather(0, row), 0)[0]


def in_rows(values: Tensor, rows: slice, like: Tensor) -> Tensor:
    """`values` as those rows of a tensor of the shape and dtype of `like`; the other rows are 0."""
    values = values.to(like.dtype)
    if values.shape == like.shape:
        return values
    start, stop, _ = rows.indices(like.shape[0])
    return torch.nn.functional.pad(values, (0, 0, 0, 0, start, like.shape[0] - stop))


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class RowsOfRole:
    """Rows of one role at some positions: which, in which dtype they are taken, and where they
    contribute.

    What does not is selected away by its bits: several times as fast as `torch.where` with a mask
    that broadcasts, and whatever stood there, NaN included, is 0.
    """

    def __init__(self, mask: Tensor | None, rows: slice, dtype: torch.dtype) -> None:
        self.mask, self.rows, self.dtype = mask, rows, dtype  # mask (rows, b), or None: everywhere
        # How many rows contribute at each position, (b, 1) or the same number.
        self.count: Tensor | int = rows.stop - rows.start
        if mask is not None:
            self.count = mask.sum(0, dtype=dtype)[:, None]
            self._bits = mask.to(_BITS[dtype]).neg_()[..., None]  # all where they contribute

    def at(self, positions: slice) -> RowsOfRole:
        """The same rows there."""
        if self.mask is None or positions == slice(None):
            return self
        return RowsOfRole(self.mask[:, positions], self.rows, self.dtype)

    def take(self, t: Tensor) -> Tensor:
        """Their values (rows, b, e) of `t`, also where they do not contribute."""
        t = t[self.rows]
        return t if t.dtype == self.dtype else t.to(self.dtype)

    def keep(self, values: Tensor) -> Tensor:
        """`values` (rows, b, e), in place, and 0 where they do not contribute."""
        if self.mask is not None:
            values.view(self._bits.dtype).bitwise_and_(self._bits)
        return values

    def first(self, values: Tensor) -> Tensor:
        """The first contributing row of `values` (rows, b, e)."""
        return values[0] if self.mask is None else first_active_row(values, self.mask)

    def variances(self, stds: Tensor, eps: Tensor) -> Tensor:
        """`stds^2 + eps` (rows, b, e), and 1 where they do not contribute; eps 0-dim."""
        stds = self.take(stds)
        if self.mask is None:
            return torch.addcmul(eps, stds, stds)
        return self.keep(stds * stds).add_(torch.where(self.mask, eps, 1)[..., None])

    def least_square(self, stds: Tensor) -> float:
        """The least `stds^2` that contributes."""
        stds = self.take(stds)
        squares = self.keep(stds * stds)
        if self.mask is not None:
            squares.add_(torch.where(self.mask, 0.0, math.inf)[..., None])
        return squares.amin().item()

    def put(self, to: Tensor, values: Tensor, factor: Tensor | float, add: bool = False) -> None:
        """`values * factor` (rows, b, e) where they contribute, and 0 elsewhere, into these rows of
        `to`, or added to them."""
        to = to[self.rows]
        if add:
            to.add_(self.keep(values * factor))
        elif self.mask is None or to.dtype == self.dtype:
            self.keep(torch.mul(values, factor, out=to))
        else:
            to.copy_(self.keep(values * factor))


def gradients_in_rows(
    write: Callable[..., None],
    cut: Sequence[Block],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    mixtures: Sequence[Mixture],
    dtype: torch.dtype,
) -> list[Tensor | None]:
    """Those of y, x, mu and stds, None where `wanted` is false.

    Args:
        write: of `(block, slices of the inputs, slices of the gradients, add)`: each role `put`s
            its rows; whether those of stds are to be added to what is there.
        dtype: of such sums, which are rounded once.
    """
    found, shared = _memory_of(inputs, wanted, mixtures, dtype)
    for block in cut:
        write(block, slices(block, inputs), slices(block, found), shared)
    if found[3] is not None:
        found[3] = found[3].to(inputs[3].dtype)
    return found


def _memory_of(
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    mixtures: Sequence[Mixture],
    dtype: torch.dtype,
) -> tuple[list[Tensor | None], bool]:
    """Memory of the gradients, 0 in rows that no role has; and whether roles share rows of stds."""
    samples, components = [m.sample_rows for m in mixtures], [m.component_rows for m in mixtures]
    of_stds = components + [m.sample_rows for m in mixtures if m.sample_eps is not None]
    of_inputs = [sorted(rows) for rows in (samples, components, components, of_stds)]
    shared = any(a[1] > b[0] for a, b in itertools.pairwise(of_inputs[3]))
    found: list[Tensor | None] = [None] * 4
    for i, (t, rows) in enumerate(zip(inputs, of_inputs, strict=True)):
        if wanted[i] and i == 3 and shared:
            found[i] = torch.zeros(t.shape, dtype=dtype)
        elif wanted[i]:
            found[i] = _zero_beside(rows, t)
    return found, shared


def _zero_beside(rows: Sequence[Rows], like: Tensor) -> Tensor:
    """Memory that is 0 in all but these rows, ascending."""
    found = torch.empty(like.shape, dtype=like.dtype)
    bounds = [0, *itertools.chain(*rows), len(like)]
    for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
        if start < stop:
            found[start:stop].zero_()
    return found


def roles_of(mixture: Mixture, dtype: torch.dtype) -> tuple[RowsOfRole, RowsOfRole]:
    """Samples and components."""
    m = mixture
    masks: list[Tensor | None] = [None, None]
    if m.exclude_diagonal or not all_full(m.sample_mask, m.component_mask):
        masks = [None if is_full(mask) else mask for mask in m.contributing()]
    samples, components = masks
    return (
        RowsOfRole(samples, slice(*m.sample_rows), dtype),
        RowsOfRole(components, slice(*m.component_rows), dtype),
    )


def all_full(*masks: Tensor) -> bool:
    """Whether all of them are true; the same one is asked once."""
    return all(map(is_full, {id(mask): mask for mask in masks}.values()))


def is_full(mask: Tensor) -> bool:
    """Whether all of it is true."""
    return bool(mask.all().item())
