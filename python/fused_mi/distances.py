"""Squared Mahalanobis distances."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._broadcast import outer_pattern, used_by
from .ops.distances import distances
from .ops.variance import stabiliser
from .reference import variance
from .reference.distance import square_distance


def square_mahalanobis_distance(
    x: Tensor, y: Tensor, stds: Tensor, mask: Tensor, safety_factor: float = 100.0
) -> Tensor:
    """Half the squared Mahalanobis distance, `1/2 sum_s mask_s sum_e (x - y)^2 / (stds^2 + eps)`.

    Args:
        x, y, stds: (..., S, E) floating tensors; leading dimensions broadcast.
        mask: (..., S), non-zero = active; broadcasts against the leading dimensions and S.
        safety_factor: eps is this times finfo(T).eps times the smallest positive variance that an
            active position uses.

    Returns:
        The broadcast leading shape in T (float64 if any input is, else float32), in nats. The outer
        pattern (N, 1, S, E) with (1, M, S, E) takes the path of all pairs; no N*M*S*E tensor is
        built in any pattern.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not broadcast, or devices differ.
    """
    dtype = _checks.floating(x=x, y=y, stds=stds)
    safety_factor = _checks.factor(safety_factor)
    active = _checks.activity("mask", mask, x)
    for name, tensor in (("x", x), ("y", y), ("stds", stds)):
        if tensor.dim() < 2:
            raise ValueError(f"{name}: expected shape (..., S, E), got {tuple(tensor.shape)}")
        _checks.shape(name, tensor, (*tensor.shape[:-2], *x.shape[-2:]), "(..., S, E)")
    if active.dim() < 1 or active.shape[-1] not in (1, x.shape[-2]):
        raise ValueError(
            f"mask: expected shape (..., S) with S = {x.shape[-2]}, got {tuple(active.shape)}"
        )
    active = active.expand(*active.shape[:-1], x.shape[-2])
    try:
        torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], stds.shape[:-2], active.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"x, y, stds, mask: expected leading shapes that broadcast, got {tuple(x.shape[:-2])}, "
            f"{tuple(y.shape[:-2])}, {tuple(stds.shape[:-2])}, {tuple(active.shape[:-1])}"
        ) from error
    eps = variance.stabiliser(stds, used_by(active, stds), dtype, safety_factor)
    outer = outer_pattern(x, y, stds, active)
    if outer is None:
        return square_distance(x, y, stds, active, eps).to(dtype)
    q = distances(outer.y, outer.centers, outer.stds, outer.y_mask, outer.mask, eps)
    return (q.T if outer.transposed else q).to(dtype)


def pairwise_square_mahalanobis_distance(
    y: Tensor,
    centers: Tensor,
    stds: Tensor,
    mask: Tensor,
    component_mask: Tensor | None = None,
    safety_factor: float = 100.0,
) -> Tensor:
    """Half the squared Mahalanobis distance of every sample to every component.

    Args:
        y: (N, S, E) samples; or (N, E), with the others (M, E), for S = 1.
        centers, stds: (M, S, E) centres and standard deviations of the components.
        mask: (N, S), non-zero = active; or (N,).
        component_mask: (M, S); if given, a position weighs 1 in the pairs where both are active.
        safety_factor: as in `square_mahalanobis_distance`; the minimum runs over the active
            positions of the components, or over all of them without `component_mask`.

    Returns:
        (N, M) in T, in nats.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not match, or devices differ.
    """
    y, centers, stds, mask, component_mask = _checks.with_positions(
        (y, centers, stds), mask, component_mask
    )
    dtype = _checks.floating(y=y, centers=centers, stds=stds)
    safety_factor = _checks.factor(safety_factor)
    _checks.dimensions("y", y, "(N, S, E)")
    _checks.dimensions("centers", centers, "(M, S, E)")
    _checks.shape("centers", centers, (centers.shape[0], *y.shape[1:]), "(M, S, E)")
    _checks.shape("stds", stds, centers.shape, "(M, S, E)")
    active = _checks.sample_mask(mask, y)
    components = _checks.component_mask(component_mask, stds)
    if components is None:
        components = active.new_ones(()).expand(stds.shape[:2])
    eps = stabiliser(stds, components, (0, stds.shape[0]), dtype, safety_factor)
    return distances(y, centers, stds, active, components, eps).to(dtype)
