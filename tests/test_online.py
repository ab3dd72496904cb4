"""logsumexp of many pairs of short rows, whose energies are never in memory: see `online`. Small
cases take the same way here, on a CPU by its library unless a backend is forced."""

import contextlib

import fused_mi
import pytest
import torch
from cases import (
    DEVICE,
    assert_same_bits,
    interpreted,
    leaves,
    mi,
    mi_inputs,
    same_bits,
    value_and_gradients,
)
from fused_mi import _estimators
from fused_mi._estimators import HEADER
from fused_mi._mixture import Scoring
from fused_mi.cpu import _library, estimators
from fused_mi.ops import _backends
from fused_mi.reference import estimators as reference
from marks import combine, dtypes, pairing
from rules import assert_rule10

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
on_cpus = pytest.mark.skipif(not _library.usable()[0], reason="the library was not built")
# Tiles with a rest, positions that join and some that do not, several blocks of features.
SHAPES = [(7, 4, 3), (131, 1, 40), (150, 3, 9), (300, 1, 17), (21, 2, 900)]
if interpreted():  # smaller tiles, and a chunk of features with a rest
    SHAPES = [(7, 4, 3), (70, 1, 40), (21, 2, 50), (5, 1, 1100)]
shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _keep_nothing(monkeypatch):
    monkeypatch.setattr(_estimators, "PAIRS_KEPT", 0)
    if _backends.forced() is not None or DEVICE.type != "cpu":
        yield
        return
    with fused_mi.use_backend("cpu"):
        yield


def even(shape, pairing):
    rows, *rest = shape
    return (rows - rows % 2 if pairing != "leave_one_out" else rows, *rest)


@pytest.mark.every_backend
@pairing
@shape
def test_rule_10(shape, pairing):
    inputs = mi_inputs(*even(shape, pairing), dtype=F32, seed=1)
    options = {"estimator": "logsumexp", "pairing": pairing}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@pytest.mark.every_backend
@pairing
@combine
@pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
def test_offsets_and_masks(offset, combine, pairing):
    inputs = mi_inputs(38 if interpreted() else 150, 2, 12, dtype=F32, seed=2, offset=offset)
    options = {"estimator": "logsumexp", "pairing": pairing, "combine": combine}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@pytest.mark.every_backend
@pairing
@dtypes(F16, BF16, F64)
def test_dtypes(dtype, pairing):
    inputs = mi_inputs(36 if interpreted() else 140, 1, 20, dtype=dtype, seed=3, density=1.0)
    options = {"estimator": "logsumexp", "pairing": pairing}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


