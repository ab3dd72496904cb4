"""Memory layout never matters: views give what their contiguous copies give."""

import pytest
import torch
from cases import ESTIMATORS, FLOATING, MASK, mi, mi_inputs
from marks import dtypes, every_mode
from rules import assert_rule10

pytestmark = pytest.mark.every_backend


def transposed(t):
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def reversed_dims(t):
    order = list(range(t.dim()))[::-1]
    return t.permute(order).contiguous().permute(order)


def sliced(t):
    return torch.stack((torch.full_like(t, 1), t), -1)[..., 1]


def with_offset(t):
    storage = torch.empty(t.numel() + 7, dtype=t.dtype, device=t.device)
    storage.fill_(torch.nan if t.is_floating_point() else 1)
    storage[5 : 5 + t.numel()] = t.flatten()
    return storage[5 : 5 + t.numel()].view(t.shape)


def inside(t):
    """In the middle of a larger tensor: no start is aligned to 16 bytes."""
    middle = tuple(slice(1, 1 + size) for size in t.shape)
    filling = torch.nan if t.is_floating_point() else 1
    storage = torch.full([size + 2 for size in t.shape], filling, dtype=t.dtype, device=t.device)
    storage[middle] = t
    return storage[middle]


LAYOUTS = [transposed, reversed_dims, sliced, with_offset, inside]


def gradients_of_views(inputs, layout, options):
    fresh = [t.clone().requires_grad_(t.dim() == 3) for t in inputs]
    value = mi([layout(t) for t in fresh], **options)
    return value, torch.autograd.grad(value, [fresh[i] for i in FLOATING])


@every_mode
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(options, layout):
    inputs = mi_inputs(dtype=torch.float32, seed=1)
    view = layout(inputs[0])
    assert torch.equal(view, inputs[0])
    assert not view.is_contiguous() or view.storage_offset()
    plain = gradients_of_views(inputs, lambda t: t, options)
    ours = gradients_of_views(inputs, layout, options)
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=1e-6)
    for a, b in zip(ours[1], plain[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@every_mode
def test_layouts_of_every_input(options, layout, dtype):
    """Masks too; by the rule for contiguous ones."""
    inputs = mi_inputs(e=6, dtype=dtype, seed=6)
    assert_rule10(lambda t: mi([layout(v) for v in t], **options), inputs, options)


@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize(
    ("features", "row"), [(1000, 1000), (1000, 1001), (1000, 1008), (1001, 1001), (1001, 1008)]
)
@every_mode
def test_ends_of_longer_rows(options, features, row, dtype):
    """Multiples of 8 or not, which may allow wide loads of one and not of the other."""

    def end(t):
        if t.dim() == 2:
            return t
        storage = torch.full((*t.shape[:2], row), torch.nan, dtype=t.dtype, device=t.device)
        storage[..., row - features :] = t
        return storage[..., row - features :]

    inputs = mi_inputs(b=4, s=1, e=features, dtype=dtype, seed=7)
    assert_rule10(lambda t: mi([end(v) for v in t], **options), inputs, options)


@every_mode
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_expanded_inputs(options, dim):
    """Stride 0: the gradient of the small tensor is the sum over what it was expanded to."""
    inputs = mi_inputs(seed=2)
    small = [t.narrow(dim, 0, 1) if i in (0, 1, 3) else t for i, t in enumerate(inputs)]

    def expanded(function):
        fresh = [t.clone().requires_grad_(t.dim() == 3) for t in small]
        wide = [function(t, inputs[i]) for i, t in enumerate(fresh)]
        value = mi(wide, **options)
        return value, torch.autograd.grad(value, [fresh[i] for i in FLOATING])

    ours = expanded(lambda t, like: t.expand(like.shape))
    plain = expanded(lambda t, like: t.expand(like.shape).contiguous())
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(ours[1], plain[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@every_mode
def test_expanded_leaves(options):
    """One row of noise for the whole batch, given as an expanded leaf."""
    inputs = mi_inputs(seed=3)
    for i in (0, 1):
        inputs[i] = inputs[i][:1].expand(6, -1, -1)
    inputs[MASK] = inputs[MASK][:1].expand(6, -1)
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@every_mode
def test_expanded_upstream(options):
    inputs = mi_inputs(seed=4)
    fresh = [t.clone().requires_grad_(t.dim() == 3) for t in inputs]
    value = mi(fresh, **options)
    wanted = [fresh[i] for i in FLOATING]
    plain = torch.autograd.grad(value, wanted, retain_graph=True)
    summed = torch.autograd.grad(value.expand(5).sum(), wanted)
    for a, b in zip(summed, plain, strict=True):
        torch.testing.assert_close(a, 5 * b, rtol=1e-12, atol=1e-12)


def test_the_same_tensor_in_several_roles():
    """x given as y and mu as sigma: the gradients of all uses add up."""
    _, stds, mask, clean, _ = mi_inputs(seed=5)
    for estimator in ESTIMATORS:
        a, b = clean.clone().requires_grad_(), stds.clone().requires_grad_()
        value = mi([b, b, mask, a, a], estimator=estimator)
        shared = torch.autograd.grad(value, (a, b))
        separate = [t.clone().requires_grad_() for t in (stds, stds, clean, clean)]
        split = mi([separate[0], separate[1], mask, separate[2], separate[3]], estimator=estimator)
        grads = torch.autograd.grad(split, separate)
        assert torch.equal(value, split)
        torch.testing.assert_close(shared[0], grads[2] + grads[3], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shared[1], grads[0] + grads[1], rtol=1e-12, atol=1e-12)
