"""Energies of all pairs by matrix products, (y - c)^2 expanded: what plain torch does on a CPU
where float64 has the digits for it. `reference.pairs` has the mathematics, and serves elsewhere.

Everything is taken relative to one row of the components: an offset would cost all digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from .._precision import careful
from . import pairs as _pairs
from .rows import RowsOfRole, in_rows
from .streaming import Block, blocks, sum_of_gradients, sum_over_blocks
from .variance import LOG_2PI, stabilised_root

F64 = torch.float64

# How large y^2 / v and c^2 / v may be in a column: float64 rounds them to 2^-24 standard deviations
# squared, and to 2^-42 where inputs are float64 themselves.
_LARGEST = {False: 2.0**28, True: 2.0**10}


class _Roles(NamedTuple):
    """What value and gradient of one block share; matrices over its K elements."""

    here_i: Tensor  # (N, b) bool
    here_l: Tensor  # (M, b) bool
    v: Tensor  # (M, b, e): 1 where not active
    y: Tensor  # (N, K): relative to the shift, 0 where not active
    c: Tensor  # (M, K): the same
    precision: Tensor  # (M, K): 1 / v, 0 where not active
    weighted: Tensor  # (M, K): c / v
    weight_i: Tensor  # (N, b): 1 where active, else 0
    weight_l: Tensor  # (M, b)


class _Direction:
    """Energies of the pairs of one mixture and their gradient, for a block of (y, x, mu, stds)."""

    def __init__(self, mixture: Mixture, largest: float) -> None:
        self.mixture, self.largest = mixture, largest
        of_samples, of_components = mixture.contributing()
        self.samples = RowsOfRole(of_samples, mixture.sample_rows)
        self.components = RowsOfRole(of_components, mixture.component_rows)
        self.exactly = _pairs.Direction(mixture)

    def _variances(self, role: RowsOfRole, here: Tensor, stds: Tensor, eps: Tensor) -> Tensor:
        if stds.dtype == F64:
            v = stabilised_root(stds[role.rows], here, eps, F64).square_()
        else:
            v = stds[role.rows].to(F64).square_().add_(eps)
        return role.fill(v, here, 1.0)

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> _Roles:
        here_i, here_l = self.samples.at(block[0]), self.components.at(block[0])
        samples, components = y[self.samples.rows], x[self.components.rows]
        shift = self.components.first(components, here_l).to(F64)
        of_y = self.samples.fill(samples - shift, here_i, 0.0)
        of_c = (components - shift).add_(mu[self.components.rows])
        of_c = self.components.fill(of_c, here_l, 0.0)
        v = self._variances(self.components, here_l, stds, self.mixture.component_eps)
        precision = self.components.fill(v.reciprocal(), here_l, 0.0)
        return _Roles(
            here_i,
            here_l,
            v,
            of_y.flatten(1),
            of_c.flatten(1),
            precision.flatten(1),
            (of_c * precision).flatten(1),
            here_i.to(F64),
            here_l.to(F64),
        )

    def _enough(self, r: _Roles) -> bool:
        """Whether no square of this block is too large beside what may be left of it."""
        sizes = torch.maximum(r.y.abs().amax(0), r.c.abs().amax(0)).square_()
        return sizes.mul_(r.precision.amax(0)).amax().item() <= self.largest

    def energies(
        self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[Tensor, ...]:
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        if not self._enough(r):
            return self.exactly.energies(block, y, x, mu, stds)
        of_c = (r.weighted * r.c).view_as(r.v).sum(-1)
        q = (r.y.square() @ r.precision.T).addmm_(r.weight_i, of_c.T)
        q = q.addmm_(r.y, r.weighted.T, alpha=-2).clamp_(min=0).div_(2)
        g = r.weight_i @ _log_determinant_terms(r.v, r.weight_l).T
        k = torch.zeros_like(g)
        if m.sample_eps is not None:
            own = self._variances(self.samples, r.here_i, stds, m.sample_eps)
            k = _log_determinant_terms(own, r.weight_i) @ r.weight_l.T
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
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        of_q, of_g, of_k = upstream
        if not self._enough(r):
            return self.exactly.gradient(block, upstream, wanted, y, x, mu, stds)
        result: list[Tensor | None] = [None] * 4
        if wanted[0]:
            d_y = (of_q @ r.precision).mul_(r.y).addmm_(of_q, r.weighted, alpha=-1)
            d_y = self.samples.fill(d_y.view(*r.here_i.shape, -1), r.here_i, 0.0)
            result[0] = in_rows(d_y, self.samples.rows, y)
        if any(wanted[1:]):
            # Of each component the sums over samples: of the upstream, and times y.
            count = (of_q.T @ r.weight_i)[..., None]
            of_y = (of_q.T @ r.y).view_as(r.v)
            c, precision = r.c.view_as(r.v), r.precision.view_as(r.v)
        if wanted[1] or wanted[2]:
            d_c = (count * c).sub_(of_y).mul_(precision)
            result[1] = in_rows(d_c, self.components.rows, x) if wanted[1] else None
            result[2] = in_rows(d_c, self.components.rows, mu) if wanted[2] else None
        if wanted[3]:
            of_squares = (of_q.T @ r.y.square()).view_as(r.v)
            of_squares = of_squares.add_(of_y.mul_(-2).addcmul_(count, c).mul_(c)).mul_(precision)
            of_logs = (of_g.T @ r.weight_i)[..., None]
            d_stds = (of_logs - of_squares).mul_(precision).mul_(stds[self.components.rows])
            d_stds = self.components.fill(d_stds, r.here_l, 0.0)
            total = in_rows(d_stds, self.components.rows, stds)
            if m.sample_eps is not None:
                own = self._variances(self.samples, r.here_i, stds, m.sample_eps)
                of_logs = (of_k @ r.weight_l)[..., None]
                d_own = own.reciprocal_().mul_(stds[self.samples.rows]).mul_(of_logs)
                d_own = self.samples.fill(d_own, r.here_i, 0.0)
                total = total + in_rows(d_own, self.samples.rows, stds)
            result[3] = total
        return result


def _log_determinant_terms(v: Tensor, here: Tensor) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, b) of v (rows, b, e), 1 where `here` (rows, b) is 0."""
    return v.log().sum(-1).add_(here, alpha=v.shape[-1] * LOG_2PI).div_(2)


