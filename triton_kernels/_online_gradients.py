"""Gradients of a block of pairs by the online log-sum-exp: launches of the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._configs import ceil_div
from ._launch import launch, strided
from ._online_backward import add_gradients_kernel, weigh_kernel
from ._online_launch import Pairs
from ._pairs_backward import components_gradient_kernel, samples_gradient_kernel
from ._pairs_configs import (
    ADD_GRADIENTS,
    PAIRS_PADDING,
    careful_programs,
    gradient_splits,
)
from ._pairs_logs import dtype_of
from ._sum_weights import sum_weights
from .pairs import launch_gradient


class Written(NamedTuple):
    """Gradients of y, x, mu, stds and log weights, None where none is wanted."""

    y: Tensor | None
    x: Tensor | None
    mu: Tensor | None
    stds: Tensor | None
    log_weights: Tensor | None  # (M,) float64


class Weights(NamedTuple):
    """What pairs of a block weigh in gradients, None where none needs it; 0 beyond N and M."""

    by_sample: Tensor | None  # (padded N, padded M), of q
    by_component: Tensor | None  # (padded M, padded N), the same
    of_g: Tensor | None  # (padded N, padded M)
    of_k: Tensor | None


def weigh(
    block: Pairs,
    upstream: Tensor,  # (5, n or 1)
    state: Tensor,  # (5, n)
    sizes: tuple[int, int],  # N and M of the mixture
    to: Written,
    careful: bool,
    acc: torch.dtype,
) -> Weights:
    n, m, device = block.mixture.samples, block.mixture.components, state.device
    largest, tile = block.tile(dtype_of(block.inputs)), block.tile(acc)
    n = _padded(n, max(largest.SAMPLES, PAIRS_PADDING))
    m = _padded(m, max(largest.COMPONENTS, PAIRS_PADDING))

    def matrix(needed: bool, *shape: int) -> Tensor | None:
        dtype = dtype_of(block.inputs)
        return torch.empty(shape, dtype=dtype, device=device) if needed else None

    of_stds = to.stds is not None
    weights = Weights(
        matrix(of_stds or to.x is not None or to.mu is not None, n, m),
        matrix(to.y is not None, m, n),
        matrix(of_stds, n, m),
        matrix(to.log_weights is not None or (of_stds and block.of_samples is not None), n, m),
    )
    tiles = n // tile.SAMPLES, m // tile.COMPONENTS
    programs = tiles[0] * tiles[1]
    own = block.labels.own
    launch(
        weigh_kernel,
        careful_programs(programs, device) if careful else programs,
        *block.arguments(),
        upstream,
        upstream.shape[1] > 1,
        state,
        sizes[0],
        sizes[1] - int(own is not None and own.left_out),
        *weights,
        *tiles,
        **block.constants(careful, acc),
    )
    return weights


class Sums(NamedTuple):
    """Of the weights of a block, over one of its roles."""

    block: Pairs
    careful: bool
    later_samples: bool  # other samples of the same components were before
    later_components: bool

    def over_samples(self, weights: Tensor | None, active: Tensor | None, to: Tensor) -> None:
        """(M, S), on top of what other samples have given where there are any."""
        assert weights is not None
        self._sum(weights.T, active, to, self.block.mixture.samples, self.later_samples)

    def over_components(self, weights: Tensor | None, to: Tensor) -> None:
        """(N, S)"""
        assert weights is not None
        active, count = self.block.where.component_active, self.block.mixture.components
        self._sum(weights, active, to, count, self.later_components)

    def _sum(
        self, weights: Tensor, active: Tensor | None, to: Tensor, summed: int, add: bool
    ) -> None:
        sum_weights(
            weights, active, self.block.where.irregular, to, summed, add=add, careful=self.careful
        )


def samples_gradient(
    block: Pairs, weights: Weights, d_y: Tensor, sums: Sums, acc: torch.dtype
) -> None:
    """Of y; where programs share the components, by way of a part of each."""
    mixture, (_, S, E) = block.mixture, block.inputs[0].shape
    count, add = mixture.samples, int(sums.later_components)
    dtype, device = dtype_of(block.inputs), d_y.device
    splits, per_split = gradient_splits(count, mixture.components, S * E, dtype, device)
    to = d_y, 1, mixture.components, mixture.sample_rows[0], add
    if splits > 1:
        parts = torch.empty((splits, count, S, E), dtype=dtype, device=device)
        to = parts, splits, per_split, 0, 0
    arguments = *block.common(), weights.by_component, *to
    launch_gradient(
        samples_gradient_kernel, block.inputs, count, splits, sums.careful, acc, *arguments
    )
    if splits > 1:
        size = count * S * E
        launch(
            add_gradients_kernel,
            ceil_div(size, ADD_GRADIENTS["BLOCK"]),
            parts,
            block.where.irregular,
            d_y[slice(*mixture.sample_rows)],
            size,
            splits,
            add,
            CAREFUL=sums.careful,
            **ADD_GRADIENTS,
        )


def components_gradient(
    block: Pairs, weights: Weights, to: Written, sums: Sums, acc: torch.dtype
) -> None:
    """Of x, mu and stds."""
    of_logs, count = None, block.mixture.components
    if to.stds is not None:
        of_logs = torch.empty(
            (count, block.inputs[0].shape[1]), dtype=torch.float64, device=to.stds.device
        )
        # Of this block: so is the gradient that it enters.
        of_block = sums._replace(later_samples=False)
        of_block.over_samples(weights.of_g, block.where.sample_active, of_logs)
    launch_gradient(
        components_gradient_kernel,
        block.inputs,
        count,
        1,
        sums.careful,
        acc,
        *block.common(),
        weights.by_sample,
        of_logs,
        *(None, None, None),
        *to[1:4],
        int(sums.later_samples),
    )


def own_stds_gradient(
    pairs: Pairs,
    of_own: Tensor,  # (N, S) float64
    d_stds: Tensor | None,
    add: bool,
    careful: bool,
    acc: torch.dtype,
) -> None:
    """Of the samples' own, on top of what they have as components."""
    start, stop = pairs.mixture.sample_rows
    where, (_, S, E) = pairs.where, pairs.inputs[0].shape
    bounds = 0, start, 0, stop - start, S, E
    launch_gradient(
        components_gradient_kernel,
        pairs.inputs,
        stop - start,
        1,
        careful,
        acc,
        *(*map(strided, pairs.inputs), *(None,) * 4, where.irregular, *bounds),
        *(None, None),
        *(pairs.mixture.sample_eps, where.sample_active, of_own),
        *(None, None, d_stds, int(add)),
    )


def _padded(size: int, unit: int) -> int:
    return ceil_div(size, unit) * unit
