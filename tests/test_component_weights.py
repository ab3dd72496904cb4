"""`component_log_weights`: mixtures whose components are not equally likely."""

import math

import fused_mi
import oracle
import pytest
import torch
from arguments import entropy_inputs
from cases import DEVICE, assert_same_bits, gradients, leaves
from marks import dtypes, options

pytestmark = pytest.mark.every_backend
LOGSUMEXP = {"estimator": "logsumexp"}


def weights_of(m=3, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(m, generator=gen, dtype=torch.float64).log_softmax(0).to(DEVICE, dtype)


def entropy(inputs, weights, component_mask=None, losses=None, **options):
    return fused_mi.gaussian_mixture_entropy(
        *inputs,
        losses,
        component_mask=component_mask,
        component_log_weights=weights,
        **LOGSUMEXP,
        **options,
    )


@options(reduction=("mean", "sum", "none"), combined=(True, False))
@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_float64(options, offset):
    inputs, component_mask = entropy_inputs(offset=offset)
    component_mask = component_mask if options["combined"] else None
    reduction = options["reduction"]
    ours_in, true_in, losses = leaves(inputs), leaves(inputs), {}
    ours_w, true_w = (weights_of().requires_grad_() for _ in range(2))
    value = entropy(ours_in, ours_w, component_mask, losses, reduction=reduction)
    true = oracle.mixture_entropy(
        true_in,
        component_mask=component_mask,
        component_log_weights=true_w,
        reduction=reduction,
        **LOGSUMEXP,
    )
    torch.testing.assert_close(sum(losses.values()), value, rtol=1e-12, atol=1e-12)
    scale = sum(v.abs().max().item() for v in true.values())
    for name, entry in [*losses.items(), (oracle.ENTROPY, value)]:
        assert (entry - true[name]).abs().max().item() <= 1e-11 * scale, name
        upstream = torch.linspace(-1, 2, entry.numel(), dtype=entry.dtype, device=DEVICE)
        pulls = []
        for t, tensors, w in ((entry, ours_in, ours_w), (true[name], true_in, true_w)):
            total = (t.reshape(-1) * upstream).sum()
            wanted = [x for x in tensors if x.requires_grad]
            pulls.append(gradients(total, [*wanted, w], retain_graph=True, materialize_grads=True))
        largest = max(g.abs().max().item() for g in pulls[1])
        for a, b in zip(*pulls, strict=True):
            assert (a - b).abs().max().item() <= 1e-11 * largest, name


@dtypes(torch.float32, torch.bfloat16, torch.float16)
def test_equal_weights_are_the_default(dtype):
    inputs, component_mask = entropy_inputs(dtype=dtype)
    weights = torch.full((3,), -math.log(3), device=DEVICE).requires_grad_()
    ours_in, plain_in, losses, plain = leaves(inputs), leaves(inputs), {}, {}
    ours = entropy(ours_in, weights, component_mask, losses)
    want = entropy(plain_in, None, component_mask, plain)
    torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-6)
    assert losses.keys() == plain.keys()
    for name, entry in losses.items():
        torch.testing.assert_close(entry, plain[name], rtol=1e-5, atol=1e-5)
    of_ours = gradients(ours, ours_in, retain_graph=True)
    of_plain = gradients(want, plain_in)
    for a, b in zip(of_ours, of_plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    (of_weights,) = torch.autograd.grad(ours, weights)
    assert of_weights.sum().item() == pytest.approx(-1, abs=1e-6)  # of responsibilities


def test_a_component_may_be_split():
    inputs, _ = entropy_inputs()
    clean, transformed, means, stds, mask = inputs
    weights = weights_of()
    parts = [*weights[:2].tolist(), *(weights[2].item() + math.log(p) for p in (0.3, 0.7))]
    clean, means, stds = (torch.cat((t, t[2:])) for t in (clean, means, stds))
    split = [clean, transformed, means, stds, mask]
    of_parts = torch.tensor(parts, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(entropy(split, of_parts), entropy(inputs, weights))


@pytest.mark.parametrize("combined", [True, False])
@dtypes(torch.float32, torch.float64)
def test_a_component_of_weight_0_is_not_there(dtype, combined):
    inputs, component_mask = entropy_inputs(m=4, dtype=dtype)
    component_mask = component_mask if combined else None
    weights = weights_of(4, dtype)
    weights[2] = -math.inf
    found = []
    for value, std in ((0.0, 1.0), (math.nan, math.nan), (math.inf, 1e-15)):
        for t in (inputs[0], inputs[2]):
            t[2] = value
        inputs[3][2] = std
        given, w = leaves(inputs), weights.clone().requires_grad_()
        losses = {}
        total = entropy(given, w, component_mask, losses)
        wanted = [t for t in given if t.requires_grad]
        found.append([total.detach(), *torch.autograd.grad(total, [*wanted, w])])
        assert all(entry.isfinite() for entry in losses.values())
    for again in found[1:]:
        assert_same_bits(again, found[0])
    of_clean, _, of_means, of_stds, of_weights = found[0][1:]
    for g in (of_clean, of_means, of_stds, of_weights):
        assert (g[2] == 0).all() and g.isfinite().all()
    kept = [0, 1, 3]
    fewer = [t[kept] if len(t) == 4 and i in (0, 2, 3) else t for i, t in enumerate(inputs)]
    of_kept = None if component_mask is None else component_mask[kept]
    torch.testing.assert_close(entropy(fewer, weights[kept], of_kept), found[0][0])


def test_the_assignment_is_a_divergence_of_the_weights():
    """0 where samples say nothing about their component, -log w where they name it."""
    m, s, e = 4, 1, 2
    stds = torch.ones(m, s, e, dtype=torch.float64, device=DEVICE)
    mask = torch.ones(m, s, dtype=torch.bool, device=DEVICE)
    weights, found = weights_of(m), []
    for distance in (0.0, 1e3):
        clean = distance * torch.arange(m, device=DEVICE)[:, None, None] * stds
        losses = {}
        entropy([clean, clean, torch.zeros_like(clean), stds, mask], weights, losses=losses)
        found.append(losses[oracle.ASSIGNMENT].item())
    assert found == pytest.approx([0, -weights.mean().item()], abs=1e-12)


def test_all_weights_are_0():
    inputs, _ = entropy_inputs()
    weights = torch.full((3,), -math.inf, dtype=torch.float64, device=DEVICE).requires_grad_()
    given = leaves(inputs)
    value = entropy(given, weights)
    assert value == math.inf
    wanted = [t for t in given if t.requires_grad]
    grads = torch.autograd.grad(value, [*wanted, weights])
    assert not any(g.isnan().any() for g in grads)


def test_a_module_and_one_graph():
    inputs, component_mask = entropy_inputs(dtype=torch.float32)
    weights = weights_of(dtype=torch.float32)
    module = fused_mi.GaussianMixtureEntropy(estimator="logsumexp")

    def call(*inputs):
        return module(*inputs, component_mask=component_mask, component_log_weights=weights)

    want = entropy(inputs, weights, component_mask)
    assert_same_bits([call(*inputs)], [want])
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert_same_bits([compiled(*inputs)], [want])


def test_errors():
    inputs, _ = entropy_inputs()
    for weights, error, said in (
        (weights_of(4), ValueError, r"^component_log_weights: expected shape \(M,\) = \(3,\), got"),
        (weights_of()[None], ValueError, r"^component_log_weights: expected shape \(M,\) = \(3,\)"),
        ([0.0] * 3, TypeError, r"^component_log_weights: expected a tensor, got list"),
        (torch.zeros(3, dtype=torch.int64, device=DEVICE), TypeError, "^component_log_weights: "),
    ):
        with pytest.raises(error, match=said):
            entropy(inputs, weights)
    with pytest.raises(
        ValueError, match=r'^component_log_weights: expected None for estimator="je'
    ):
        fused_mi.gaussian_mixture_entropy(*inputs, component_log_weights=weights_of())
