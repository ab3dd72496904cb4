"""Embeddings (rows, E) with masks (rows,) are those of one position."""

import fused_mi
import pytest
import torch
from arguments import entropy_inputs
from cases import MASK, assert_same_bits, gradients, mi, mi_inputs
from marks import every_mode

pytestmark = pytest.mark.every_device  # the same code for every backend


def both(tensors):
    """Leaves (rows, E) and (rows, 1, E), and masks."""
    flat, deep = [], []
    for t in tensors:
        embeddings = t.is_floating_point()
        flat.append(t[:, 0].clone().requires_grad_(embeddings))
        deep.append(t.clone().requires_grad_(embeddings))
    return flat, deep


def assert_equal(function, tensors):
    """Values, and the gradients of a weighted sum of them."""
    flat, deep = both(tensors)
    ours, want = function(*flat), function(*deep)
    assert_same_bits([ours], [want])
    weights = torch.linspace(-1, 2, ours.numel(), device=ours.device, dtype=ours.dtype)
    pulls = (gradients((v.reshape(-1) * weights).sum(), t) for v, t in ((ours, flat), (want, deep)))
    of_ours, of_want = pulls
    assert_same_bits(of_ours, [g[:, 0] for g in of_want])


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mutual_information(options, dtype):
    inputs = mi_inputs(6, 1, 5, dtype, seed=1)
    inputs[MASK][:] = torch.tensor([1, 1, 0, 1, 0, 1], device=inputs[0].device)[:, None]
    assert_equal(lambda *t: mi(t, **options), inputs)
    assert_equal(fused_mi.MutualInformationLoss(**options), inputs)


@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
@pytest.mark.parametrize("masked", [True, False])
def test_entropy(estimator, masked):
    inputs, component_mask = entropy_inputs(5, 3, 1, 4, torch.float32)

    def entropy(clean, transformed, means, stds, mask, other):
        other = other if masked else None
        return fused_mi.gaussian_mixture_entropy(
            *(clean, transformed, means, stds, mask), component_mask=other, estimator=estimator
        )

    assert_equal(entropy, [*inputs, component_mask])


def test_pairwise_distance():
    (clean, transformed, _, stds, mask), component_mask = entropy_inputs(5, 3, 1, 4)
    distance = fused_mi.pairwise_square_mahalanobis_distance
    assert_equal(distance, [transformed, clean, stds, mask, component_mask])


@pytest.mark.parametrize("index", [0, 1, 3, 4], ids=["means", "stds", "clean", "noisy"])
def test_a_mixture_of_both_forms_is_named(index):
    flat, deep = both(mi_inputs(6, 2, 5))
    flat[index] = deep[index]
    with pytest.raises(ValueError, match=r"expected shape \(B, S"):
        mi(flat)


def test_a_mask_of_positions_is_named():
    flat, deep = both(mi_inputs(6, 2, 5))
    flat[MASK] = deep[MASK]
    with pytest.raises(ValueError, match=r"^noise_mask: expected shape \(B, S\) = \(6, 1\), got"):
        mi(flat)
