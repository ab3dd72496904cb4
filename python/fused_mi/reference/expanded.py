"""Energies of all pairs by matrix products, (y - c)^2 expanded: what plain torch does on a CPU, where
float64 has the digits for it. `reference.pairs` has the mathematics, and serves where it has not.

Everything is taken relative to one row of the components: an offset would cost all digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from . import pairs as _pairs
from .rows import heaviest_row, in_rows
from .streaming import Block, blocks, sum_of_gradients
from .variance import LOG_2PI, stabilised_root

F64 = torch.float64


class _Allowed(NamedTuple):
    """How much larger than their difference the squares in a pair may be."""

    of_difference: float  # times the difference
    of_features: float  # plus this times the features, each of which has logs of about 1

    @classmethod
    def by(cls, *inputs: Tensor | None) -> _Allowed:
        """The rounding of the squares stays far below that of one term in the inputs' dtype, in
        float64 at about that."""
        wide = any(t is not None and t.dtype == F64 for t in inputs)
        return cls(8.0, 4.0) if wide else cls(2.0**16, 2.0**14)


class _Roles(NamedTuple):
    """What value and gradient of one block share, as matrices over its K elements."""

    y: Tensor  # (N, K): relative to the shift, 0 where not active
    c: Tensor  # (M, K)
    precision: Tensor  # (M, K): 1 / v, 0 where not active
    weighted: Tensor  # (M, K): c / v
    here_i: Tensor  # (N, b): 1 where active, else 0
    here_l: Tensor  # (M, b)


class _Direction:
    """Energies of the pairs of one mixture and their gradient, for a block of (y, x, mu, stds)."""

    def __init__(self, mixture: Mixture, allowed: _Allowed) -> None:
        self.mixture, self.allowed = mixture, allowed
        self.masks = mixture.contributing()
        self.everywhere = [bool(mask.all()) for mask in self.masks]
        self.sample_rows = slice(*mixture.sample_rows)
        self.component_rows = slice(*mixture.component_rows)
        self.exactly = _pairs.Direction(mixture)

    def _select(self, role: int, block: Block, values: Tensor, other: float = 0.0) -> Tensor:
        """`values` (rows, b, e) of a role, in place, and `other` where it is not active."""
        if self.everywhere[role]:
            return values
        return values.masked_fill_(~self.masks[role][:, block[0], None], other)

    def _variances(self, role: int, block: Block, stds: Tensor, eps: Tensor) -> Tensor:
        rows = (self.sample_rows, self.component_rows)[role]
        if stds.dtype == F64:
            found = stabilised_root(stds[rows], self.masks[role][:, block[0]], eps, F64).square()
        else:
            found = stds[rows].to(F64).square_().add_(eps)
        return self._select(role, block, found, 1.0)

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, v: Tensor) -> _Roles:
        samples, components = y[self.sample_rows], x[self.component_rows]
        here_i, here_l = (mask[:, block[0]] for mask in self.masks)
        shift = heaviest_row(components, v, here_l).to(F64)
        of_y = self._select(0, block, samples - shift)
        of_c = (components - shift).add_(mu[self.component_rows])
        of_c = self._select(1, block, of_c)
        precision = self._select(1, block, v.reciprocal())
        return _Roles(
            *(t.flatten(1) for t in (of_y, of_c, precision, of_c * precision)),
            here_i.to(F64),
            here_l.to(F64),
        )

    def _distances(self, r: _Roles, squares: Tensor) -> Tensor | None:
        """2 q (N, M), given y^2; None where the squares are too large for it."""
        M, b = r.here_l.shape
        of_c = (r.weighted * r.c).view(M, b, -1).sum(-1)
        sizes = (squares @ r.precision.T).addmm_(r.here_i, of_c.T)
        found = torch.addmm(sizes, r.y, r.weighted.T, alpha=-2)
        most = found.mul(self.allowed.of_difference).add_(self.allowed.of_features * r.y.shape[1])
        enough = sizes <= most
        if self.mixture.exclude_diagonal:
            enough.fill_diagonal_(True)
        return found.clamp_(min=0) if enough.all() else None

    def energies(
        self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[Tensor, ...]:
        m = self.mixture
        v = self._variances(1, block, stds, m.component_eps)
        r = self._roles(block, y, x, mu, v)
        q = self._distances(r, r.y.square())
        if q is None:
            return self.exactly.energies(block, y, x, mu, stds)
        g = r.here_i @ _log_determinant_terms(v, r.here_l).T
        k = torch.zeros_like(g)
        if m.sample_eps is not None:
            own = self._variances(0, block, stds, m.sample_eps)
            k = _log_determinant_terms(own, r.here_i) @ r.here_l.T
        return q.div_(2), g, k

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
        m = self.mixture
        of_q, of_g, of_k = upstream
        v = self._variances(1, block, stds, m.component_eps)
        r = self._roles(block, y, x, mu, v)
        squares = r.y.square()
        if self._distances(r, squares) is None:
            return self.exactly.gradient(block, upstream, wanted, y, x, mu, stds)
        result: list[Tensor | None] = [None] * 4
        shape = *r.here_l.shape, -1
        if wanted[0]:
            d_y = (of_q @ r.precision).mul_(r.y).addmm_(of_q, r.weighted, alpha=-1)
            d_y = self._select(0, block, d_y.view(*r.here_i.shape, -1))
            result[0] = in_rows(d_y, self.sample_rows, y)
        if any(wanted[1:]):
            # Of each component the sums over samples: of the upstream, and times y - c.
            count = (of_q.T @ r.here_i)[..., None]
            of_y, c = (of_q.T @ r.y).view(shape), r.c.view(shape)
            precision = r.precision.view(shape)
        if wanted[1] or wanted[2]:
            d_c = (count * c).sub_(of_y).mul_(precision)
            result[1] = in_rows(d_c, self.component_rows, x) if wanted[1] else None
            result[2] = in_rows(d_c, self.component_rows, mu) if wanted[2] else None
        if wanted[3]:
            of_squares = (of_q.T @ squares).view(shape)
            of_squares = of_squares.add_(of_y.mul_(-2).addcmul_(count, c).mul_(c)).mul_(precision)
            of_logs = (of_g.T @ r.here_i)[..., None]
            sigma = self._select(1, block, stds[self.component_rows].to(F64, copy=True))
            d_stds = (of_logs - of_squares).mul_(precision).mul_(sigma)
            total = in_rows(d_stds, self.component_rows, stds)
            if m.sample_eps is not None:
                own = self._variances(0, block, stds, m.sample_eps)
                sigma = self._select(0, block, stds[self.sample_rows].to(F64, copy=True))
                d_own = (of_k @ r.here_l)[..., None] * sigma.div_(own)
                total = total + in_rows(d_own, self.sample_rows, stds)
            result[3] = total
        return result


def _log_determinant_terms(v: Tensor, here: Tensor) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, b) of v (rows, b, e), 1 where `here` (rows, b) is 0."""
    features = v.shape[-1]
    logs = v.log().sum(-1)
    return logs.add_(here, alpha=features * LOG_2PI).div_(2)


