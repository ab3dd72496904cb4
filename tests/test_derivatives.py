"""Derivatives of every kind: forward mode, batched, of higher order, traced; against each other."""

import functools
import warnings

import fused_mi
import pytest
import torch
from cases import ESTIMATORS, PAIRINGS, mi_inputs
from torch.autograd import forward_ad

MEANS, STDS, MASK, CLEAN, NOISY = mi_inputs(b=4, s=2, e=2)
MASK[1, 1] = False
LOSSES = {
    f"{estimator}-{pairing}": functools.partial(
        lambda means, stds, clean, noisy, **options: fused_mi.mutual_information_sub_batch(
            means, stds, MASK, clean, noisy, safety_factor=0.0, **options
        ),
        estimator=estimator,
        pairing=pairing,
    )
    for estimator in ESTIMATORS
    for pairing in PAIRINGS
}
OTHERS = {
    "entropy": lambda means, stds, clean, noisy: fused_mi.gaussian_mixture_entropy(
        clean, noisy, means, stds, MASK, safety_factor=0.0, component_mask=MASK
    ),
    "pairwise": lambda means, stds, clean, noisy: fused_mi.pairwise_square_mahalanobis_distance(
        noisy, clean + means, stds, MASK, safety_factor=0.0
    ),
    "square": lambda means, stds, clean, noisy: fused_mi.square_mahalanobis_distance(
        noisy, clean + means, stds, MASK, safety_factor=0.0
    ),
    "outer": lambda means, stds, clean, noisy: fused_mi.square_mahalanobis_distance(
        noisy[:, None], (clean + means)[None], stds[None], MASK[:, None], safety_factor=0.0
    ),
    "log of stds": lambda means, stds, clean, noisy: fused_mi.gaussian_entropy_log_loss(stds, MASK),
    "mean of stds": lambda means, stds, clean, noisy: fused_mi.masked_negative_log_mean(stds, MASK),
}
INPUTS = (MEANS, STDS, CLEAN, NOISY)
every_function = pytest.mark.parametrize("name", [*LOSSES, *OTHERS])
close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)


def function_of(name):
    return {**LOSSES, **OTHERS}[name]


def jacobian(function):
    """By stds, row by row, in reverse mode."""
    stds = STDS.clone().requires_grad_()
    value = function(MEANS, stds, CLEAN, NOISY)
    rows = [torch.autograd.grad(v, stds, retain_graph=True)[0] for v in value.reshape(-1)]
    return torch.stack(rows).view(*value.shape, *stds.shape)


@every_function
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning")
def test_forward_mode(name):
    function = function_of(name)
    generator = torch.Generator().manual_seed(1)
    tangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in INPUTS]
    leaves = [t.clone().requires_grad_() for t in INPUTS]
    value = function(*leaves)
    upstream = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    grads = torch.autograd.grad(value, leaves, upstream, allow_unused=True, materialize_grads=True)
    want = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    found, tangent = torch.func.jvp(function, INPUTS, tuple(tangents))
    close(found, value.detach())
    close((tangent * upstream).sum(), want)
    if "sub_batch" not in name:  # slow, and "symmetric" does the same twice
        _, linear = torch.func.linearize(function, *INPUTS)
        close(linear(*tangents), tangent)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b) for a, b in zip(INPUTS, tangents, strict=True)]
        close(forward_ad.unpack_dual(function(*duals)).tangent, tangent)


@every_function
def test_jacobians_and_hessians(name):
    function = function_of(name)
    want = jacobian(function)
    close(torch.func.jacfwd(function, argnums=1)(*INPUTS), want)
    close(torch.func.jacrev(function, argnums=1)(*INPUTS), want)
    hessian = torch.func.hessian(function, argnums=1)(*INPUTS)
    twice = torch.func.jacrev(torch.func.jacrev(function, argnums=1), argnums=1)(*INPUTS)
    close(hessian, twice)
    assert hessian.abs().max() > 0


@every_function
def test_batches(name):
    function = function_of(name)
    batches = [torch.stack((t, t + 0.1, t + 0.3)) for t in INPUTS]
    one_by_one = torch.stack([function(*(b[i] for b in batches)) for i in range(3)])
    close(torch.vmap(function)(*batches), one_by_one)
    close(
        torch.vmap(function, in_dims=(None, 0, None, None))(*INPUTS[:1], batches[1], *INPUTS[2:])[
            0
        ],
        function(*INPUTS),
    )
    upstream = torch.ones_like(one_by_one[0])

    def gradient(*inputs):
        return torch.func.vjp(function, *inputs)[1](upstream)[1]

    of_batch = torch.vmap(gradient)(*batches)
    for i in range(3):
        close(of_batch[i], gradient(*(b[i] for b in batches)))


@every_function
@pytest.mark.parametrize("create_graph", [False, True])
def test_batches_of_upstream_gradients(name, create_graph):
    function = function_of(name)
    stds = STDS.clone().requires_grad_()
    value = function(MEANS, stds, CLEAN, NOISY)
    upstream = torch.stack([torch.ones_like(value), torch.full_like(value, -2.0)])
    (found,) = torch.autograd.grad(
        value, stds, upstream, is_grads_batched=True, create_graph=create_graph
    )
    (one,) = torch.autograd.grad(function(MEANS, stds, CLEAN, NOISY).sum(), stds)
    close(found.detach(), torch.stack((one, -2 * one)))
    assert found.requires_grad == create_graph


@every_function
def test_traced(name):
    function = function_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda *t: function(*t), INPUTS, check_trace=False)
    others = [t + 0.2 for t in INPUTS]
    close(traced(*others), function(*others))


@pytest.mark.parametrize("name", [name for name in LOSSES if "sub_batch" not in name])  # as above
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning")
def test_a_compiled_gradient(name):
    torch._dynamo.reset()
    function = function_of(name)
    gradient = torch.func.grad(function, argnums=1)
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    close(compiled(*INPUTS), gradient(*INPUTS))


def test_gradients_through_blocks_under_transforms(monkeypatch):
    """More pairs than are held at once."""
    from fused_mi import _estimators

    function = LOSSES["logsumexp-sub_batch"]
    want = torch.func.grad(function, argnums=(0, 1, 2, 3))(*INPUTS)
    monkeypatch.setattr(_estimators, "PAIRS_AT_ONCE", 2)
    found = torch.func.grad(function, argnums=(0, 1, 2, 3))(*INPUTS)
    for a, b in zip(found, want, strict=True):
        close(a, b)


def test_terms_have_forward_derivatives_of_their_own():
    def terms(stds):
        losses = {}
        fused_mi.mutual_information_sub_batch(
            MEANS, stds, MASK, CLEAN, NOISY, losses=losses, safety_factor=0.0
        )
        return torch.stack(list(losses.values()))

    close(torch.func.jacfwd(terms)(STDS), torch.func.jacrev(terms)(STDS))


def test_internal_operators_refuse_tangents():
    """They would drop them."""
    constants = (MASK, MASK, "sub_batch", True, True, 0.0)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in (NOISY, CLEAN, MEANS, STDS)]
        for name in ("jensen", "logsumexp"):
            with pytest.raises((RuntimeError, NotImplementedError)):
                getattr(torch.ops.fused_mi, name)(*duals, *constants)
