"""Sums over blocks of (position, feature), recomputed block by block in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._batched import element_by_element, is_batched

Block = tuple[slice, slice]
"""Positions and features of one block: `tensor[..., block[0], block[1]]`."""
BlockFunction = Callable[..., tuple[Tensor, ...]]
"""`(block, *slices of the tensors) -> terms of the sums`; it closes over all constants."""
BlockGradient = Callable[..., Sequence[Tensor | None]]
"""`(block, upstream, wanted, *slices) -> gradient of each slice`, None where `wanted` is false."""
WHOLE: Block = (slice(None), slice(None))

# One temporary of a block: in the caches of a CPU; elsewhere large enough to hide its launch.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 24}


def blocks(
    rows: int, positions: int, features: int, device: torch.device, min_features: int = 64
) -> list[Block]:
    """Cut (positions, features) so that `rows` times a block is about a cache in size.

    Runs shorter than `min_features` would waste the cache lines of an input that has `rows` rows.
    """
    budget = _BLOCK_ELEMENTS["cpu" if device.type == "cpu" else "other"] // max(rows, 1)
    if positions * features <= budget:
        return [WHOLE]
    width = min(max(budget, min_features), max(features, 1))
    height = max(budget // width, 1)
    found = [
        (slice(s, s + height), slice(e, e + width))
        for s in range(0, max(positions, 1), height)
        for e in range(0, max(features, 1), width)
    ]
    return found if len(found) > 1 else [WHOLE]


def sum_over_blocks(
    function: BlockFunction, cut: list[Block], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """`sum over blocks of function(block, *slices)`, holding the temporaries of one block at a
    time; not differentiable.

    Args:
        function: maps a block and the slices of `tensors` to a tuple of terms, of the same shapes
            for every block.
        cut: the blocks, from `blocks`.
        tensors: floating tensors (..., S, E), or None.
    """
    totals: tuple[Tensor, ...] = ()
    for block in cut:
        terms = function(block, *slices(block, tensors))
        totals = tuple(a + b for a, b in zip(totals, terms, strict=True)) if totals else terms
    return totals


def gradient_over_blocks(
    gradient: BlockGradient,
    cut: list[Block],
    upstream: tuple[Tensor, ...],
    wanted: Sequence[bool],
    *tensors: Tensor | None,
) -> list[Tensor | None]:
    """The gradient of `sum_over_blocks` from that of one block; not differentiable.

    Args:
        gradient: of one block; `derived_gradient(function)` where nothing better is known.
        upstream: gradient of each term.
        wanted: which of `tensors` need a gradient; the others' entry is None.
    """
    result = [
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if t is not None and needed else None
        for t, needed in zip(tensors, wanted, strict=True)
    ]
    for block in cut:
        parts = gradient(block, upstream, wanted, *slices(block, tensors))
        for total, part in zip(result, parts, strict=True):
            if total is not None and part is not None:
                total[..., block[0], block[1]] = part
    return result


def slices(block: Block, tensors: Sequence[Tensor | None]) -> list[Any]:
    """Of each tensor (..., S, E) the part in a block; None stays."""
    if block == WHOLE:
        return list(tensors)
    return [t if t is None else t[..., block[0], block[1]] for t in tensors]


def _add(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sums of two lists of gradients, None where either has none."""
    return [None if p is None or q is None else p + q for p, q in zip(a, b, strict=True)]


def sum_of_gradients(
    gradients: Sequence[BlockGradient],
    cut: list[Block],
    upstream: Tensor,
    wanted: Sequence[bool],
    *tensors: Tensor | None,
) -> list[Tensor | None]:
    """The gradient of several sums over blocks, one row of `upstream` for each.

    With grad mode on it is taken without blocks, and is differentiable.
    """

    def gradient(
        block: Block, upstream: tuple[Tensor, ...], wanted: Sequence[bool], *inputs: Tensor
    ) -> Sequence[Tensor | None]:
        parts = [
            of_one(block, row.unbind(), wanted, *inputs)
            for of_one, row in zip(gradients, upstream, strict=True)
        ]
        return functools.reduce(_add, parts)

    if torch.is_grad_enabled():
        return list(gradient(WHOLE, upstream.unbind(), wanted, *tensors))  # type: ignore[arg-type]
    return gradient_over_blocks(gradient, cut, upstream.unbind(), wanted, *tensors)


def derived_gradient(function: BlockFunction) -> BlockGradient:
    """The gradient of a block by autograd; itself differentiable."""

    def gradient(
        block: Block, upstream: tuple[Tensor, ...], wanted: Sequence[bool], *parts: Tensor
    ) -> Sequence[Tensor | None]:
        chosen = [i for i, needed in enumerate(wanted) if needed]

        def of_chosen(*values: Tensor) -> tuple[Tensor, ...]:
            replaced = dict(zip(chosen, values, strict=True))
            return function(block, *(replaced.get(i, t) for i, t in enumerate(parts)))

        pull_back = torch.func.vjp(of_chosen, *(parts[i] for i in chosen))[1]
        found = dict(zip(chosen, pull_back(upstream), strict=True))
        return [found.get(i) for i in range(len(parts))]

    return gradient


class _BlockSum(torch.autograd.Function):
    @staticmethod
    def forward(function: BlockFunction, cut: list[Block], *tensors: Tensor) -> tuple[Tensor, ...]:
        return sum_over_blocks(function, cut, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, ctx.cut, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        gradient, wanted = derived_gradient(ctx.function), ctx.needs_input_grad[2:]
        tensors = ctx.saved_tensors

        def pull(upstream: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            if torch.is_grad_enabled():
                # create_graph: one block keeps the graph of the gradient simple.
                return gradient(WHOLE, tuple(upstream), wanted, *tensors)
            return gradient_over_blocks(gradient, ctx.cut, tuple(upstream), wanted, *tensors)  # type: ignore[arg-type]

        if not torch.compiler.is_compiling() and any(map(is_batched, upstream)):
            return None, None, *element_by_element(pull, upstream)
        return None, None, *pull(upstream)


def differentiable_sum_over_blocks(
    function: BlockFunction, cut: list[Block], *tensors: Tensor
) -> tuple[Tensor, ...]:
    """`sum_over_blocks` for autograd: the gradient recomputes each block, and a second derivative
    holds the whole graph of the first."""
    whole = torch._C._are_functorch_transforms_active()
    if not torch.compiler.is_compiling():  # which cannot see the others
        whole = whole or forward_ad._current_level >= 0 or torch._C._is_tracing()
    if whole:
        return function(WHOLE, *tensors)
    return _BlockSum.apply(function, cut, *tensors)  # type: ignore[no-any-return]
