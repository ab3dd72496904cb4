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
