"""Values and gradients in float64, by code that shares nothing with the package.

Squares are expanded, (y - c)^2 / v = y^2 / v - 2 y c / v + c^2 / v, so that the sum over positions
and features becomes a product of matrices; relative to one row, and exact enough in float64.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import ALL, FLOATING, Case

_BLOCK = 1 << 24  # elements of an input, or pairs, at once
_LOG_2PI = math.log(2 * math.pi)


class Exact(NamedTuple):
    value: float
    magnitude: float  # of its terms: q, g and k
    gradients: list[Tensor]  # of the wanted inputs


def exact(case: Case, inputs: Sequence[Tensor]) -> Exact:
    """For the inputs (mu, sigma, mask, x, y) of a case."""
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    leaves = [t.double().requires_grad_(i in FLOATING) for i, t in enumerate(inputs)]
    factors = torch.ones(3, dtype=torch.float64, device=inputs[0].device, requires_grad=True)
    directions = case.directions
    value = 0.0
    for samples, components in directions:
        eps = [_eps(rows, inputs, wide) for rows in (samples, components)]
        for rows, positions in _blocks(case, samples):
            block = [t[:, positions] for t in leaves]
            terms = _matrices(case, block, (rows, components), eps)
            loss = _loss(case, terms, factors, rows) / len(directions)
            loss.backward()
            value += loss.item()
    assert factors.grad is not None  # which is each of the three terms
    found = [leaves[FLOATING[ALL.index(name)]].grad for name in case.wanted]
    gradients = [g.to(wide) for g in found if g is not None]
    return Exact(value, factors.grad.abs().sum().item(), gradients)


def memory(case: Case) -> float:
    """Bytes that it takes, roughly: leaves and gradients, and a block with its graph."""
    if case.estimator == "jensen":
        return 64 * case.elements + 100 * min(case.elements, max(_BLOCK, case.B * case.E))
    return 150 * case.elements + 100 * min(_BLOCK, case.samples * case.components)


def _eps(rows: slice, inputs: Sequence[Tensor], dtype: torch.dtype) -> float:
    active = inputs[1][rows][inputs[2][rows]].to(dtype).square()
    return 100 * torch.finfo(dtype).eps * active[active > 0].min().item()


def _blocks(case: Case, samples: slice) -> Iterator[tuple[slice, slice]]:
    """Of samples and positions. The losses are sums over samples, that of jensen over positions."""
    if case.estimator == "jensen":
        step = max(1, _BLOCK // (case.B * case.E))
        yield from ((samples, slice(s, s + step)) for s in range(0, case.S, step))
    else:
        step = max(1, _BLOCK // case.components)
        for start in range(samples.start, samples.stop, step):
            yield slice(start, min(start + step, samples.stop)), slice(None)


def _matrices(case: Case, inputs: Sequence[Tensor], roles: Sequence[slice], eps: Sequence[float]):
    """Three pairs of matrices, (N, K) and (M, K) each: their products are q, g and k."""
    mu, sigma, mask, x, y = inputs
    i, j = roles
    shift = y[:1].detach()
    samples, centres = y[i] - shift, (x[j] - shift) + mu[j]
    v_i, v_l = sigma[i].square() + eps[0], sigma[j].square() + eps[1]
    m_i, m_l = mask[i], mask[j]  # numbers by now
    p = m_l[..., None] / v_l
    of_samples = m_i[..., None] * torch.cat(
        (samples.square(), -2 * samples, torch.ones_like(samples)), -1
    )
    of_components = torch.cat((p, p * centres, p * centres.square()), -1) / 2
    g = m_l * (v_l.log() + _LOG_2PI).sum(-1) / 2
    k = m_i * (v_i.log() + _LOG_2PI).sum(-1) / 2 * case.information
    return (of_samples.flatten(1), of_components.flatten(1)), (m_i, g), (k, m_l)


def _loss(case: Case, terms: Sequence[tuple[Tensor, Tensor]], factors: Tensor, rows: slice):
    """The sum over the samples of the block: of energies q + g - k, each times its factor."""
    own = case.pairing == "leave_one_out"
    pairs = list(zip(factors, terms, strict=True))
    if case.estimator == "jensen":
        sums = [f * (a.sum(0) @ b.sum(0) - ((a * b).sum() if own else 0)) for f, (a, b) in pairs]
        return (sums[0] + sums[1] - sums[2]) / case.components
    q, g, k = (f * (a @ b.T) for f, (a, b) in pairs)
    energies = q + g - k
    if own:
        i = torch.arange(len(energies), device=energies.device)
        energies = energies.index_put((i, i + rows.start), energies.new_tensor(math.inf))
    return (math.log(case.components) - torch.logsumexp(-energies, 1)).sum()
