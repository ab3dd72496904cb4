"""Sums over blocks of (position, feature), recomputed block by block in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Block = tuple[slice, slice]
"""Positions and features of one block: `tensor[..., block[0], block[1]]`."""
BlockFunction = Callable[..., tuple[Tensor, ...]]
"""`(block, *slices of the tensors) -> terms of the sums`; whatever carries no gradient it closes over."""

# Temporaries of one block: in the caches of a CPU, and large enough elsewhere to hide the cost of a launch.
_BLOCK_ELEMENTS = {"cpu": 1 << 17, "other": 1 << 24}


def working_dtype(device: torch.device) -> torch.dtype:
    """The dtype of all arithmetic on `device`: float64, or float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(
    rows: int, positions: int, features: int, device: torch.device, min_features: int = 64
) -> list[Block]:
    """Cut (positions, features) so that `rows` times a block is about a cache (or a launch) in size.

    Runs shorter than `min_features` would waste the cache lines of an input that has `rows` rows.
    """
    budget = _BLOCK_ELEMENTS["cpu" if device.type == "cpu" else "other"] // max(rows, 1)
    width = min(max(budget, min_features), max(features, 1))
    height = max(budget // width, 1)
    return [
        (slice(s, s + height), slice(e, e + width))
        for s in range(0, max(positions, 1), height)
        for e in range(0, max(features, 1), width)
    ]


class _BlockSum(torch.autograd.Function):
    @staticmethod
    def forward(function: BlockFunction, cut: list[Block], *tensors: Tensor) -> tuple[Tensor, ...]:
        totals: tuple[Tensor, ...] = ()
        for block in cut:
            terms = function(block, *(t[..., block[0], block[1]] for t in tensors))
            totals = tuple(a + b for a, b in zip(totals, terms, strict=True)) if totals else terms
        return totals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, ctx.cut, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]

        def gradients(block: Block) -> tuple[Tensor, ...]:
            slices = [t[..., block[0], block[1]] for t in tensors]

            def of_wanted(*chosen: Tensor) -> tuple[Tensor, ...]:
                replaced = dict(zip(wanted, chosen, strict=True))
                return ctx.function(block, *(replaced.get(i, t) for i, t in enumerate(slices)))

            _, pull_back = torch.func.vjp(of_wanted, *(slices[i] for i in wanted))
            return pull_back(upstream)

        result: list[Tensor | None] = [None] * len(tensors)
        if torch.is_grad_enabled():  # create_graph: one block keeps the graph of the gradient simple
            for i, gradient in zip(wanted, gradients((slice(None), slice(None))), strict=True):
                result[i] = gradient
        else:
            for i in wanted:
                result[i] = torch.empty(tensors[i].shape, dtype=tensors[i].dtype, device=tensors[i].device)
            for block in ctx.cut:
                for i, gradient in zip(wanted, gradients(block), strict=True):
                    result[i][..., block[0], block[1]] = gradient  # type: ignore[index]
        return None, None, *result


def sum_over_blocks(function: BlockFunction, cut: list[Block], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`sum over blocks of function(block, *slices)`, holding the temporaries of one block at a time.

    Args:
        function: maps a block and the slices of `tensors` to a tuple of terms, of the same shapes for every block.
        cut: the blocks, from `blocks`.
        tensors: floating tensors (..., S, E); they receive gradients.

    The gradient recomputes each block; a second derivative holds the whole graph.
    """
    return _BlockSum.apply(function, cut, *tensors)  # type: ignore[no-any-return]
