"""Operator `distances`: half the squared Mahalanobis distances of all N x M pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._precision import working_dtype
from ..reference import pairs as plain
from ..reference.mixture import Mixture
from ._backends import choose
from ._operator import Quantity, operator


def _mixture(mask: Tensor, component_mask: Tensor, eps: Tensor) -> list[Mixture]:
    return [Mixture.of_all_rows(mask, component_mask, eps)]


def _forward(y: Tensor, centers: Tensor, stds: Tensor, *constants: Tensor) -> Any:
    energies = choose("distances", y).pairs(y, centers, None, stds, _mixture(*constants))
    return energies[0, 0], y.new_empty(0)


def _backward(
    upstream: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    constants: Sequence[Any],
    state: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    (of_distances,), (y, centers, stds) = upstream, inputs
    assert of_distances is not None
    of_energies = of_distances.new_zeros(1, 3, *of_distances.shape)
    of_energies[0, 0] = of_distances
    of_y, of_centers, _, of_stds = choose("distances", y).pairs_backward(
        of_energies, y, centers, None, stds, None, _mixture(*constants),
        (wanted[0], wanted[1], False, wanted[2]),
    )
    return [of_y, of_centers, of_stds]


def _fake(y: Tensor, centers: Tensor, stds: Tensor, *constants: Tensor) -> Any:
    shape = y.shape[0], centers.shape[0]
    return y.new_empty(shape, dtype=working_dtype(y.device)), y.new_empty(0)


def _formula(y: Tensor, centers: Tensor, stds: Tensor, *constants: Tensor) -> tuple[Tensor]:
    return (plain.energies(_mixture(*constants)[0], y, centers, None, stds)[0],)


_distances = operator(
    Quantity(
        "distances",
        ("y", "centers", "stds"),
        ("Tensor mask", "Tensor component_mask", "Tensor eps"),
        3,
        ("distances",),
        _forward,
        _backward,
        _fake,
        _formula,
    )
)


def distances(
    y: Tensor, centers: Tensor, stds: Tensor, mask: Tensor, component_mask: Tensor, eps: Tensor
) -> Tensor:
    """`1/2 sum_s w_ils sum_e (y_i - c_l)^2 / v_l` (N, M) in the working dtype.

    Args:
        y: (N, S, E).
        centers, stds: (M, S, E).
        mask, component_mask: (N, S) and (M, S) bool; w is 1 where both are active.
        eps: (), of the variances.
    """
    (found,) = _distances(y, centers, stds, mask, component_mask, eps)
    return found
