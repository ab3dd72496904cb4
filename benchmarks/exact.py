"""Values and gradients in float64, by code that shares nothing with the package.

Squares are expanded, (y - c)^2 / v = y^2 / v - 2 y c / v + c^2 / v, so that the sum over positions
and features becomes a product of matrices; relative to one row, and exact enough in float64. The
positions are taken in blocks: the gradient of the loss by the energies is known after a first pass,
and each block pulls it back in the second.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import cases
from .cases import ALL, FLOATING, Case

_BLOCK = 1 << 22  # elements of a tensor at once
_LOG_2PI = math.log(2 * math.pi)


class Exact(NamedTuple):
    value: float
    magnitude: float  # sum of the magnitudes of its terms
    gradients: list[Tensor]  # of the wanted inputs


class _Direction(NamedTuple):
    samples: slice
    components: slice
    sample_eps: float
    component_eps: float


def exact(case: Case, inputs: Sequence[Tensor]) -> Exact:
    """For the inputs (mu, sigma, mask, x, y) of a case."""
    directions = _directions(case, inputs)
    wide = case.dtype == "float64"
    positions = [FLOATING[ALL.index(name)] for name in case.wanted]
    kept = torch.float64 if wide else torch.float32
    gradients = [torch.zeros_like(inputs[i], dtype=kept) for i in positions]
    value = magnitude = 0.0
    for direction in directions:
        weights = None
        if case.estimator == "logsumexp":
            of_value, weights = _logsumexp(case, inputs, direction)
            value += of_value
        for block in _blocks(case):
            leaves = _leaves(inputs, block, positions)
            (q, g, k), of_terms = _terms(case, leaves, direction, weights)
            magnitude += of_terms
            if weights is None:
                value += (q + g - k).item()
            if not positions:
                continue
            wanted = [leaves[i] for i in positions]
            found = torch.autograd.grad(q + g - k, wanted, allow_unused=True)
            for total, part in zip(gradients, found, strict=True):
                if part is not None:
                    total[block] += part.to(kept) / len(directions)
    n = len(directions)
    return Exact(value / n, magnitude / n, gradients)


def _directions(case: Case, inputs: Sequence[Tensor]) -> list[_Direction]:
    accumulate = torch.float64 if case.dtype == "float64" else torch.float32

    def eps(rows: slice) -> float:
        active = inputs[1][rows][inputs[2][rows]].to(accumulate).square()
        return 100 * torch.finfo(accumulate).eps * active[active > 0].min().item()

    return [_Direction(i, j, eps(i), eps(j)) for i, j in cases.directions(case.pairing, case.B)]


def _blocks(case: Case) -> Iterator[tuple[slice, slice, slice]]:
    """Of (B, S, E)."""
    features = max(1, min(case.E, _BLOCK // case.B))
    positions = max(1, min(case.S, _BLOCK // (case.B * features)))
    for s in range(0, case.S, positions):
        for e in range(0, case.E, features):
            yield slice(None), slice(s, s + positions), slice(e, e + features)


def _leaves(inputs: Sequence[Tensor], block: tuple[slice, ...], wanted: Sequence[int]) -> list:
    cut = [t[block[:2]].double() if t.dim() == 2 else t[block].double() for t in inputs]
    return [t.requires_grad_(i in wanted) for i, t in enumerate(cut)]


def _terms(
    case: Case, inputs: Sequence[Tensor], direction: _Direction, weights: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], float]:
    """q, g and k of a block, summed over all pairs by their weights: None is 1 / M each; and the
    sum of the magnitudes of their terms."""
    own = case.pairing == "leave_one_out"

    def total(a: Tensor, b: Tensor) -> Tensor:
        if weights is not None:
            return (a * (weights @ b)).sum()
        everything = a.sum(0) @ b.sum(0)
        return (everything - (a * b).sum() if own else everything) / case.components

    (a, b), (m_i, g), (k, m_l) = _factors(case, inputs, direction)
    q = total(a, b)
    with torch.no_grad():
        magnitude = q.abs() + total(m_i, g.abs()) + total(k.abs(), m_l)
    return (q, total(m_i, g), total(k, m_l)), magnitude.item()


def _factors(case: Case, inputs: Sequence[Tensor], direction: _Direction):
    """Three pairs of matrices, (N, K) and (M, K) each: their products are q, g and k."""
    mu, sigma, mask, x, y = inputs
    i, j = direction.samples, direction.components
    shift = y[:1].detach()
    samples, centres = y[i] - shift, (x[j] - shift) + mu[j]
    v_l = sigma[j].square() + direction.component_eps
    v_i = sigma[i].square() + direction.sample_eps
    m_i, m_l = mask[i], mask[j]  # numbers by now
    p = m_l[..., None] / v_l
    of_samples = m_i[..., None] * torch.cat(
        (samples.square(), -2 * samples, torch.ones_like(samples)), -1
    )
    of_components = torch.cat((p, p * centres, p * centres.square()), -1) / 2
    g = m_l * (v_l.log() + _LOG_2PI).sum(-1) / 2
    k = m_i * (v_i.log() + _LOG_2PI).sum(-1) / 2 * case.information
    return (of_samples.flatten(1), of_components.flatten(1)), (m_i, g), (k, m_l)


def _logsumexp(case: Case, inputs: Sequence[Tensor], direction: _Direction) -> tuple[float, Tensor]:
    """The value and its gradient by the energies (N, M)."""
    rows = [len(inputs[2][rows]) for rows in (direction.samples, direction.components)]
    energies = torch.zeros(rows, dtype=torch.float64, device=inputs[0].device)
    with torch.no_grad():
        for block in _blocks(case):
            leaves = _leaves(inputs, block, ())
            for sign, (a, b) in zip((1, 1, -1), _factors(case, leaves, direction), strict=True):
                energies.addmm_(a, b.T, alpha=sign)
        if case.pairing == "leave_one_out":
            energies.fill_diagonal_(math.inf)
        densities = energies.neg_()
        log_mean = torch.logsumexp(densities, 1) - math.log(case.components)
        return -log_mean.sum().item(), torch.softmax(densities, 1)
