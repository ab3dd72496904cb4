"""The documented formulas written straight: a Python loop over pairs, and an eager pair broadcast.

The loop is what every other implementation is compared with: it runs in float64, picks the active
positions of a pair by index (nothing else can have an influence) and is differentiated by autograd.
The broadcast does the same in any dtype and is the yardstick of ``rules.assert_rule10``.
Both share the few lines that turn the three energies into estimates.
"""

import math
from typing import NamedTuple

import torch
from cases import directions

LOG_2PI = math.log(2 * math.pi)
MAHALANOBIS = "gaussian_mixture_mahalanobis_distance_loss"
LOG_DETERMINANT = "gaussian_mixture_log_constants_and_determinant_loss"
ASSIGNMENT = "gaussian_mixture_assignment_loss"
ENTROPY = "gaussian_mixture_entropy_loss"
STD_LOG = "std_log_loss"
TOTAL = "mutual_information_loss"


class Energies(NamedTuple):
    q: torch.Tensor  # (N, M) half squared Mahalanobis distances
    g: torch.Tensor  # (N, M) log constants and determinant of the component
    k: torch.Tensor  # (N, M) the same of the sample's own covariance


class Role(NamedTuple):
    """The samples (``centre`` = (y,)) or the components (``centre`` = (x, mu))."""

    centre: tuple
    stds: torch.Tensor | None
    mask: torch.Tensor | None  # (rows, S) bool, None: all active
    eps: float


def accumulation_dtype(*tensors):
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def eps_of(stds, mask, safety_factor, dtype):
    """``safety_factor * finfo(dtype).eps`` times the least positive finite active variance."""
    squares = stds.detach().to(dtype).square()
    if mask is not None:
        squares = squares[mask]
    squares = squares[(squares > 0) & torch.isfinite(squares)]
    smallest = squares.min().item() if squares.numel() else 1.0
    return safety_factor * torch.finfo(dtype).eps * smallest


def loop_energies(samples, components, skip_diagonal=False):
    y, (x, mu) = samples.centre[0], components.centre
    rows = []
    for i in range(len(y)):
        row = []
        for j in range(len(x)):
            if skip_diagonal and i == j:
                continue
            active = torch.ones(y.shape[1], dtype=torch.bool, device=y.device)
            for role, b in ((samples, i), (components, j)):
                if role.mask is not None:
                    active = active & role.mask[b]
            s = active.nonzero()[:, 0]
            v_component = components.stds[j, s] ** 2 + components.eps
            q = ((y[i, s] - x[j, s] - mu[j, s]) ** 2 / v_component).sum() / 2
            g = (v_component.log() + LOG_2PI).sum() / 2
            k = torch.zeros_like(g)
            if samples.stds is not None:
                k = ((samples.stds[i, s] ** 2 + samples.eps).log() + LOG_2PI).sum() / 2
            row.append(torch.stack((q, g, k)))
        rows.append(torch.stack(row))
    return Energies(*torch.stack(rows).unbind(-1))


def pair_weights(samples, components):
    """(N, M, S) bool, broadcastable."""
    n, m, s = len(samples.centre[0]), len(components.centre[0]), samples.centre[0].shape[1]
    w = torch.ones(n, m, s, dtype=torch.bool, device=samples.centre[0].device)
    if samples.mask is not None:
        w = w & samples.mask[:, None]
    if components.mask is not None:
        w = w & components.mask[None]
    return w


def broadcast_energies(samples, components, skip_diagonal=False):
    """Eager, N*M*S*E at once, in the dtype of its inputs."""
    y, (x, mu) = samples.centre[0][:, None], components.centre
    w = pair_weights(samples, components)[..., None]

    def total(terms):
        return torch.where(w, terms, torch.zeros((), dtype=terms.dtype)).sum((2, 3)) / 2

    v_component = (components.stds**2 + components.eps)[None]
    q = total((y - x[None] - mu[None]) ** 2 / v_component)
    g = total(v_component.log() + LOG_2PI)
    k = torch.zeros_like(g)
    if samples.stds is not None:
        k = total((samples.stds**2 + samples.eps).log()[:, None] + LOG_2PI)
    if skip_diagonal:
        keep = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
        q, g, k = (t[keep].view(len(q), -1) for t in (q, g, k))
    return Energies(q, g, k)


