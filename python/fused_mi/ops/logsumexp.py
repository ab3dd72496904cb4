"""Operator `logsumexp`: from the energies of all pairs to the terms of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import logsumexp as reference
from ._backends import choose
from ._library import define, differentiate


def _forward(energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = choose("logsumexp", energies).logsumexp(energies, own)
    return found


def _forward_fake(energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    directions, _, samples, _ = energies.shape
    return energies.new_empty((directions, 5)), energies.new_empty((directions, 4, samples))


def _backward(upstream: Tensor, energies: Tensor, state: Tensor, own: int | None) -> Tensor:
    backend = choose("logsumexp", energies)
    found: Tensor = backend.logsumexp_backward(upstream, energies, state, own)
    return found


def _backward_fake(upstream: Tensor, energies: Tensor, state: Tensor, own: int | None) -> Tensor:
    return energies.new_empty(energies.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    energies, ctx.own = inputs
    _, state = output
    ctx.mark_non_differentiable(state)
    ctx.save_for_backward(energies, state)


def _pull_back(ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    return _gradient(upstream, *ctx.saved_tensors, ctx.own), None


def _save_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, energies, _, ctx.own = inputs
    ctx.save_for_backward(upstream, energies)


def _pull_back_gradient(ctx: Any, of_gradient: Tensor) -> tuple[Any, ...]:
    def plain(upstream: Tensor, energies: Tensor) -> Tensor:
        with torch.enable_grad():
            return reference.logsumexp_backward(upstream, energies, None, ctx.own)

    second = torch.func.vjp(plain, *ctx.saved_tensors)[1](of_gradient)
    return *second, None, None


_logsumexp = differentiate(
    define(
        "logsumexp(Tensor energies, SymInt? own) -> (Tensor terms, Tensor state)",
        _forward,
        _forward_fake,
    ),
    _save,
    _pull_back,
)
_gradient = differentiate(
    define(
        "logsumexp_backward(Tensor upstream, Tensor energies, Tensor state, SymInt? own) -> Tensor",
        _backward,
        _backward_fake,
    ),
    _save_of_gradient,
    _pull_back_gradient,
)


def logsumexp(energies: Tensor, own: int | None) -> Tensor:
    """Terms of `mean_i -log(1/M sum_l exp(-e_il))`, of energies e = q + g - k, in nats.

    Args:
        energies: (D, 3, N, M): q, g and k of every pair, for each of D mixtures.
        own: the component that sample 0 does not meet, the next one sample 1, and so on; M then
            counts one component less. None: all meet.

    Returns:
        (D, 5): the value, the means of q and g weighted by the responsibilities `softmax_l(-e)`,
        `log M` minus their mean entropy, and minus the weighted mean of k; each differentiable.
    """
    terms, _ = _logsumexp(energies, own)
    return terms  # type: ignore[no-any-return]
