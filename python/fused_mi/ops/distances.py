"""Operator `distances`: half the squared Mahalanobis distances of all N x M pairs."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from .._building_blocks import Gradients
from .._mixture import Mixture
from .._precision import working_dtype
from ..reference import pairs as plain
from ._operator import Quantity, operator


class _Constants(NamedTuple):
    mask: Tensor  # (N, S) bool
    component_mask: Tensor  # (M, S) bool
    eps: Tensor  # ()

    def mixture(self) -> Mixture:
        return Mixture.of_all_rows(*self)


def _forward(module: ModuleType, inputs: Sequence[Tensor], constants: _Constants) -> Any:
    y, centers, stds = inputs
    energies = module.pairs(y, centers, None, stds, [constants.mixture()])
    return energies[0, 0], y.new_empty(0)


def _backward(
    module: ModuleType,
    upstream: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    constants: _Constants,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    (of_distances,), (y, centers, stds) = upstream, inputs
    assert of_distances is not None
    of_energies = of_distances.new_zeros(1, 3, *of_distances.shape)
    of_energies[0, 0] = of_distances
    of_y, of_centers, _, of_stds = module.pairs_backward(
        of_energies,
        y,
        centers,
        None,
        stds,
        None,
        [constants.mixture()],
        (wanted[0], wanted[1], False, wanted[2]),
    )
    return [of_y, of_centers, of_stds]


def _fake(inputs: Sequence[Tensor], constants: _Constants) -> Any:
    y, centers, _ = inputs
    shape = y.shape[0], centers.shape[0]
    return y.new_empty(shape, dtype=working_dtype(y.device)), y.new_empty(0)


def _formula(inputs: Sequence[Tensor], constants: _Constants) -> tuple[Tensor]:
    y, centers, stds = inputs
    return (plain.energies(constants.mixture(), y, centers, None, stds)[0],)


_distances = operator(
    Quantity(
        "distances",
        "distances",
        ("y", "centers", "stds"),
        ("Tensor mask", "Tensor component_mask", "Tensor eps"),
        3,
        ("distances",),
        _Constants,
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
    constants = _Constants(mask, component_mask, eps)
    found: Tensor = _distances((y, centers, stds), constants, True)
    return found
