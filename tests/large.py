"""Inputs that are too large to be compared whole, made where they are used.

Once eps is known, the Jensen loss is a sum over positions and features, and a gradient depends on
its own position only: a sample is compared. Its eps is that of the whole, because the least stds
are in it.
"""

import contextlib

import fused_mi
import pytest
import torch
from cases import DEVICE, gradients, mi
from oracle import LOG_DETERMINANT, MAHALANOBIS, STD_LOG, TOTAL
from rules import assert_by_rule10

PAIR_ELEMENTS = 1 << 22  # pairs times positions times features that the host compares


def large_inputs(shape, dtype, density=0.9):
    """(means, stds, mask, clean, noisy); the least stds are at position 0 and feature 0."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal():
        return torch.randn(shape, generator=generator, dtype=dtype, device=DEVICE)

    clean, means = normal(), normal().mul_(0.3)
    stds = torch.rand(shape, generator=generator, dtype=dtype, device=DEVICE).add_(0.5)
    stds[:, 0, 0] = 0.4
    mask = torch.rand(shape[:2], generator=generator, device=DEVICE) < density
    mask[:, 0] = True
    return [means, stds, mask, clean, normal().mul_(stds).add_(means).add_(clean)]


def without_copies(inputs):
    """Leaves that share the memory of the inputs."""
    return [t.detach().requires_grad_(t.dim() == 3) for t in inputs]


def assert_sample(inputs, **options):
    """The value as the plain implementation has it, which adds up in float64; by the rule of the
    small inputs, a sample of the gradients."""
    leaves = without_copies(inputs)
    value = mi(leaves, **options)
    found = gradients(value, leaves)
    plain = {}
    with torch.no_grad(), fused_mi.use_backend("reference"):
        mi(inputs, losses=plain, **options)
    scale = sum(abs(plain[name].item()) for name in (MAHALANOBIS, LOG_DETERMINANT, STD_LOG))
    error = abs(value.item() - plain[TOTAL].item())
    assert error <= 8 * torch.finfo(value.dtype).eps * scale, error
    rows, positions, features = inputs[0].shape
    roles = rows if options.get("pairing") == "leave_one_out" else rows // 2
    assert_by_rule10(None, *sampled((found, inputs), positions, features, roles**2), options)


def sampled(groups, positions, features, pairs):
    """Of tensors (B, S, E) or (B, S) some positions and features, the first and the last among
    them, on the host: no more than PAIR_ELEMENTS allows, and at least two of each."""
    budget = PAIR_ELEMENTS // pairs
    count = positions if budget >= positions * features else 8 if budget >= 32 else 2
    s = spread(positions, min(positions, count))
    e = spread(features, min(features, max(2, budget // len(s))))

    def cut(t):
        columns = torch.stack([t[:, k].cpu() for k in s.tolist()], 1)
        return columns[..., e] if t.dim() == 3 else columns

    return [[cut(t) for t in tensors] for tensors in groups]


def spread(size, count):
    return torch.linspace(0, size - 1, count, dtype=torch.float64).round().long().unique()


@contextlib.contextmanager
def as_memory_allows():
    try:
        yield
    except torch.OutOfMemoryError as error:
        pytest.skip(f"out of memory: {str(error).splitlines()[0]}")
