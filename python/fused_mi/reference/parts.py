"""The moments of some of the rows of a batch, apart: what ranks and micro-batches tell each other.

The Jensen loss is a sum over pairs of rows. Of rows that are elsewhere a row needs their moments
alone, see `reference.moments`: these merge exactly (Chan, Golub & LeVeque 1979, STAN-CS-79-773).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Partners, Parts
from .._mixture import Mixture
from .._precision import working_dtype
from .moments import Moments, weighted_moments
from .rows import first_active_row, heaviest_row, in_rows
from .variance import log_determinant_terms, stabilised_root

PLANES = 6
"""Of one mixture (6, S, E): mean, rest and m2 of the samples, mean, rest and weight of the
components. A mean is the nearest number of the planes' dtype, and what is left of it."""

LEAST_WEIGHT = 2.0**-100
"""A sum of weights 1 / v that is less has lost digits in float32, or soon has: it is NaN then,
which says that the planes have to be float64."""


def parts(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    dtype: torch.dtype,
) -> Parts:
    """Moments of the rows of each mixture: of samples for themselves, of components for
    themselves.

    Args:
        y, x, mu, stds: as `reference.moments.moments` has them.
        mixtures: D of them; either range of rows may be empty.
        partners: of their rows; the partners are elsewhere.
        dtype: of the planes.

    Returns:
        The planes; and of the sums of q, g and k over all pairs with the partners what these rows
        have to say: `1/2 sum_l n_l m2_l`, the part of q within the components, all of g of the
        components, all of k of the samples.
    """
    found = [_part(m, p, dtype, y, x, mu, stds) for m, p in zip(mixtures, partners, strict=True)]
    return Parts(*(torch.stack(column) for column in zip(*found, strict=True)))


