"""Calls of the operator `logsumexp` for tests of the backends that keep no energies."""

import torch
from fused_mi._mixture import Scoring
from fused_mi.reference import estimators as reference

F32, F64 = torch.float32, torch.float64
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