@on_cpus
@pairing
@pytest.mark.parametrize("entry", range(1, 6))
def test_each_term(entry, pairing):
    """Value and gradients of one entry of the losses, against plain torch in float64."""
    names = ("mahalanobis_distance", "log_constants_and_determinant", "assignment", "entropy")
    keys = (*(f"gaussian_mixture_{name}_loss" for name in names), "std_log_loss")

    def term(inputs):
        losses = {}
        mi(inputs, losses=losses, estimator="logsumexp", pairing=pairing)
        return losses[keys[entry - 1]]

    inputs = mi_inputs(134, 2, 5, seed=4)
    ours = value_and_gradients(term, inputs)
    with fused_mi.use_backend("reference"):
        theirs = value_and_gradients(term, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@on_cpus
@pytest.mark.parametrize("full", [True, False])
@pairing
def test_bits_do_not_depend_on_threads(pairing, full):
    inputs = mi_inputs(700, 1, 20, dtype=F32, seed=5, density=2.0 if full else 0.5)
    if not full:
        inputs[2][::3] = False  # one position, and rows without it
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        value, grads = value_and_gradients(
            lambda t: mi(t, estimator="logsumexp", pairing=pairing), inputs
        )
        found.append([value, *grads])
    for again in found[1:]:
        assert_same_bits(again, found[0])


@pytest.mark.every_backend
@pytest.mark.parametrize("leave_own_out", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@dtypes(F32, BF16)
def test_tokens(dtype, reduction, leave_own_out):
    """Value and gradients against plain torch in float64, of weights that are 0 as well."""
    floats, tokens = token_case(70, 45, dtype=dtype)
    options = {"leave_own_out": leave_own_out, "reduction": reduction, "eps": 1e-3}
    found = []
    for wide in (None, F64):
        given = [t.to(DEVICE, wide or t.dtype).clone().requires_grad_() for t in floats]
        with contextlib.ExitStack() as stack:
            if wide:
                stack.enter_context(fused_mi.use_backend("reference"))
            value = information(given, tokens.to(DEVICE), **options)
            upstream = torch.linspace(-1, 2, value.numel()).view(value.shape).to(value)
            found.append([value.detach(), *torch.autograd.grad(value, given, upstream)])
    for ours, true in zip(*found, strict=True):
        eps = max(torch.finfo(ours.dtype).eps, torch.finfo(F32).eps)
        assert (ours - true).abs().max().item() <= 64 * eps * true.abs().max().item()


def token_case(n=300, m=260, e=17, dtype=F32):
    """Of token_information; some tokens have no probability, one of which has samples."""
    gen = torch.Generator().manual_seed(8)
    centers, noise = (torch.randn(rows, e, generator=gen) for rows in (m, n))
    stds = 0.7 + torch.rand(m, e, generator=gen)
    tokens = torch.randint(m, (n,), generator=gen)
    weights = torch.randn(m, generator=gen)
    weights[[3, 7]], tokens[:2] = -torch.inf, 3
    noisy = centers[tokens] + stds[tokens] * noise
    floats = [t.to(dtype) for t in (noisy, centers, stds, weights.log_softmax(0))]
    return floats, tokens


def information(floats, tokens, **options):
    noisy, centers, stds, weights = floats
    return fused_mi.token_information(noisy, tokens, centers, stds, weights, **options)


@on_cpus
@pytest.mark.parametrize("all_likely", [True, False])
@pytest.mark.parametrize("leave_own_out", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@dtypes(F32, F64, BF16)
def test_token_information(dtype, reduction, leave_own_out, all_likely):
    """Value and gradients against plain torch in float64, whatever the number of threads."""
    floats, tokens = token_case(dtype=dtype)
    if all_likely:
        floats[-1] = floats[-1].clamp(min=-9)
    options = {"leave_own_out": leave_own_out, "reduction": reduction, "eps": 1e-3}
    found = []
    for threads, backend in ((1, "cpu"), (2, "cpu"), (5, "cpu"), (2, "reference")):
        torch.set_num_threads(threads)
        wide = torch.float64 if backend == "reference" else dtype
        leaves = [t.to(wide, copy=True).requires_grad_() for t in floats]
        with fused_mi.use_backend(backend):
            value = information(leaves, tokens, **options)
            upstream = torch.linspace(-1, 2, value.numel()).view(value.shape).to(value)
            grads = torch.autograd.grad(value, leaves, upstream)
        found.append([value.detach(), *grads])
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])
    for ours, true in zip(found[0], found[3], strict=True):
        eps = max(torch.finfo(ours.dtype).eps, torch.finfo(F32).eps if dtype != F64 else 0)
        assert (ours - true).abs().max().item() <= 64 * eps * true.abs().max().item()


@on_cpus
def test_token_information_keeps_nothing_of_all_pairs():
    floats, tokens = token_case()
    inputs = tuple(t.unsqueeze(1) for t in (*floats[:2], floats[1], floats[2]))
    scoring = Scoring(torch.ones(300, 1, dtype=torch.bool), origins=tokens, reduction="none")
    *_, state = estimators.logsumexp((*inputs, floats[3]), scoring)
    assert state.numel() == HEADER + 5 * 300


def scored(samples=900, components=700, features=8, dtype=F32):
    """Every sample against every component, of different tensors."""
    generator = torch.Generator().manual_seed(6)
    y, x, mu, stds = (
        torch.randn(rows, 1, features, generator=generator).to(dtype)
        for rows in (samples, components, components, components)
    )
    mask = torch.ones(samples, 1, dtype=torch.bool)
    return (y, x, mu, stds.abs() + 0.5), Scoring(mask, safety_factor=100.0)


@on_cpus
def test_nothing_of_all_pairs_is_kept():
    inputs, scoring = scored()
    *_, state = estimators.logsumexp(inputs, scoring)
    assert state.numel() == HEADER + 5 * 900
    assert state.shape == _estimators.logsumexp_state(inputs, scoring).shape


@on_cpus
def test_components_without_gradients():
    inputs, scoring = scored()
    total, _, state = estimators.logsumexp(inputs, scoring)
    upstream = torch.ones_like(total), None
    everything = estimators.logsumexp_backward(upstream, inputs, scoring, state, [True] * 4)
    for wanted in ([True, False, False, False], [False, False, True, False], [False] * 3 + [True]):
        some = estimators.logsumexp_backward(upstream, inputs, scoring, state, wanted)
        for one, full, needed in zip(some, everything, wanted, strict=True):
            assert same_bits(one, full) if needed else one is None


def spoiled(how):
    inputs, scoring = scored(300, 260)
    y, x, _, stds = inputs
    if how == "a far first row":  # takes the digits of float32
        x[0], stds[0] = 1e12, 1e10
    elif how == "variances of many scales":  # outside of float32's range
        stds[::2] *= 1e-25
        x[::2], y[::2] = 1e-25, 1e-25
    elif how == "a sample from which every component is infinitely far":
        y[5] = torch.inf
    return inputs, scoring


@on_cpus
@pytest.mark.parametrize(
    "how",
    [
        "a far first row",
        "variances of many scales",
        "a sample from which every component is infinitely far",
    ],
)
def test_what_leaves_float32(how):
    inputs, scoring = spoiled(how)
    total, terms, state = estimators.logsumexp(inputs, scoring)
    upstream = torch.ones_like(total), None
    grads = estimators.logsumexp_backward(upstream, inputs, scoring, state, [True] * 4)
    _, true_terms, true_state = reference.logsumexp(inputs, scoring)
    true_grads = reference.logsumexp_backward(upstream, inputs, scoring, true_state, [True] * 4)
    torch.testing.assert_close(terms, true_terms, rtol=1e-5, atol=1e-5, equal_nan=True)
    for one, other in zip(grads, true_grads, strict=True):
        size = other.nan_to_num(0, 0, 0).abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * size, equal_nan=True)


@on_cpus
def test_the_real_limit():
    """Without the fixture's change: both sides of it agree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_estimators, "PAIRS_KEPT", 1 << 19)
        found = []
        for limit in (1 << 19, 1 << 24):
            patch.setattr(_estimators, "PAIRS_KEPT", limit)
            inputs = mi_inputs(1452, 1, 3, dtype=F32, seed=7)
            given = leaves(inputs)
            value = mi(given, estimator="logsumexp")
            value.backward()
            found.append([value.detach(), *(t.grad for t in given if t.requires_grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