def _part(
    m: Mixture,
    partners: Partners,
    dtype: torch.dtype,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = working_dtype(y.device)
    of_samples, of_components = partners.contributing(m)
    samples, components = slice(*m.sample_rows), slice(*m.component_rows)
    active_i, active_l = of_samples[..., None], of_components[..., None]
    y_shift = first_active_row(y[samples], of_samples).to(wide)
    deviation = torch.where(active_i, y[samples].to(wide) - y_shift, 0)
    of_y = weighted_moments(active_i.to(wide), deviation, y_shift)
    root = stabilised_root(stds[components], of_components, m.component_eps, wide)
    x_shift = heaviest_row(x[components], root, of_components).to(wide)
    deviation = torch.where(active_l, (x[components].to(wide) - x_shift) + mu[components], 0)
    precision = torch.where(active_l, root.square().reciprocal(), 0)
    of_c = weighted_moments(precision, deviation, x_shift)
    met, count = partners.of_components.to(wide), partners.of_samples.to(wide)
    within = (met * of_c.m2.sum(-1)).sum() / 2
    g = (met * log_determinant_terms(root, of_components).sum(0)).sum()
    k = torch.zeros_like(g)
    if m.sample_eps is not None:
        own = stabilised_root(stds[samples], of_samples, m.sample_eps, wide)
        k = (count * log_determinant_terms(own, of_samples).sum(0)).sum()
    weight = of_c.weight
    if dtype != wide:
        light = (weight < LEAST_WEIGHT) & of_components.any(0)[:, None]
        weight = weight.masked_fill(light, math.nan)
    planes = (*mean_of(of_y, dtype), of_y.m2, *mean_of(of_c, dtype), weight)
    return (
        torch.stack([plane.to(dtype) for plane in planes]),
        of_samples.sum(0),
        of_components.sum(0),
        torch.stack((within, g, k)),
    )


def mean_of(moments: Moments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest number of `dtype`, and the rest, without an error of their sum."""
    mean = (moments.shift + moments.delta).to(dtype).to(moments.shift.dtype)
    return mean, (moments.shift - mean) + moments.delta


def pull(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    partners: Sequence[Partners],
    planes: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the sums of q, g and k over all pairs with partners that are elsewhere.

    Args:
        upstream: (D, 3) of the sums.
        planes: (D, 6, S, E) of the partners: of the samples that the components meet, of the
            components that the samples meet.
        wanted: of which of y, x, mu and stds; None for the others.
    """
    total: list[Tensor | None] = [None] * 4
    inputs = y, x, mu, stds
    dtype = working_dtype(y.device)
    for of_sums, mixture, met, of_met in zip(upstream, mixtures, partners, planes, strict=True):
        found = _pull(of_sums.to(dtype), mixture, met, of_met.to(dtype), wanted, *inputs)
        total = [b if a is None or b is None else a + b for a, b in zip(total, found, strict=True)]
    # That of mu is that of x, in memory of its own.
    return [
        None if g is None else g.to(t.dtype, copy=i == 2)
        for i, (g, t) in enumerate(zip(total, inputs, strict=True))
    ]


def _pull(
    upstream: Tensor,
    m: Mixture,
    partners: Partners,
    planes: Tensor,
    wanted: Sequence[bool],
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
) -> list[Tensor | None]:
    of_q, of_g, of_k = upstream
    mean_y, rest_y, m2, mean_c, rest_c, weight = planes
    of_samples, of_components = partners.contributing(m)
    samples, components = slice(*m.sample_rows), slice(*m.component_rows)
    active_i, active_l = of_samples[..., None], of_components[..., None]
    wide = torch.empty((), dtype=planes.dtype, device=y.device).expand_as

    def rows(values: Tensor, where: slice, like: Tensor) -> Tensor:
        return in_rows(values, where, wide(like))

    found: list[Tensor | None] = [None] * 4
    if wanted[0]:
        from_mean = (y[samples].to(planes.dtype) - mean_c) - rest_c
        of_y = torch.where(active_i, of_q * (weight * from_mean), 0)
        found[0] = rows(of_y, samples, y)
    if not any(wanted[1:]):
        return found
    count = partners.of_components.to(planes.dtype)[:, None]
    from_mean = ((x[components].to(planes.dtype) - mean_y) + mu[components]) - rest_y
    root = stabilised_root(stds[components], of_components, m.component_eps, planes.dtype)
    standardised = from_mean / root
    if wanted[1] or wanted[2]:
        of_c = torch.where(active_l, of_q * (count * standardised) / root, 0)
        found[1] = rows(of_c, components, x) if wanted[1] else None
        found[2] = rows(of_c, components, mu) if wanted[2] else None
    if wanted[3]:
        squares = m2 / root / root + count * standardised.square()
        ratio = torch.where(active_l, stds[components], 0) / root
        of_stds = torch.where(active_l, ratio * ((of_g * count - of_q * squares) / root), 0)
        total = rows(of_stds, components, stds)
        if m.sample_eps is not None:
            own = torch.where(active_i, stds[samples], 0)
            root = stabilised_root(own, of_samples, m.sample_eps, planes.dtype)
            met = partners.of_samples.to(planes.dtype)[:, None]
            of_own = torch.where(active_i, (own / root) * (of_k * met / root), 0)
            total = total + rows(of_own, samples, stds)
        found[3] = total
    return found


class Merged(NamedTuple):
    """Of several sets of rows, (n,) columns each."""

    planes: Tensor  # (6, n)
    counts: Tensor  # (n,) samples
    between: Tensor  # (n,): what their means add to the weighted squares of the components


def merged(planes: Tensor, counts: Tensor, chosen: Sequence[int], dtype: torch.dtype) -> Merged:
    """The moments of the union of the `chosen` sets.

    Args:
        planes: (sets, 6, n) in the working dtype.
        counts: (sets, n) of samples.
        dtype: of the means that are found.
    """
    n = planes.shape[-1]
    of_chosen = list(chosen)
    planes, counts = planes[of_chosen], counts[of_chosen].to(planes.dtype)
    samples = _union(counts, planes[:, 0], planes[:, 1], n)
    components = _union(planes[:, 5], planes[:, 3], planes[:, 4], n)
    of_both = (
        *mean_of(samples, dtype),
        samples.m2 + planes[:, 2].sum(0),
        *mean_of(components, dtype),
        components.weight,
    )
    return Merged(torch.stack(of_both), samples.weight, components.m2)


def merge(
    planes: Tensor, counts: Tensor, features: int, first: int, apart: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What several sets of rows meet.

    Args:
        planes: (D, sets, 6, n) of n columns of (S, E), in any dtype.
        counts: (D, sets, positions) of samples, of the positions of these columns.
        features, first: E, and the number of the first column.
        apart: each set meets all others, and not itself.

    Returns:
        (D, sets or 1, 6, n) in the dtype of `planes`: what each set meets, or all of them the same;
        (D,) what that adds to the sum of q; and () whether the dtype has room for all of it.
    """
    sets, n = planes.shape[1], planes.shape[3]
    dtype, wide = planes.dtype, planes.to(working_dtype(planes.device))
    column = torch.arange(first, first + n, device=planes.device)
    of_columns = counts[..., column // features - first // features]
    found, sums = [], []
    for of_planes, of_counts in zip(wide, of_columns, strict=True):
        everybody = range(sets)
        if apart:
            met = [
                merged(of_planes, of_counts, [r for r in everybody if r != k], dtype)
                for k in everybody
            ]
            of_q = [
                cross(of_set, count, others).sum()
                for of_set, count, others in zip(of_planes, of_counts, met, strict=True)
            ]
        else:
            met = [merged(of_planes, of_counts, everybody, dtype)]
            of_q = [cross(met[0].planes, met[0].counts, met[0]).sum()]
        found.append(torch.stack([m.planes for m in met]))
        sums.append(torch.stack(of_q).sum())
    result = torch.stack(found).to(dtype)
    return result, torch.stack(sums), result.isfinite().all() & planes.isfinite().all()


def unite(planes: Tensor, counts: Tensor, met: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """Several sets of rows as one.

    Args:
        planes: (D, sets, 6, n) of all n columns of (S, E), in the working dtype.
        counts: (D, sets, S) of samples.
        met: (D, S): how many samples the components of all sets meet.
        features: E.

    Returns:
        (D, 6, n), and (D,) what lies within the components of all sets and within none of them:
        `1/2 sum_l met_l` times the weighted squares of the sets' means.
    """
    found, within = [], []
    for of_planes, of_counts, of_met in zip(planes, counts, met, strict=True):
        of_columns = of_counts.repeat_interleave(features, 1)
        whole = merged(of_planes, of_columns, range(len(of_planes)), planes.dtype)
        between = whole.between.view(-1, features).sum(1)
        found.append(whole.planes)
        within.append((of_met.to(between.dtype) * between).sum() / 2)
    return torch.stack(found), torch.stack(within)


def _union(weights: Tensor, means: Tensor, rests: Tensor, n: int) -> Moments:
    """Of sets (sets, n) whose own squares are left out."""
    if not len(weights):
        zero = weights.new_zeros(n)
        return Moments(zero, zero, zero, zero)
    some = weights > 0
    pivot = means.gather(0, some.long().argmax(0, keepdim=True))
    deviations = torch.where(some, (means - pivot) + rests, 0)
    return weighted_moments(weights, deviations, pivot[0])


def cross(of_rows: Tensor, count: Tensor, others: Merged) -> Tensor:
    """`1/2 sum_il w_ils (y_i - c_l)^2 / v_l` (n,) of samples, planes (6, n) and counts (n,), with
    the components among `others`, without what lies within single sets of these."""
    mean_y, rest_y, m2 = of_rows[:3]
    mean_c, rest_c, weight = others.planes[3:]
    distance = (mean_y - mean_c) + (rest_y - rest_c)
    count = count.to(m2.dtype)
    squares = m2 * weight + count * weight * distance.square() + count * others.between
    return torch.where((count > 0) & (weight > 0), squares, 0) / 2


def narrowed(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Planes (..., 6, S, E) of the working dtype in another one: each mean is split anew."""
    mean_y, rest_y, m2, mean_c, rest_c, weight = planes.unbind(-3)
    zero = torch.zeros_like(m2)
    of_y, of_c = (
        mean_of(Moments(zero, mean, rest, zero), dtype)
        for mean, rest in ((mean_y, rest_y), (mean_c, rest_c))
    )
    return torch.stack((*of_y, m2, *of_c, weight), -3).to(dtype)


def fitting(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Planes of the working dtype with values of `dtype`, for kernels that compute in it; as they
    are where it has no room for them."""
    if planes.is_cuda:  # its kernels find out by themselves, and nobody waits
        return planes
    found = narrowed(planes, dtype)
    light = (found[..., 5, :, :] < LEAST_WEIGHT) & (planes[..., 5, :, :] > 0)
    room = bool(found.isfinite().all().item()) and not bool(light.any().item())
    return found.to(planes.dtype) if room else planes
