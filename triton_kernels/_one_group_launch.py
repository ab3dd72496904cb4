"""Launches of the moments where the rows of a role are one group, and of their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fused_mi._mixture import Mixture
from fused_mi._passes import Gradients
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from ._configs import ceil_div, few_tile
from ._launch import accumulator, launch, strided, unit
from ._moments_launch import Inputs, Terms, reduce, shared, swapped, with_pairs
from ._moments_rows import GROUP
from ._one_group import one_group_kernel
from ._one_group_backward import one_group_gradient_kernel


def one_group(mixtures: Sequence[Mixture]) -> bool:
    """Whether the rows of a role are, and of two mixtures are read once."""
    m = mixtures[0]
    if len(mixtures) == 2:
        simple = swapped(mixtures)
    else:
        simple = (m.sample_eps is None or _apart(m)) and not m.exclude_diagonal
    return simple and max(m.samples, m.components) <= GROUP.value


def _apart(mixture: Mixture) -> bool:
    """Whether no row has both roles."""
    (first, last), (start, stop) = mixture.sample_rows, mixture.component_rows
    return last <= start or stop <= first


def forward(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    counts: Tensor,
    sums: Tensor,
    lost: Tensor,
    terms: Terms | None,
) -> None:
    """Writes the sums (D, 3), and which columns (D, S, E) are lost; counts are (D, 4, S)."""
    D, S, E = lost.shape
    m = mixtures[0]
    tile = few_tile(E, *inputs, most=8)
    tiles = ceil_div(E, tile.FEATURES)
    partial_sums = sums.new_empty((D, tiles * S, 3))
    launch(
        one_group_kernel,
        D * tiles * S,
        *map(strided, inputs),
        *_constants(mixtures, counts),
        lost,
        partial_sums,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        tiles * S,
        S,
        E,
        tiles,
        **_forms(inputs, mixtures),
        **tile._asdict(),
    )
    masks = m.sample_mask, m.component_mask
    reduce(with_pairs(inputs, mixtures, masks, lost, partial_sums), sums, mixtures, terms)


def backward(
    of_sums: Tensor | None,
    of_loss: tuple[Any, ...],
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    counts: Tensor,
    plan: Gradients,
) -> None:
    """Writes the gradients of `plan`, but for lost columns; see `_gradients_launch.backward`."""
    _, S, E = inputs[0].shape
    m = mixtures[0]
    tile = few_tile(E, *inputs)
    tiles = ceil_div(E, tile.FEATURES)
    launch(
        one_group_gradient_kernel,
        len(mixtures) * tiles * S,
        *map(strided, inputs),
        *of_loss,
        *_constants(mixtures, counts),
        of_sums,
        *plan.tensors,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        S,
        E,
        tiles,
        ZEROS=len(mixtures) == 1 and _apart(m),
        **_forms(inputs, mixtures),
        **tile._asdict(),
    )


def _constants(mixtures: Sequence[Mixture], counts: Tensor) -> tuple[Any, ...]:
    """Masks, counts and stabilisers."""
    first, other = mixtures[0], mixtures[1] if len(mixtures) == 2 else None
    return (
        strided(first.sample_mask),
        strided(first.component_mask),
        counts,
        first.sample_eps,
        first.component_eps,
        None if other is None else other.sample_eps,
        None if other is None else other.component_eps,
    )


def _forms(inputs: Inputs, mixtures: Sequence[Mixture]) -> dict[str, Any]:
    """What the kernels are compiled for."""
    first, other = mixtures[0], mixtures[1] if len(mixtures) == 2 else None
    return {
        "UNIT": unit(inputs[0].shape[2]),
        "OWN_STDS": first.sample_eps is not None,
        "MIXTURES": len(mixtures),
        "SHARED": other is not None and shared(first, other),
        "ACC": accumulator(accumulation_dtype(*inputs)),
    }
