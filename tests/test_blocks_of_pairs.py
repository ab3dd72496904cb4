"""logsumexp with more pairs than memory should hold at once: by blocks of samples."""

import fused_mi
import pytest
import torch
from cases import DEVICE
from fused_mi import _estimators
from marks import combine, pairing
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, POSITIONS, FEATURES = 8, 2, 5


def batch(spoiled):
    generator = torch.Generator().manual_seed(0)
    shape = 4, ROWS, POSITIONS, FEATURES
    mu, sigma, x, y = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(ROWS, POSITIONS, generator=generator) < 0.5
    mask[:, 1] = False
    mask[3, 1] = True  # no partner shares it
    if spoiled:
        mu[3, 1] = y[3, 1] = torch.nan
    return [t.to(DEVICE) for t in (mu, sigma.abs() + 0.5, x, y)], mask.to(DEVICE)


def evaluate(inputs, mask, **options):
    mu, sigma, x, y = leaves = [t.detach().requires_grad_() for t in inputs]
    losses = {}
    value = fused_mi.mutual_information_sub_batch(
        mu, sigma, mask, x, y, losses=losses, estimator="logsumexp", **options
    )
    return [value, *losses.values(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("pairs_at_once", [1, pytest.param(13, marks=pytest.mark.every_backend)])
@combine
@pairing
def test_blocks_give_what_all_pairs_give(monkeypatch, pairing, combine, pairs_at_once):
    inputs, mask = batch(spoiled=combine)
    combination = {"combine_noise_masks_for_mutual_information_sub_batches": combine}
    at_once = evaluate(inputs, mask, pairing=pairing, **combination)
    monkeypatch.setattr(_estimators, "PAIRS_AT_ONCE", pairs_at_once)
    by_blocks = evaluate(inputs, mask, pairing=pairing, **combination)
    assert at_once[0].isfinite()
    for one, other in zip(at_once, by_blocks, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.every_backend
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("leave_own_out", [False, True])
def test_blocks_of_samples_keep_their_tokens(monkeypatch, leave_own_out, reduction):
    generator = torch.Generator().manual_seed(1)
    noisy, centers, stds, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for shape in ((7, 3), (5, 3), (5, 3), (5,))
    )
    tokens = torch.tensor([4, 0, 2, 2, 1, 3, 0], device=DEVICE)
    options = {"leave_own_out": leave_own_out, "reduction": reduction}
    found = []
    for pairs_at_once in (1 << 24, 11):  # two samples
        monkeypatch.setattr(_estimators, "PAIRS_AT_ONCE", pairs_at_once)
        given = noisy, centers, stds.abs() + 0.5, weights.log_softmax(0)
        leaves = [t.detach().requires_grad_() for t in given]
        value = fused_mi.token_information(leaves[0], tokens, *leaves[1:], **options)
        upstream = torch.linspace(-1, 2, value.numel(), dtype=value.dtype, device=DEVICE)
        pulled = torch.autograd.grad(value, leaves, upstream.view(value.shape))
        found.append([value, *pulled])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """The most elements of a result of an operator."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for tensor in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def test_no_tensor_has_all_pairs(monkeypatch):
    rows, most = 128, 256
    shape = 4, rows, 1, 4
    mu, sigma, x, y = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    mask = torch.ones(rows, 1, dtype=torch.bool)
    with Largest() as at_once:
        evaluate((mu, sigma, x, y), mask)
    monkeypatch.setattr(_estimators, "PAIRS_AT_ONCE", most)
    with Largest() as by_blocks:
        evaluate((mu, sigma, x, y), mask)
    assert at_once.elements >= 3 * (rows // 2) ** 2
    assert by_blocks.elements <= 3 * most


@pytest.mark.every_backend
@pytest.mark.parametrize("rows", [(13, 5), (5, 13)])
def test_more_samples_than_components_and_fewer(monkeypatch, rows):
    """Of an entropy they are rows of different tensors: blocks of samples meet all components."""
    generator = torch.Generator().manual_seed(0)
    samples, components = (
        torch.randn(3, n, POSITIONS, FEATURES, generator=generator, dtype=torch.float64)
        for n in rows
    )
    given = [components[0], samples[0], components[1], components[2].abs() + 0.5]
    masks = [torch.rand(n, POSITIONS, generator=generator) < 0.7 for n in rows]

    def entropy():
        leaves = [t.to(DEVICE, copy=True).requires_grad_() for t in given]
        mask, component_mask = (m.to(DEVICE) for m in masks)
        value = fused_mi.gaussian_mixture_entropy(
            *leaves, mask, component_mask=component_mask, estimator="logsumexp"
        )
        return [value, *torch.autograd.grad(value, leaves)]

    at_once = entropy()
    monkeypatch.setattr(_estimators, "PAIRS_AT_ONCE", 20)
    for one, other in zip(entropy(), at_once, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