def entries(energies, estimator, reduction, log_weights=None):
    """Every entry of ``losses`` of the mutual information, those of the entropy among them; of
    components with ``log_weights`` (M,), equal ones by default."""
    q, g, k = energies
    m = q.shape[1]
    out = {}
    if estimator == "jensen":
        weight = torch.full_like(q, 1 / m)
    else:
        prior = q.new_full((m,), -math.log(m)) if log_weights is None else log_weights
        log_weight = torch.log_softmax(prior - (q + g - k), 1)
        weight = log_weight.exp()
        # of responsibilities from weights; those of weight 0 have no part
        divergence = torch.where(weight > 0, log_weight - prior, 0.0)
        out[ASSIGNMENT] = (weight * divergence).sum(1)
    out[MAHALANOBIS] = (weight * q).sum(1)
    out[LOG_DETERMINANT] = (weight * g).sum(1)
    out[ENTROPY] = sum(out.values(), torch.zeros_like(q[:, 0]))
    out[STD_LOG] = -(weight * k).sum(1)
    if estimator == "jensen":
        out[TOTAL] = (q + g - k).mean(1)
    else:
        out[TOTAL] = -torch.logsumexp(prior - (q + g - k), 1)
    if reduction == "none":
        return out
    return {name: t.sum() if reduction == "sum" else t.mean() for name, t in out.items()}


def roles(inputs, pairing, combine, safety_factor, eps_dtype):
    """The (samples, components) of each direction."""
    means, stds, mask, clean, noisy = inputs
    mask = mask != 0
    for i, j in directions(pairing, len(means)):
        component_mask = mask[j] if combine else None
        yield (
            Role((noisy[i],), stds[i], mask[i], eps_of(stds[i], mask[i], safety_factor, eps_dtype)),
            Role(
                (clean[j], means[j]),
                stds[j],
                component_mask,
                eps_of(stds[j], component_mask, safety_factor, eps_dtype),
            ),
        )


def mutual_information(
    inputs,
    estimator="jensen",
    pairing="sub_batch",
    combine=True,
    reduction="sum",
    safety_factor=100.0,
    eps_dtype=torch.float64,
    energies=loop_energies,
):
    """``inputs`` in the argument order of the public function; returns every entry."""
    directions = [
        entries(energies(samples, components, pairing == "leave_one_out"), estimator, reduction)
        for samples, components in roles(inputs, pairing, combine, safety_factor, eps_dtype)
    ]
    if reduction == "none":
        return {name: torch.cat([d[name] for d in directions]) for name in directions[0]}
    return {name: sum(d[name] for d in directions) / len(directions) for name in directions[0]}


def mixture_entropy(
    inputs,
    estimator="jensen",
    reduction="mean",
    component_mask=None,
    component_log_weights=None,
    safety_factor=100.0,
    eps_dtype=torch.float64,
    energies=loop_energies,
):
    """``inputs`` = (clean, transformed, means, stds, mask); the result is the ENTROPY entry."""
    clean, transformed, means, stds, mask = inputs
    component_mask = None if component_mask is None else component_mask != 0
    eps = eps_of(stds, component_mask, safety_factor, eps_dtype)
    samples = Role((transformed,), None, mask != 0, 0.0)
    components = Role((clean, means), stds, component_mask, eps)
    out = entries(energies(samples, components), estimator, reduction, component_log_weights)
    return {
        name: out[name]
        for name in (MAHALANOBIS, LOG_DETERMINANT, ASSIGNMENT, ENTROPY)
        if name in out
    }
