"""The loss of all pairs from their energies: softmax over components, of each sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Own
from .._terms import terms_of_rows


class _Rows(NamedTuple):
    """What value and gradient share."""

    responsibilities: Tensor  # (D, N, M)
    log_sums: Tensor  # (D, N, 1), -inf where hopeless
    means: Tensor  # (D, 3, N, 1): of q, g and k, weighted by the responsibilities
    deviations: Tensor  # (D, 3, N, M) from them; 0 where the gradient has no use for them


def logsumexp(energies: Tensor, own: Own | None) -> Tensor:
    """What the terms of `-log(1/M sum_l exp(-e_il))`, of energies e = q + g - k, are made of: see
    `terms_of_rows`.

    Returns:
        (D, 5, N): the log of the sum over the components, the means of q, g and k weighted by the
        responsibilities, and q + g of the sample's own component, 0 where that does not matter. A
        row is hopeless where every density is 0: its log is -inf, its responsibilities are equal.
    """
    if (found := _rows_of_finite(energies, own)) is not None:
        return found
    rows = _rows(energies, own)
    of_own = torch.zeros_like(rows.log_sums)
    if own is not None and own.of_samples is not None:
        last = energies.shape[-1] - 1
        at = own.of_samples[:, None].expand(len(energies), -1, 1)
        of_own = (energies[:, 0] + energies[:, 1]).gather(-1, at.clamp(0, last))
        of_own = of_own.masked_fill((at < 0) | (at > last), math.nan)
    return torch.cat((rows.log_sums[:, None], rows.means, of_own[:, None]), 1)[..., 0]


def means(rows: Tensor, partners: int) -> Tensor:
    """The means (D, 5) of `terms_of_rows` over the samples."""
    return terms_of_rows(rows, partners).mean(-1)


def logsumexp_backward(
    upstream: Tensor, energies: Tensor, rows: Tensor | None, own: Own | None
) -> Tensor:
    """Gradient (D, 3, N, M) of the energies, given `upstream` (D, 5, N or 1) of the terms of each
    sample; what `logsumexp` returns is found anew. With grad mode on the result is
    differentiable."""
    if (gradient := _gradient_of_total(upstream, energies, own)) is not None:
        return gradient
    found = _rows(energies, own)
    total, q, g, assignment, std_log = upstream[..., None].unbind(1)
    total = torch.where(found.log_sums == -math.inf, 0, total)  # a hopeless row has none
    slopes = torch.stack((q - assignment, g - assignment, assignment - std_log), 1)
    # Of the log-density, relative to r.
    of_density = (slopes * found.deviations).sum(1) - total
    of_pairs = torch.stack((q - of_density, g - of_density, of_density - std_log), 1)
    weights = found.responsibilities[:, None]
    gradient = torch.where(weights == 0, 0, weights * of_pairs)
    if own is None or own.of_samples is None:
        return gradient
    at = own.of_samples[:, None] == torch.arange(energies.shape[-1], device=energies.device)
    of_own = torch.where(at, total, 0)
    return gradient - torch.stack((of_own, of_own, torch.zeros_like(of_own)), 1)


def _few_operators(energies: Tensor, own: Own | None) -> bool:
    """Whether to try with few of them first: where asking for a number is cheap, and no graph is
    wanted."""
    return own is None and energies.device.type == "cpu" and not torch.is_grad_enabled()


def _rows_of_finite(energies: Tensor, own: Own | None) -> Tensor | None:
    """What `logsumexp` returns, where all of it is finite."""
    if not _few_operators(energies, own):
        return None
    q, g, k = energies.unbind(1)
    densities = (k - q).sub_(g)
    log_sums = densities.logsumexp(-1, keepdim=True)
    means = densities.sub_(log_sums).exp_()[:, None].mul(energies).sum(-1)
    log_sums = log_sums.transpose(1, 2)
    found = torch.cat((log_sums, means, torch.zeros_like(log_sums)), 1)
    return found if math.isfinite(found.sum().item()) else None


def _gradient_of_total(upstream: Tensor, energies: Tensor, own: Own | None) -> Tensor | None:
    """What `logsumexp_backward` returns, where nothing else has a gradient, and all is finite."""
    if upstream.shape[-1] != 1 or not _few_operators(energies, own):
        return None
    first, *others = upstream[..., 0].tolist()
    if any(first[1:]) or any(other != first for other in others):
        return None
    q, g, k = energies.unbind(1)
    densities = (k - q).sub_(g)
    of_pairs = densities.sub_(densities.logsumexp(-1, keepdim=True)).exp_().mul_(first[0])
    if not math.isfinite(of_pairs.sum().item()):
        return None
    return torch.stack((of_pairs, of_pairs, -of_pairs), 1)


def _rows(energies: Tensor, own: Own | None) -> _Rows:
    q, g, k = energies.unbind(1)
    densities = k - q - g
    equal = torch.zeros_like(densities[0])  # log-densities of a hopeless row
    if own is not None and own.left_out:
        samples, components = (torch.arange(n, device=energies.device) for n in equal.shape)
        of_samples = samples + own.first if own.of_samples is None else own.of_samples
        equal = equal.masked_fill(of_samples[:, None] == components, -math.inf)
    not_met = equal < 0
    densities = densities.masked_fill(not_met, -math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = densities.detach().amax(-1, keepdim=True) == -math.inf
    log_sums = densities.masked_fill(hopeless, 0).logsumexp(-1, keepdim=True)
    responsibilities = torch.where(hopeless, equal.softmax(-1), (densities - log_sums).exp())
    # 0 * inf: a component that is never chosen adds nothing, to no gradient either.
    chosen = energies.masked_fill((responsibilities == 0)[:, None], 0)
    means = (responsibilities[:, None] * chosen).sum(-1, keepdim=True)
    unused = hopeless | (responsibilities == 0)
    deviations = (chosen - means).masked_fill(unused[:, None], 0)
    return _Rows(responsibilities, log_sums.masked_fill(hopeless, -math.inf), means, deviations)