def _serves(
    y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor, mixtures: Sequence[Mixture]
) -> bool:
    """Whether float64 may have the digits and the range, and where asking is cheap."""
    if mu is None or y.device.type != "cpu" or not y.numel() or not x.numel() or careful():
        return False
    return stds.dtype != F64 or all(_in_range(stds, mixture) for mixture in mixtures)


def _in_range(stds: Tensor, m: Mixture) -> bool:
    """Whether float64 has the variances of both roles, and their products with squares."""
    rows, eps = (m.sample_rows, m.component_rows), (m.sample_eps, m.component_eps)
    for here, of_role, of_eps in zip(m.contributing(), rows, eps, strict=True):
        if of_eps is not None:
            v = torch.where(here[..., None], stds[slice(*of_role)], 1).square_().add_(of_eps)
            least, largest = torch.aminmax(v)
            if not (least.item() > 2.0**-500 and largest.item() < 2.0**500):
                return False
    return True


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """See `reference.pairs.pairs`."""
    if not _serves(y, x, mu, stds, mixtures):
        return _pairs.pairs(y, x, mu, stds, mixtures, energies)
    largest, cut = _largest(y, x, mu, stds), _blocks(mixtures[0], y)
    if energies is None:
        energies = y.new_empty(
            (len(mixtures), 3, mixtures[0].samples, mixtures[0].components), dtype=F64
        )
    for of_mixture, mixture in zip(energies, mixtures, strict=True):
        found = sum_over_blocks(_Direction(mixture, largest).energies, cut, y, x, mu, stds)
        torch.stack(found, out=of_mixture)
    return energies


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `reference.pairs.pairs_backward`."""
    inputs = (y, x, mu, stds)
    serves = not torch.is_grad_enabled() and _serves(*inputs, mixtures)
    if not (serves and upstream.isfinite().all()):
        return _pairs.pairs_backward(upstream, *inputs, None, mixtures, wanted)
    largest = _largest(*inputs)
    gradients = [_Direction(mixture, largest).gradient for mixture in mixtures]
    return sum_of_gradients(gradients, _blocks(mixtures[0], y), upstream, wanted, *inputs)


def _largest(*inputs: Tensor | None) -> float:
    return _LARGEST[any(t is not None and t.dtype == F64 for t in inputs)]


def _blocks(mixture: Mixture, y: Tensor) -> list[Block]:
    # Some eight temporaries at a time: small ones stay in the caches.
    rows = 4 * (mixture.samples + mixture.components)
    return blocks(rows, y.shape[1], y.shape[2], y.device, min_features=128)