def serves(*inputs: Tensor) -> bool:
    """Whether float64 may have the digits, and where asking is cheap."""
    return inputs[0].device.type == "cpu" and all(t.numel() > 0 for t in inputs)


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """See `reference.pairs.pairs`."""
    allowed, cut = _Allowed.by(y, x, mu, stds), _blocks(mixtures[0], y)
    if energies is None:
        energies = y.new_empty(
            (len(mixtures), 3, mixtures[0].samples, mixtures[0].components), dtype=F64
        )
    energies.zero_()
    for to, mixture in zip(energies, mixtures, strict=True):
        direction = _Direction(mixture, allowed)
        for block in cut:
            slices = (t[..., block[0], block[1]] for t in (y, x, mu, stds))
            for total, part in zip(to, direction.energies(block, *slices), strict=True):
                total += part
    return energies


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `reference.pairs.pairs_backward`."""
    inputs = (y, x, mu, stds)
    if torch.is_grad_enabled() or not upstream.isfinite().all():
        return _pairs.pairs_backward(upstream, *inputs, None, mixtures, wanted)
    allowed = _Allowed.by(*inputs)
    gradients = [_Direction(mixture, allowed).gradient for mixture in mixtures]
    return sum_of_gradients(gradients, _blocks(mixtures[0], y), upstream, wanted, *inputs)


def _blocks(mixture: Mixture, y: Tensor) -> list[Block]:
    rows = mixture.samples + mixture.components
    return blocks(rows, y.shape[1], y.shape[2], y.device, min_features=256)
