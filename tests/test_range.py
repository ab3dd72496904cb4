"""The whole range of each dtype, against 50 digits: errors as small as at 1, or inf where the exact
number is beyond the dtype; never NaN."""

import math

import pytest
import torch
from cases import leaves, mi, value_and_gradients
from exact import mutual_information
from fused_mi import use_backend
from fused_mi.cpu import _library
from marks import dtypes, estimator, pairing
from rules import FLOAT64_RELATIVE


@pytest.fixture(autouse=True, params=["cpu", "reference"])
def _backend(request):
    """Those that serve CPU tensors; the Triton kernels are in test_range_triton.py."""
    if request.param == "cpu" and not _library.usable()[0]:
        pytest.skip("the library was not built")
    with use_backend(request.param):
        yield


safety = pytest.mark.parametrize("safety_factor", [0.0, 100.0])

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
powers = pytest.mark.parametrize(  # of ten, from the least denormal number on
    ("dtype", "powers"),
    [
        pytest.param(F32, range(-45, 39), id="float32"),
        pytest.param(BF16, range(-40, 39), id="bfloat16"),
        pytest.param(F16, range(-7, 5), id="float16"),
        pytest.param(F64, range(-75, 76, 5), id="float64"),
        pytest.param(
            F64,
            [*range(-323, 309, 9), -162, -161, -154, -153, 153, 154, 307, 308],
            id="float64-ends",
        ),
    ],
)


def excess(found, exact, scale, dtype):
    """By how many tolerances `found` is wrong: at most 1. Denormal numbers may count as 0, even
    those that are multiplied by some 1 / sqrt(v) afterwards."""
    info, least = torch.finfo(dtype), 100 * torch.finfo(F64 if dtype == F64 else F32).tiny
    if math.isnan(found):
        return math.inf
    if math.isinf(found):
        beyond = abs(exact) > info.max * (1 - info.eps) and (found > 0) == (exact > 0)
        return 0.0 if beyond else math.inf
    relative = FLOAT64_RELATIVE if dtype == F64 else 8 * info.eps
    return float(abs(found - exact) / (relative * scale + max(least, info.tiny * info.eps)))


def worst(inputs, estimator, pairing, safety_factor):
    """The largest excess of value and gradients of one call."""
    wide = any(t.dtype == F64 for t in inputs)
    options = {"estimator": estimator, "pairing": pairing, "safety_factor": safety_factor}
    value, grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    exact = mutual_information(inputs, **options, dtype=F64 if wide else F32)
    found = {"value": excess(value.item(), exact.value, exact.scale, value.dtype)}
    names = "means", "stds", "clean", "noisy"
    for name, ours, *rest in zip(names, grads, exact.gradients, exact.scales, strict=True):
        rows = zip(ours.double().flatten(1).tolist(), *rest, strict=True)
        found[name] = max(excess(*n, ours.dtype) for row in rows for n in zip(*row, strict=True))
    return max((size, name) for name, size in found.items())


def assert_exact(cases, *options):
    """`cases`: (name, inputs)."""
    failed = {name: found for name, inputs in cases if (found := worst(inputs, *options))[0] > 1}
    assert not failed


def equal(power, dtype):
    """mu = x = y = sigma = 10^power."""
    one = torch.full((2, 1, 1), 10.0**power, dtype=F64).to(dtype)
    return [one, one, torch.ones(2, 1, dtype=torch.bool), one, one]


def scaled(scales, dtype, b=4, s=2, e=3):
    """Embeddings and stds of a common size, which `scales` gives by row and feature."""
    gen = torch.Generator().manual_seed(0)
    clean, means, noise = torch.randn(3, b, s, e, generator=gen, dtype=F64)
    stds = 0.5 + torch.rand(b, s, e, generator=gen, dtype=F64)
    noisy = clean + 0.3 * means + stds * noise
    mask = torch.ones(b, s, dtype=torch.bool)
    mask[b - 1, s - 1] = False
    means, stds, clean, noisy = ((t * scales).to(dtype) for t in (means, stds, clean, noisy))
    return [means, stds, mask, clean, noisy]


@estimator
@pairing
@safety
@powers
def test_one_scale(estimator, pairing, safety_factor, dtype, powers):
    cases = ((power, equal(power, dtype)) for power in powers)
    assert_exact(cases, estimator, pairing, safety_factor)


@estimator
@pairing
@powers
def test_a_safety_factor_beyond_the_dtype_gives_no_nan(estimator, pairing, dtype, powers):
    options = {"estimator": estimator, "pairing": pairing, "safety_factor": 1e300}
    for power in powers:
        value, grads = value_and_gradients(lambda t: mi(t, **options), equal(power, dtype))
        assert not value.isnan()
        assert not any(g.isnan().any() for g in grads)


mixed = pytest.mark.parametrize(
    ("dtype", "powers"),
    [
        *((F32, p) for p in [(-13, 14), (-30, 3), (2, 18), (-20, -19)]),
        *((dtype, (-13, 14)) for dtype in (BF16, F64)),
        (F16, (-3, 2)),
        (F64, (-70, 60)),
        (F64, (-150, 140)),
    ],
    ids=str,
)


@estimator
@pairing
@safety
@mixed
def test_scales_of_features(estimator, pairing, safety_factor, dtype, powers):
    scales = torch.tensor([10.0 ** powers[0], 10.0 ** powers[1], 1.0], dtype=F64)
    assert_exact([(powers, scaled(scales, dtype))], estimator, pairing, safety_factor)


@estimator
@pairing
@safety
@mixed
def test_scales_of_rows(estimator, pairing, safety_factor, dtype, powers):
    both = torch.tensor([10.0**p for p in powers], dtype=F64)
    cases = [
        (rows, scaled(both[list(rows), None, None], dtype))
        for rows in [(0, 1, 0, 1), (0, 0, 1, 1), (1, 1, 1, 0), (0, 0, 0, 1)]
    ]
    assert_exact(cases, estimator, pairing, safety_factor)


@estimator
@pairing
@dtypes(F32, F64, BF16)
def test_each_row_of_its_own_scale(estimator, pairing, dtype):
    """In range, yet the first row, from which the others are measured, may hide them."""
    powers = [(8, -8, 0, 3), (-6, 8, 3, 0), (4, 0, -2, 1), (6, -6, 6, -6), (2, 0, 1, -1)]
    powers += [(0, 0, 5, 5), (5, 5, 0, 0)]
    cases = (
        (rows, scaled(torch.tensor([10.0**p for p in rows], dtype=F64)[:, None, None], dtype))
        for rows in powers
    )
    assert_exact(cases, estimator, pairing, 100.0)


@estimator
@dtypes(F32, F64)
@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("which", [3, 4], ids=["clean", "noisy"])
def test_an_infinite_row_is_as_bad_wherever_it_stands(estimator, dtype, row, which):
    """Of the first row all others are differences."""
    inputs = scaled(torch.ones(()), dtype)
    inputs[which] = inputs[which].clone()
    inputs[which][row, 0, 1] = math.inf
    value = mi(leaves(inputs), estimator=estimator)
    used = (row < 2) == (which == 4)
    hopeless = used and (estimator == "jensen" or which == 4)
    assert value == math.inf if hopeless else value.isfinite()
