"""Calls of the operator `logsumexp` for tests of the backends that keep no energies."""

import torch
from cases import assert_same_bits, fresh_memory_full_of_nan, mi, mi_inputs, same_bits
from fused_mi import _estimators
from fused_mi._estimators import HEADER, logsumexp_state
from fused_mi._mixture import Scoring
from fused_mi.reference import estimators as reference

F32, F64 = torch.float32, torch.float64
NAMES = ("y", "x", "mu", "stds", "log_weights")
SPOILED = (
    "variances of many scales",
    "a sample from which every component is infinitely far",
    "no component has a weight",
)


def weighted_case(n=40, m=70, s=1, e=6, dtype=F32, offset=0.0, **options):
    """Inputs with log weights, one of them -inf, and samples that come from components."""
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(m, s, e, generator=gen, dtype=F64) + offset
    mu = 0.3 * torch.randn(m, s, e, generator=gen, dtype=F64)
    stds = 0.5 + torch.rand(m, s, e, generator=gen, dtype=F64)
    origins = torch.randint(1, m, (n,), generator=gen)
    noise = torch.randn(n, s, e, generator=gen, dtype=F64)
    y = (x + mu)[origins] + stds[origins] * noise
    weights = torch.randn(m, generator=gen, dtype=F64).log_softmax(0)
    weights[0] = -torch.inf
    masks = [torch.rand(rows, s, generator=gen) < (0.7 if s > 1 else 2) for rows in (n, m)]
    inputs = [t.to(dtype) for t in (y, x, mu, stds)]
    scoring = Scoring(*masks, origins, safety_factor=-1e-3, **options)
    return (*inputs, weights.to(F32)), scoring


def evaluate(module, inputs, scoring, wanted=(True,) * 5):
    """The loss, its terms and the gradients of all terms with weights of their own."""
    total, terms, state = module.logsumexp(inputs, scoring)
    upstream = [
        torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view(t.shape) for t in (total, terms)
    ]
    wanted = wanted[: len(inputs)]
    found = module.logsumexp_backward(upstream, inputs, scoring, state, wanted)
    return [total, terms, *found]


def assert_close(estimators, inputs, scoring, digits=64):
    """Of all results, to those of plain torch in float64."""
    ours = evaluate(estimators, inputs, scoring)
    true = evaluate(reference, tuple(t.double() for t in inputs), scoring)
    for number, (a, b) in enumerate(zip(ours, true, strict=True)):
        size = b[b.isfinite()].abs().max().item()
        eps = max(torch.finfo(a.dtype).eps, torch.finfo(F32).eps)
        assert (a.isfinite() == b.isfinite()).all(), number
        error = (a.double() - b)[b.isfinite()].abs().max().item()
        assert error <= digits * eps * size, (number, error, size)
    return ours


def spoiled(how):
    inputs, scoring = weighted_case(20, 40)
    y, x, mu, stds, weights = inputs
    if how == "variances of many scales":  # outside of float32's range
        stds[::2] *= 1e-25
        for t in (x, mu):
            t[::2] *= 1e-25
        y[::2] = 1e-25
        scoring = scoring._replace(safety_factor=100.0)
    elif how == "a sample from which every component is infinitely far":
        y[5] = torch.inf
    elif how == "no component has a weight":
        weights[:] = -torch.inf
    return inputs, scoring


def assert_one_gradient(estimators, only):
    inputs, scoring = weighted_case()
    everything = evaluate(estimators, inputs, scoring)[2:]
    wanted = [i == only for i in range(5)]
    found = evaluate(estimators, inputs, scoring, wanted)[2:]
    assert [g is not None for g in found] == wanted
    assert same_bits(found[only], everything[only])


def assert_memory_is_written(pairing):
    inputs = mi_inputs(40, 2, 5, dtype=F32, seed=4)
    options = {"estimator": "logsumexp", "pairing": pairing}

    def bits():
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in inputs]
        value = mi(leaves, **options)
        return [value.detach(), *torch.autograd.grad(value, [t for t in leaves if t.requires_grad])]

    plain = bits()
    with fresh_memory_full_of_nan():
        assert_same_bits(bits(), plain)


def assert_no_pairs_in_the_state(estimators):
    inputs, scoring = weighted_case(70, 45)
    state = estimators.logsumexp(inputs, scoring)[2]
    assert state.numel() == HEADER + 5 * 70
    assert state.shape == logsumexp_state(inputs, scoring).shape


def assert_nan_of_absent_tokens(estimators):
    inputs, scoring = weighted_case(9, 7, reduction="none")
    origins = scoring.origins.clone()
    origins[[2, 5]] = torch.tensor([7, -1])
    total = estimators.logsumexp(inputs, scoring._replace(origins=origins))[0]
    assert total[[2, 5]].isnan().all()
    assert total.isnan().sum() == 2


def assert_as_where_energies_are_kept(estimators, monkeypatch, how, left_out):
    inputs, scoring = spoiled(how)
    scoring = scoring._replace(leave_origins_out=left_out)
    ours = evaluate(estimators, inputs, scoring)
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 1 << 20)
    kept = evaluate(estimators, inputs, scoring)
    for one, other in zip(ours, kept, strict=True):
        size = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * size, equal_nan=True)
