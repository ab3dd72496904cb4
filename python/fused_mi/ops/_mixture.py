"""What the operators over mixtures share: schema, dispatch, and gradients of first and second
order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..reference.mixture import Mixture, flatten, unflatten
from ._backends import choose
from ._library import define, differentiate

_CONSTANTS = (
    "Tensor sample_mask, Tensor component_mask, Tensor component_eps, Tensor? sample_eps,"
    " SymInt[] rows, bool exclude_diagonal"
)
_NO_GRADIENTS = (None,) * 6  # of the constants


def mixture_operator(
    name: str, mu: str, results: str, fake: Callable[..., Any], reference: ModuleType
) -> Callable[..., Any]:
    """Define `name` and `name_backward`; the backends' modules have functions of the same names.

    Args:
        name: `name(y, x, mu, stds, mixtures)` is what a backend implements, and
            `name_backward(upstream, y, x, mu, stds, state, mixtures, wanted)`.
        mu: type of mu in the schema.
        results: of the schema: one tensor, and possibly a state for the backward pass.
        fake: `(y, x, mu, stds, rows, exclude_diagonal) -> results`, empty.
        reference: its `name_backward` is differentiable.

    Returns:
        `(y, x, mu, stds, *mixtures) -> results`.
    """
    tensors = f"Tensor y, Tensor x, {mu} mu, Tensor stds"

    def forward(*arguments: Any) -> Any:
        inputs, constants = arguments[:4], arguments[4:]
        backend = choose(name, *(t for t in inputs if t is not None))
        return getattr(backend, name)(*inputs, unflatten(*constants))

    def forward_fake(*arguments: Any) -> Any:
        return fake(*arguments[:4], *arguments[-2:])

    def backward(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, state, constants, wanted = _parts(arguments)
        backend = choose(name, *(t for t in inputs if t is not None))
        found = getattr(backend, f"{name}_backward")(
            upstream, *inputs, state, unflatten(*constants), wanted
        )
        return [gradient for gradient in found if gradient is not None]

    def backward_fake(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, _, _, wanted = _parts(arguments)
        return [t.new_empty(t.shape) for t, needed in zip(inputs, wanted, strict=True) if needed]

    forward_operator = define(
        f"{name}({tensors}, {_CONSTANTS}) -> {results}", forward, forward_fake
    )
    backward_operator = define(
        f"{name}_backward(Tensor upstream, {tensors}, Tensor? state, {_CONSTANTS}, bool[] wanted)"
        " -> Tensor[]",
        backward,
        backward_fake,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        state = output[1] if isinstance(output, tuple) else None
        if state is not None:
            ctx.mark_non_differentiable(state)
        *constants, ctx.rows, ctx.exclude_diagonal = inputs[4:]
        ctx.save_for_backward(*inputs[:4], state, *constants)

    def pull_back(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
        wanted = list(ctx.needs_input_grad[:4])
        found = gradient(upstream, *ctx.saved_tensors, ctx.rows, ctx.exclude_diagonal, wanted)
        return *_scatter(iter(found), wanted), *_NO_GRADIENTS

    def save_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        upstream, *arguments = inputs
        tensors, _, (*constants, ctx.rows, ctx.exclude_diagonal), ctx.wanted = _parts(arguments)
        ctx.save_for_backward(upstream, *tensors, *constants)

    def pull_back_gradient(ctx: Any, *of_gradients: Any) -> tuple[Any, ...]:
        upstream, y, x, mu, stds, *constants = ctx.saved_tensors
        mixtures = unflatten(*constants, ctx.rows, ctx.exclude_diagonal)  # type: ignore[call-arg]
        present = [t is not None for t in (upstream, y, x, mu, stds)]

        def plain(*values: Tensor) -> list[Tensor]:
            given = _scatter(iter(values), present)
            with torch.enable_grad():  # differentiable, and without blocks
                parts = getattr(reference, f"{name}_backward")(*given, None, mixtures, ctx.wanted)
            return [part for part in parts if part is not None]

        values = [t for t in (upstream, y, x, mu, stds) if t is not None]
        as_list = isinstance(of_gradients[0], (list, tuple))  # by an operator, not by a function
        second = torch.func.vjp(plain, *values)[1](
            list(of_gradients[0] if as_list else of_gradients)
        )
        return *_scatter(iter(second), present), None, *_NO_GRADIENTS, None

    value = differentiate(forward_operator, save, pull_back)
    gradient = differentiate(backward_operator, save_of_gradient, pull_back_gradient)

    def call(y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor, *mixtures: Mixture) -> Any:
        return value(y, x, mu, stds, *flatten(mixtures))

    return call


def _parts(arguments: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Tensors, state, constants and `wanted` of the arguments of a gradient."""
    return arguments[:4], arguments[4], arguments[5:-1], arguments[-1]


def _scatter(found: Iterator[Any], wanted: Sequence[bool]) -> list[Any]:
    return [next(found) if needed else None for needed in wanted]
