"""The building blocks of a backend as differentiable functions: of the one that is forced, or that
serves the device."""

import importlib

import torch
from cases import DEVICE
from fused_mi._building_blocks import Own
from fused_mi._terms import terms_of_rows
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
    """Of each sample, or the means."""

    @staticmethod
    def forward(ctx, energies, own, each):
        rows = module("logsumexp").logsumexp(energies, own)
        ctx.own, ctx.each = own, each
        ctx.save_for_backward(energies, rows)
        partners = Own.partners(own, energies.shape[-1])
        return terms_of_rows(rows, partners) if each else module("logsumexp").means(rows, partners)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        energies, rows = ctx.saved_tensors
        if not ctx.each:
            upstream = upstream[..., None] / energies.shape[2]
        pull = module("logsumexp").logsumexp_backward
        return pull(upstream, energies, rows, ctx.own), None, None


def moments(y, x, mu, stds, *mixtures):
    """Sums over all pairs of q, g and k for each mixture."""
    return [
        sums.unbind() for sums in _OfMixtures.apply("moments", mixtures, y, x, mu, stds).unbind()
    ]


def pairs(y, x, mu, stds, *mixtures):
    """Energies (D, 3, N, M)."""
    return _OfMixtures.apply("pairs", mixtures, y, x, mu, stds)


def logsumexp(energies, own, each=False):
    """Terms (D, 5), the means over the samples, or (D, 5, N) those of each. `own`: an `Own`, None,
    or the component that sample 0 does not meet."""
    own = Own(own) if isinstance(own, int) else own
    return _Logsumexp.apply(energies, own, each)
