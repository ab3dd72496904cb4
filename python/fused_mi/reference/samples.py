"""The energies of each sample for the Jensen loss, linear in the batch: from the moments of the
components that it meets, and their gradients from those of the samples that a component meets.

With `exclude_diagonal` each row meets rows of its own. The moments of all others are merged, never
a difference: what one row is nearly all of would lose its digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._mixture import Mixture
from .._precision import working_dtype
from .rows import heaviest_row, in_rows
from .streaming import WHOLE, Block, blocks, sum_of_gradients, sum_over_blocks
from .variance import log_determinant_terms, range_scale, stabilised_root

Sums = tuple[Tensor, ...]
"""Of each row (rows, ...) or of a set of rows (...): a sum, or (weight, mean, m2) as in
`moments.Moments`."""


def merge_moments(a: Sums, b: Sums) -> Sums:
    """The moments of the union of two disjoint sets of rows, of values relative to one shift."""
    weight = a[0] + b[0]
    safe_weight = torch.where(weight > 0, weight, 1)
    share_a, share_b = a[0] / safe_weight, b[0] / safe_weight
    distance = b[1] - a[1]
    # In this order no 0 meets an infinity.
    m2 = a[2] + b[2] + (a[0] * share_b * distance) * distance
    return weight, share_a * a[1] + share_b * b[1], m2


def merge_sums(a: Sums, b: Sums) -> Sums:
    """The same for plain sums."""
    return tuple(p + q for p, q in zip(a, b, strict=True))


def of_others(of_rows: Sums, merge: Callable[[Sums, Sums], Sums]) -> Sums:
    """Of each row the merge of all other rows, in O(rows): the partner in its pair, and all that
    is outside the pair. All 0 is neutral to `merge`."""
    count = of_rows[0].shape[0]
    if count < 2:
        return tuple(map(torch.zeros_like, of_rows))
    half = (count + 1) // 2
    first, second = (tuple(t[part] for t in of_rows) for part in (slice(half), slice(half, None)))
    if count % 2:
        second = tuple(torch.cat((t, torch.zeros_like(t[:1]))) for t in second)
    outside = of_others(merge(first, second), merge)
    both = zip(merge(outside, second), merge(outside, first), strict=True)
    return tuple(torch.cat((a, b[: count - half])) for a, b in both)


class _Roles(NamedTuple):
    """What value and gradient of one block share; b is the number of positions in it, e of
    features."""

    sample_mask: Tensor  # (N, b)
    component_mask: Tensor  # (M, b)
    scale: Tensor | float  # (b, e): of y, c and the precision, see `range_scale`
    y: Tensor  # (N, b, e): y - shift, 0 where not active
    c: Tensor  # (M, b, e): x + mu - shift, 0 where not active
    root: Tensor  # (M, b, e): sqrt(v_l), without the scale
    precision: Tensor  # (M, b, e): 1 / v_l, 0 where not active


class _Direction:
    """Energies of the samples of one mixture and their gradient, for a block of (y, x, mu, stds).

    Energies are sums over the components that a sample meets."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.masks = mixture.contributing()
        self.sample_rows = slice(*mixture.sample_rows)
        self.component_rows = slice(*mixture.component_rows)

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> _Roles:
        dtype = working_dtype(y.device)
        sample_mask, component_mask = (mask[:, block[0]] for mask in self.masks)
        active_i, active_l = sample_mask[..., None], component_mask[..., None]
        eps, rows = self.mixture.component_eps, self.component_rows
        root = stabilised_root(stds[rows], component_mask, eps, dtype)
        # Those of one component: what is relative to them is its true difference from the centre.
        x_shift, mu_shift = (heaviest_row(t[rows], root, component_mask).to(dtype) for t in (x, mu))
        of_y = torch.where(active_i, (y[self.sample_rows].to(dtype) - x_shift) - mu_shift, 0)
        of_c = (x[rows].to(dtype) - x_shift) + (mu[rows].to(dtype) - mu_shift)
        of_c = torch.where(active_l, of_c, 0)
        scale: Tensor | float = 1.0
        scaled = root
        if len(root) and any(t.dtype == dtype for t in (y, x, mu, stds)):  # narrower: in range
            scale = range_scale(torch.where(active_l, root, root.detach().amax(0)))
            of_y, of_c, scaled = of_y * scale, of_c * scale, root * scale
        precision = torch.where(active_l, scaled.square().reciprocal(), 0)
        return _Roles(sample_mask, component_mask, scale, of_y, of_c, root, precision)

    def _met_moments(self, weights: Tensor, values: Tensor) -> Sums:
        """Weight, mean and m2 of the rows `values` that a row of the other role meets: of each
        row, or the same for all."""
        if self.mixture.exclude_diagonal:
            return of_others((weights, values, torch.zeros_like(values)), merge_moments)
        weight = weights.sum(0)
        mean = (weights / torch.where(weight > 0, weight, 1) * values).sum(0)
        distance = values - mean
        return weight, mean, (weights * distance * distance).sum(0)

    def _met_sum(self, values: Tensor) -> Tensor:
        """Sum of the rows `values` that a row of the other role meets, as above."""
        if self.mixture.exclude_diagonal:
            return of_others((values,), merge_sums)[0]
        return values.sum(0)

    def energies(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Sums:
        """q, g and k (N,)."""
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        weight, mean, m2 = self._met_moments(r.precision, r.c)
        distance = r.y - mean
        # Within an infinite mean there may be no m2.
        squares = torch.where(mean.isinf(), math.inf, weight * distance * distance + m2)
        q = torch.where(r.sample_mask[..., None], squares, 0).sum((1, 2)) / 2
        logs = self._met_sum(log_determinant_terms(r.root, r.component_mask))
        g = torch.where(r.sample_mask, logs, 0).sum(1)
        k = torch.zeros_like(g)
        if m.sample_eps is not None:
            root = stabilised_root(stds[self.sample_rows], r.sample_mask, m.sample_eps, r.y.dtype)
            own = log_determinant_terms(root, r.sample_mask)
            k = (self._met_sum(r.component_mask.long()) * own).sum(1)
        return q, g, k

    def gradient(
        self,
        block: Block,
        upstream: tuple[Tensor, ...],
        wanted: Sequence[bool],
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
    ) -> Sequence[Tensor | None]:
        """In closed form: each element is as accurate as its own terms, however far the mean of
        the components is. Not differentiable."""
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        of_q, of_g, of_k = upstream
        active_i, active_l = r.sample_mask[..., None], r.component_mask[..., None]
        result: list[Tensor | None] = [None] * 4
        if wanted[0]:
            weight, mean, _ = self._met_moments(r.precision, r.c)
            d_y = of_q[:, None, None] * (weight * (r.y - mean)) * r.scale
            result[0] = in_rows(torch.where(active_i, d_y, 0), self.sample_rows, y)
        if not any(wanted[1:]):
            return result
        # The samples that pull and those that push, so that within neither a term is negative.
        signed = torch.stack((of_q.clamp(min=0), (-of_q).clamp(min=0)), 1)
        weights = torch.where(active_i[:, None], signed[..., None, None], 0)
        weight, mean, m2 = self._met_moments(weights, r.y[:, None].expand(-1, 2, -1, -1))
        distance = r.c[:, None] - mean
        pull = weight * distance
        if wanted[1] or wanted[2]:
            d_c = torch.where(active_l, r.precision * _difference(pull) * r.scale, 0)
            result[1] = in_rows(d_c, self.component_rows, x) if wanted[1] else None
            result[2] = in_rows(d_c, self.component_rows, mu) if wanted[2] else None
        if wanted[3]:
            wide = stds.to(r.y.dtype)
            squares = _difference(pull * distance + m2)
            logs = self._met_sum(torch.where(r.sample_mask, of_g[:, None], 0))[..., None]
            # One root at a time: they stay in range where v does not, and meet no 0 too early.
            sigma = torch.where(active_l, wide[self.component_rows], 0)
            d_stds = sigma / r.root * ((logs - squares * r.precision) / r.root)
            total = in_rows(torch.where(active_l, d_stds, 0), self.component_rows, wide)
            if m.sample_eps is not None:
                sigma = torch.where(active_i, wide[self.sample_rows], 0)
                root = stabilised_root(sigma, r.sample_mask, m.sample_eps, r.y.dtype)
                count = self._met_sum(r.component_mask.long())[..., None]
                d_own = sigma / root * (of_k[:, None, None] * count / root)
                total = total + in_rows(torch.where(active_i, d_own, 0), self.sample_rows, wide)
            result[3] = total.to(stds.dtype)
        return result


def _difference(signed: Tensor) -> Tensor:
    """(rows, b, e) of (rows, 2, b, e)."""
    return signed[:, 0] - signed[:, 1]


def energies(mixture: Mixture, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Tensor:
    """Those of one mixture (3, N), differentiable; without blocks."""
    return torch.stack(_Direction(mixture).energies(WHOLE, y, x, mu, stds)) / _partners(mixture)


def samples(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixtures: Sequence[Mixture]) -> Tensor:
    """Of each sample the means over its components of q, g and k, in O((N + M) S E) work.

    The arguments are those of `moments.moments`.

    Returns:
        (D, 3, N), in nats, in the working dtype.
    """
    cut = _blocks(mixtures[0], y, x)
    found = [
        torch.stack(sum_over_blocks(_Direction(m).energies, cut, y, x, mu, stds)) for m in mixtures
    ]
    return torch.stack(found) / _partners(mixtures[0])


def samples_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of y, x, mu and stds, None where `wanted` is false, given `upstream` (D, 3, N)."""
    directions = [_Direction(mixture).gradient for mixture in mixtures]
    of_sums = upstream / _partners(mixtures[0])
    cut = _blocks(mixtures[0], y, x)
    return sum_of_gradients(directions, cut, of_sums, wanted, y, x, mu, stds)


def _partners(mixture: Mixture) -> int:
    """How many components a sample meets."""
    return max(mixture.components - mixture.exclude_diagonal, 1)


def _blocks(mixture: Mixture, y: Tensor, x: Tensor) -> list[Block]:
    # Each row has moments of its own, on every level of their merge.
    rows = max(y.shape[0], x.shape[0]) * (2 if mixture.exclude_diagonal else 1)
    return blocks(rows, y.shape[1], y.shape[2], y.device)
