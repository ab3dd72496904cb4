"""Components with weights, of all ranks: each rank has the weights of its own."""

import math

import fused_mi
import pytest
import torch
from cases import MASK, mi_inputs
from on_ranks import share, weighted_sum
from pool import pool

WEIGHTS = {
    "gaussian_mixture_mahalanobis_distance_loss": 0.3,
    "gaussian_mixture_log_constants_and_determinant_loss": -0.4,
    "gaussian_mixture_assignment_loss": 1.7,
}


def entropy(tensors, group, by_entries, **options):
    """Value, entries, and gradients of all that is floating, weights last."""
    clean, noisy, means, stds, mask, component_mask, weights = tensors
    leaves = [t.clone().requires_grad_() for t in (clean, noisy, means, stds, weights)]
    losses = {}
    value = fused_mi.gaussian_mixture_entropy(
        *(*leaves[:4], mask, losses),
        component_mask=component_mask,
        component_log_weights=leaves[4],
        estimator="logsumexp",
        group=group,
        **options,
    )
    grads = []
    if value.requires_grad and value.dim() == 0:
        (weighted_sum(losses, WEIGHTS) if by_entries else value).backward()
        grads = [t.grad for t in leaves]
    return value.detach(), {name: entry.detach() for name, entry in losses.items()}, grads


def of_ranks(rank, tensors, sizes, by_entries, options):
    import torch.distributed as dist

    clean, noisy, means, stds, mask, component_mask, weights = tensors
    components = share(rank, (clean, means, stds, component_mask, weights), [m for _, m in sizes])
    noisy, mask = share(rank, (noisy, mask), [n for n, _ in sizes])
    mine = components[0], noisy, components[1], components[2], mask, *components[3:]
    return entropy(mine, fused_mi.Ranks(dist.group.WORLD, averaged=1), by_entries, **options)


def inputs_of(masked, features, dtype=torch.float64):
    means, stds, component_mask, clean, _ = mi_inputs(5, 3, features, dtype)
    others = mi_inputs(5, 3, features, dtype, seed=1)
    weights = torch.randn(5, dtype=dtype).log_softmax(0)
    weights[1] = -math.inf  # is not there
    stds[1] = 1e-3
    mask = component_mask if masked else None
    return clean, others[4], means, stds, others[MASK], mask, weights


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("by_entries", [True, False])
@pytest.mark.parametrize("features", [4, 8])  # spread by samples, by features
@pytest.mark.parametrize("sizes", [((2, 4), (3, 1)), ((0, 5), (5, 0)), ((1, 2), (0, 0), (4, 3))])
def test_entropy(sizes, features, by_entries, reduction, masked):
    tensors, options = inputs_of(masked, features), {"reduction": reduction}
    found = pool(len(sizes)).run(of_ranks, tensors, sizes, by_entries, options)
    value, losses, grads = entropy(tensors, None, by_entries, **options)
    for i, wanted in enumerate(grads):
        grad = torch.cat([of_rank[2][i] for of_rank in found])
        torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-12)
    assert (grads[4][1], grads[0][1].abs().max()) == (0, 0)
    for of_rank in found:
        assert torch.equal(of_rank[0], found[0][0])
        torch.testing.assert_close(of_rank[0], value, rtol=1e-12, atol=1e-12)
        for name, entry in losses.items():
            torch.testing.assert_close(of_rank[1][name], entry, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_single_samples(masked):
    tensors, options, sizes = inputs_of(masked, 4), {"reduction": "none"}, ((2, 4), (3, 1))
    found = pool(2).run(of_ranks, tensors, sizes, False, options)
    value, losses, _ = entropy(tensors, None, False, **options)
    torch.testing.assert_close(torch.cat([of_rank[0] for of_rank in found]), value)
    for name, entry in losses.items():
        torch.testing.assert_close(torch.cat([of_rank[1][name] for of_rank in found]), entry)


def gradient_of_weights(rank, tensors, sizes):
    import torch.distributed as dist

    *rest, weights = tensors
    clean, noisy, means, stds, mask, _ = rest
    clean, means, stds, weights = share(rank, (clean, means, stds, weights), [m for _, m in sizes])
    noisy, mask = share(rank, (noisy, mask), [n for n, _ in sizes])
    weights.requires_grad_()
    value = fused_mi.gaussian_mixture_entropy(
        *(clean, noisy, means, stds, mask),
        component_log_weights=weights,
        estimator="logsumexp",
        group=dist.group.WORLD,
    )
    value.backward()
    return weights.grad


@pytest.mark.parametrize("features", [4, 8])
def test_weights_alone(features):
    """Times the number of ranks, as everything that a trainer averages; they add up to -1."""
    tensors = inputs_of(False, features)
    found = torch.cat(pool(2).run(gradient_of_weights, tensors, ((2, 4), (3, 1))))
    assert found.sum().item() == pytest.approx(-2)
    assert found[1] == 0 and (found <= 0).all()
