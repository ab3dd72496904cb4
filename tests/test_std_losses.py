"""The two losses of the stds alone."""

import math

import pytest
import torch
from cases import DEVICE
from fused_mi import gaussian_entropy_log_loss, masked_negative_log_mean

pytestmark = pytest.mark.every_device
both = pytest.mark.parametrize("function", [gaussian_entropy_log_loss, masked_negative_log_mean])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def stds_and_mask(dtype=torch.float64, shape=(4, 5, 3), mask_dims=2, seed=0):
    gen = torch.Generator().manual_seed(seed)
    stds = (0.1 + torch.rand(shape, generator=gen, dtype=torch.float64)).to(dtype)
    mask = torch.rand(shape[:mask_dims], generator=gen) < 0.6
    return stds.to(DEVICE), mask.to(DEVICE)


def formula(function, values, eps):
    if function is gaussian_entropy_log_loss:
        return -(values + eps).log().mean() - 0.5 * math.log(2 * math.pi * math.e)
    return -(values.mean() + eps).log()


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask_dims", [None, 1, 2, 3])
def test_value_and_gradient(function, dtype, mask_dims):
    stds, mask = stds_and_mask(dtype, mask_dims=mask_dims or 2)
    mask = None if mask_dims is None else mask
    ours_in = stds.clone().requires_grad_()
    true_in = stds.double().requires_grad_()
    ours = function(ours_in) if mask is None else function(ours_in, mask)
    chosen = true_in.flatten() if mask is None else true_in[mask].flatten()
    eps = torch.finfo(dtype).eps
    true = formula(function, chosen, eps)
    assert ours.shape == ()
    assert ours.dtype == dtype
    relative = (
        1e-12 if dtype == torch.float64 else 4 * eps
    )  # one rounding on the way out, few inside
    scale = abs(true.item()) + 1.5  # the log constant is one of the terms
    assert abs(ours.item() - true.item()) <= relative * scale
    (grad,) = torch.autograd.grad(ours, ours_in)
    (want,) = torch.autograd.grad(true, true_in)
    assert grad.dtype == dtype
    assert (grad.double() - want).abs().max() <= relative * want.abs().max()


@both
def test_nothing_active_is_zero_with_a_live_graph(function):
    for dtype in DTYPES:
        stds, mask = stds_and_mask(dtype)
        for values in (stds, torch.full_like(stds, torch.nan), torch.full_like(stds, torch.inf)):
            values = values.clone().requires_grad_()
            value = function(values, torch.zeros_like(mask))
            (grad,) = torch.autograd.grad(value, values)
            assert value.item() == 0
            assert value.dtype == dtype
            assert (grad == 0).all()


@both
def test_an_empty_tensor_is_zero(function):
    stds = torch.zeros(0, 3, 2, requires_grad=True, device=DEVICE)
    value = function(stds)
    value.backward()
    assert value.item() == 0
    assert stds.grad.shape == (0, 3, 2)


@both
@pytest.mark.parametrize("poison", [math.nan, math.inf, -1.0, 0.0])
def test_hidden_values_are_inert(function, poison):
    stds, mask = stds_and_mask(torch.float32)
    results = []
    for value in (0.5, poison):
        fresh = torch.where(mask[..., None], stds, value).requires_grad_()
        loss = function(fresh, mask)
        results.append((loss, *torch.autograd.grad(loss, fresh)))
    (a, grad_a), (b, grad_b) = results
    assert torch.isfinite(a)
    assert torch.equal(a, b)
    assert torch.equal(grad_a, grad_b)
    assert (grad_b[~mask] == 0).all()


@both
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_mask_dtypes(function, kind):
    stds, mask = stds_and_mask()
    assert torch.equal(function(stds, mask.to(kind)), function(stds, mask))
    assert torch.equal(function(stds, mask.to(kind) * 2), function(stds, mask))


@both
def test_half_types_accumulate_in_float32(function):
    """The sum of 200000 stds exceeds the range of float16; the mean does not."""
    stds = torch.full((200_000,), 2.0, dtype=torch.float16, device=DEVICE)
    want = formula(function, stds.double(), torch.finfo(torch.float16).eps).item()
    assert function(stds).item() == pytest.approx(want, rel=2e-3)


@both
def test_zero_stds_are_finite(function):
    stds = torch.zeros(2, 3, requires_grad=True, device=DEVICE)
    value = function(stds)
    (grad,) = torch.autograd.grad(value, stds)
    want = formula(function, torch.zeros(6).double(), torch.finfo(torch.float32).eps)
    assert value.item() == pytest.approx(want.item(), rel=1e-6)
    assert torch.isfinite(grad).all()


@both
def test_twice_differentiable(function):
    stds, mask = stds_and_mask()
    stds.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: function(t, mask), stds)
    assert torch.autograd.gradgradcheck(lambda t: function(t, mask), stds)


@both
def test_errors(function):
    stds, mask = stds_and_mask()
    with pytest.raises(ValueError, match="noise_mask"):
        function(stds, mask[:, :-1])
    with pytest.raises(ValueError, match="noise_mask"):
        function(stds, mask[..., None, None])
    with pytest.raises(ValueError, match="noise_mask"):
        function(stds, mask.to("meta"))
    with pytest.raises(TypeError, match="stds"):
        function(stds.long())
    with pytest.raises(TypeError, match="stds"):
        function(stds.to(torch.complex64))
    with pytest.raises(TypeError, match="stds"):
        function(stds.tolist())
    with pytest.raises(TypeError, match="noise_mask"):
        function(stds, mask.tolist())
