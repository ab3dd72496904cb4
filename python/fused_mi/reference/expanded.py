"""Energies of all pairs by matrix products, (y - c)^2 expanded: what plain torch does on a CPU
where float64 has the digits for it. `reference.pairs` has the mathematics, and serves elsewhere.

Everything is taken relative to one row of the components: an offset would cost all digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from .._precision import careful
from . import pairs as _pairs
from .rows import RowsOfRole, gradients_in_rows, roles_of
from .streaming import Block, blocks, sum_over_blocks
from .variance import LOG_2PI

F64 = torch.float64

# How large y^2 / v and c^2 / v may be in a column: float64 rounds them to 2^-24 standard deviations
# squared, and to 2^-42 where inputs are float64 themselves.
_LARGEST = {False: 2.0**28, True: 2.0**10}


class _Roles(NamedTuple):
    """What value and gradient of one block share; matrices over its K elements."""

    samples: RowsOfRole  # N, at its positions
    components: RowsOfRole  # M
    v: Tensor  # (M, b, e): 1 where not active
    y: Tensor  # (N, K): relative to the shift, 0 where not active
    c: Tensor  # (M, K): the same
    squares: Tensor  # (N, K): y^2
    precision: Tensor  # (M, K): 1 / v, 0 where not active
    weighted: Tensor  # (M, K): c / v
    weighted_squares: Tensor  # (M, K): c^2 / v
    weight_i: Tensor | None  # (N, b): 1 where active, else 0; None: active everywhere
    weight_l: Tensor | None  # (M, b)


class _Direction:
    """Energies of the pairs of one mixture and their gradient, for a block of (y, x, mu, stds)."""

    def __init__(self, mixture: Mixture, largest: float) -> None:
        self.mixture, self.largest = mixture, largest
        self.samples, self.components = roles_of(mixture, F64)

    @cached_property
    def _exactly(self) -> _pairs.Direction:
        return _pairs.Direction(self.mixture)

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> _Roles:
        role_i, role_l = self.samples.at(block[0]), self.components.at(block[0])
        samples, components = y[role_i.rows], x[role_l.rows]
        shift = role_l.first(components).to(F64)
        of_y = role_i.keep(samples - shift).flatten(1)
        of_c = role_l.keep((components - shift).add_(mu[role_l.rows])).flatten(1)
        v = role_l.variances(stds, self.mixture.component_eps)
        precision = role_l.keep(v.reciprocal()).flatten(1)
        weighted = of_c * precision
        weights = [None if r.mask is None else r.mask.to(F64) for r in (role_i, role_l)]
        return _Roles(
            role_i,
            role_l,
            v,
            of_y,
            of_c,
            of_y * of_y,
            precision,
            weighted,
            weighted * of_c,
            *weights,
        )

    def _enough(self, r: _Roles) -> bool:
        """Whether no square of this block is too large beside what may be left of it."""
        largest = r.squares.amax().item() * r.precision.amax().item()
        if largest <= self.largest and r.weighted_squares.amax().item() <= self.largest:
            return True
        sizes = torch.maximum(r.squares.amax(0), (r.c * r.c).amax(0))  # column by column
        return sizes.mul_(r.precision.amax(0)).amax().item() <= self.largest

    def energies(
        self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[Tensor, ...]:
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        if not self._enough(r):
            return self._exactly.energies(block, y, x, mu, stds)
        of_c = _of_partners(r.weight_i, r.weighted_squares.view_as(r.v).sum(-1))
        q = torch.addmm(of_c, r.squares, r.precision.T, beta=0.5, alpha=0.5)
        q = q.addmm_(r.y, r.weighted.T, alpha=-1).clamp_(min=0)
        g = _of_partners(r.weight_i, _log_determinant_terms(r.v, r.weight_l)).expand_as(q)
        if m.sample_eps is None:
            return q, g, torch.zeros_like(q)
        own = r.samples.variances(stds, m.sample_eps)
        k = _of_partners(r.weight_l, _log_determinant_terms(own, r.weight_i))
        return q, g, k.T.expand_as(q)

    def gradients(
        self,
        block: Block,
        upstream: Tensor,
        inputs: Sequence[Tensor],
        into: Sequence[Tensor | None],
        add: bool,
    ) -> None:
        """Those of y, x, mu and stds, given `upstream` (3, N, M), into their rows of `into`;
        whether to `add` those of stds to what is there."""
        m, r = self.mixture, self._roles(block, *inputs)
        if not self._enough(r):
            return self._exact_gradients(block, upstream, inputs, into, add)
        (of_q, of_g, of_k), stds = upstream, inputs[3]
        d_y, d_x, d_mu, d_stds = into
        if d_y is not None:
            pull = (of_q @ r.precision).mul_(r.y).addmm_(of_q, r.weighted, alpha=-1)
            r.samples.put(d_y, pull.view(len(pull), *r.v.shape[1:]), 1.0)
        if d_x is not None or d_mu is not None or d_stds is not None:
            # Of each component the sums over samples: of the upstream, and times y.
            count = _of_weights(r.weight_i, of_q.T)
            of_y = (of_q.T @ r.y).view_as(r.v)
            c, precision = r.c.view_as(r.v), r.precision.view_as(r.v)
        if d_x is not None or d_mu is not None:
            pull = (count * c).sub_(of_y).mul_(precision)
            for d_centre in (d_x, d_mu):
                if d_centre is not None:
                    r.components.put(d_centre, pull, 1.0)
        if d_stds is not None:
            of_squares = (of_q.T @ r.squares).view_as(r.v)
            of_squares = of_squares.add_(of_y.mul_(-2).addcmul_(count, c).mul_(c)).mul_(precision)
            pull = of_squares.sub_(_of_weights(r.weight_i, of_g.T)).mul_(precision).neg_()
            r.components.put(d_stds, pull, stds[r.components.rows], add)
            if m.sample_eps is not None:
                own = r.samples.variances(stds, m.sample_eps)
                pull = own.reciprocal_().mul_(_of_weights(r.weight_l, of_k))
                r.samples.put(d_stds, pull, stds[r.samples.rows], add)
        return None

    def _exact_gradients(
        self,
        block: Block,
        upstream: Tensor,
        inputs: Sequence[Tensor],
        into: Sequence[Tensor | None],
        add: bool,
    ) -> None:
        wanted = [t is not None for t in into]
        found = self._exactly.gradient(block, upstream.unbind(), wanted, *inputs)
        rows = self.samples.rows, self.components.rows, self.components.rows
        for to, part, of_role in zip(into, found, rows, strict=False):
            if to is not None and part is not None:
                to[of_role] = part[of_role]
        to, part = into[3], found[3]
        if to is not None and part is not None and add:
            to.add_(part)
        elif to is not None and part is not None:
            to[self.components.rows] = part[self.components.rows]
            if self.mixture.sample_eps is not None:
                to[self.samples.rows] = part[self.samples.rows]


def _of_partners(weight: Tensor | None, terms: Tensor) -> Tensor:
    """Of pairs (rows, partners): terms (partners, b) where the row has weight (rows, b); of all of
    them the same row, (1, partners), where it has all."""
    return terms.sum(-1, keepdim=True).T if weight is None else weight @ terms.T


def _of_weights(weight: Tensor | None, of_pairs: Tensor) -> Tensor:
    """The gradient (partners, b, 1) of these terms, or (partners, 1, 1), from one of the pairs,
    (partners, rows)."""
    found = of_pairs.sum(1, keepdim=True) if weight is None else of_pairs @ weight
    return found[..., None]


def _log_determinant_terms(v: Tensor, here: Tensor | None) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, b) of v (rows, b, e), 1 where `here` (rows, b) is 0."""
    found, constant = v.log().sum(-1).mul_(0.5), v.shape[-1] * LOG_2PI / 2
    return found.add_(constant) if here is None else found.add_(here, alpha=constant)


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
    if not (serves and math.isfinite(upstream.sum().item())):
        return _pairs.pairs_backward(upstream, *inputs, None, mixtures, wanted)
    given: tuple[Tensor, ...] = (y, x, mu, stds)  # type: ignore[assignment]
    directions = [_Direction(mixture, _largest(*given)) for mixture in mixtures]

    def write(
        block: Block, parts: Sequence[Tensor], into: Sequence[Tensor | None], add: bool
    ) -> None:
        for direction, of_energies in zip(directions, upstream, strict=True):
            direction.gradients(block, of_energies, parts, into, add)

    return gradients_in_rows(write, _blocks(mixtures[0], y), given, wanted, mixtures, F64)


def _largest(*inputs: Tensor | None) -> float:
    return _LARGEST[any(t is not None and t.dtype == F64 for t in inputs)]


def _blocks(mixture: Mixture, y: Tensor) -> list[Block]:
    # Some eight temporaries at a time: small ones stay in the caches.
    rows = 4 * (mixture.samples + mixture.components)
    return blocks(rows, y.shape[1], y.shape[2], y.device, min_features=128)
