"""The losses on the CPU kernels, on every instruction path that this machine has."""

import pytest
import torch
from cases import (
    FLOATING,
    MASK,
    assert_addresses_do_not_matter,
    assert_same_bits,
    evaluate,
    fresh_memory_full_of_nan,
    mi,
    mi_inputs,
)
from marks import combine, estimator, every_dtype, pairing
from rules import assert_rule10

pytestmark = pytest.mark.usefixtures("path")
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
ODD = [(2, 3, 1), (6, 1, 3), (10, 2, 127), (6, 3, 129), (4, 2, 4097)]


def calling(**options):
    return lambda inputs: mi(inputs, **options)


@estimator
@pairing
@every_dtype
@combine
def test_rule10(estimator, pairing, dtype, combine):
    inputs = mi_inputs(b=8, s=3, e=37, dtype=dtype, seed=1)
    inputs[MASK][:, 2] = False
    options = {"estimator": estimator, "pairing": pairing, "combine": combine}
    assert_rule10(calling(**options), inputs, options)


@estimator
@pairing
@pytest.mark.parametrize("shape", [*ODD, (50, 1, 5)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_odd_sizes(estimator, pairing, shape, offset):
    inputs = mi_inputs(*shape, dtype=F32, seed=2, offset=offset)
    options = {"estimator": estimator, "pairing": pairing}
    assert_rule10(calling(**options), inputs, options)


@pairing
def test_a_batch_that_is_split(pairing):
    inputs = mi_inputs(270, 1, 5, dtype=F32, seed=2)
    assert_rule10(calling(pairing=pairing), inputs, {"pairing": pairing})


@estimator
@pairing
@pytest.mark.parametrize(
    "of_inputs", [(F16, F32, BF16, F32), (F64, F32, BF16, F32)], ids=["float32", "float64"]
)
def test_mixed_dtypes(estimator, pairing, of_inputs):
    inputs = mi_inputs(b=8, s=3, e=20, seed=4)
    for i, dtype in zip(FLOATING, of_inputs, strict=True):
        inputs[i] = inputs[i].to(dtype)
    options = {"estimator": estimator, "pairing": pairing}
    assert_rule10(calling(**options), inputs, options)


@estimator
@pairing
@every_dtype
def test_what_is_masked_has_no_influence(estimator, pairing, dtype):
    inputs = mi_inputs(b=8, s=6, e=19, dtype=dtype, seed=6)
    mask = inputs[MASK]
    mask[:, 1:3] = False
    mask[1, 2] = True  # nobody else is active there
    spoiled = [t.clone() for t in inputs]
    for i, value in zip(FLOATING, (torch.nan, torch.inf, -torch.inf, torch.nan), strict=True):
        spoiled[i][~mask] = value
        spoiled[i][1, 2] = value
    loss = calling(estimator=estimator, pairing=pairing)
    assert_same_bits(evaluate(loss, spoiled), evaluate(loss, inputs))
    spoiled[MASK][:] = False
    assert not any(t.any() for t in evaluate(loss, spoiled))


@estimator
@pairing
@every_dtype
@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 21), (300, 1, 40)], ids=str)
def test_memory_is_written_before_it_is_read(estimator, pairing, dtype, shape):
    inputs = mi_inputs(*shape, dtype=dtype, seed=10)
    inputs[MASK][:, 1:2] = False
    loss = calling(estimator=estimator, pairing=pairing)
    plain = evaluate(loss, inputs)
    with fresh_memory_full_of_nan():
        again = evaluate(loss, inputs)
    assert_same_bits(again, plain)
    assert not any(t.isnan().any() for t in again)


@pairing
@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1e-20, 1e-7, 1e6, 1e20, 3e38])
@pytest.mark.parametrize("where", [slice(None), slice(0, 3), slice(3, None), (4, 0, 1)], ids=str)
def test_extreme_variances_give_no_nan(pairing, sigma, where):
    """Of energies and sums: in the files of their kernels."""
    inputs = mi_inputs(b=6, s=2, e=21, dtype=F32, seed=14)
    inputs[1][where] = sigma
    loss = calling(estimator="logsumexp", pairing=pairing)
    assert not any(t.isnan().any() for t in evaluate(loss, inputs))


def test_large_addresses():
    """Rows 2^30 elements apart: the last ones begin beyond 2^31."""
    inputs = mi_inputs(b=4, s=2, e=3, dtype=F16, seed=15)
    assert_addresses_do_not_matter(inputs)
