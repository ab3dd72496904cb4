"""The building blocks of a backend as differentiable functions: of the one that is forced, or that
serves the device."""

import importlib

import torch
from cases import DEVICE
from fused_mi.ops import _backends


def module(name):
    backend = _backends._choose("jensen", DEVICE.type, _backends.forced()).backend
    return importlib.import_module(f"{_backends._PACKAGES[backend]}.{name}")


class _OfMixtures(torch.autograd.Function):
    """`moments` or `pairs` of (y, x, mu, stds); a state is kept for the backward pass."""

    @staticmethod
    def forward(ctx, name, mixtures, *inputs):
        ctx.name, ctx.mixtures = name, mixtures
        found = getattr(module(name), name)(*inputs, mixtures)
        result, state = found if isinstance(found, tuple) else (found, None)
        ctx.save_for_backward(*inputs, state)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        *inputs, state = ctx.saved_tensors
        pull = getattr(module(ctx.name), f"{ctx.name}_backward")
        wanted = ctx.needs_input_grad[2:]
        return None, None, *pull(upstream, *inputs, state, ctx.mixtures, wanted)


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, energies, own):
        terms, state = module("logsumexp").logsumexp(energies, own)
        ctx.own = own
        ctx.save_for_backward(energies, state)
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        pull = module("logsumexp").logsumexp_backward
        return pull(upstream, *ctx.saved_tensors, ctx.own), None


def moments(y, x, mu, stds, *mixtures):
    """Sums over all pairs of q, g and k for each mixture."""
    return [
        sums.unbind() for sums in _OfMixtures.apply("moments", mixtures, y, x, mu, stds).unbind()
    ]


def pairs(y, x, mu, stds, *mixtures):
    """Energies (D, 3, N, M)."""
    return _OfMixtures.apply("pairs", mixtures, y, x, mu, stds)


def logsumexp(energies, own):
    """Terms (D, 5)."""
    return _Logsumexp.apply(energies, own)
