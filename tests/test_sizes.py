"""Sizes and dtypes that tiles, splits and vector accesses could get wrong, by the rule."""

import math

import pytest
import torch
from cases import FLOATING, interpreted, mi, mi_inputs
from large import PAIR_ELEMENTS, assert_sample
from marks import combine, dtypes, estimator, pairing
from rules import assert_rule10

pytestmark = pytest.mark.every_backend

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = {  # of means, stds, clean and noisy
    "bfloat16": (BF16,) * 4,
    "float16": (F16,) * 4,
    "float64": (F64,) * 4,
    "stds in float32, others in bfloat16": (BF16, F32, BF16, BF16),
    "float16, float32 and bfloat16": (F16, F32, BF16, BF16),
    "noisy in float64, others in float32": (F32, F32, F32, F64),
}
SIZES = [
    ((2, 1, 1), "sub_batch"),
    ((2, 3, 1), "leave_one_out"),
    ((3, 2, 5), "leave_one_out"),
    ((4, 2, 3), "symmetric"),
    ((6, 1, 127), "sub_batch"),
    ((6, 3, 129), "symmetric"),
    ((7, 2, 129), "leave_one_out"),
    ((4, 2, 4097), "sub_batch"),
    ((34, 300, 33), "sub_batch"),
    ((8, 4096, 2), "sub_batch"),
]
# Too large to be compared whole: under "logsumexp" every gradient depends on all positions.
LARGE = [((4096, 2, 8), "sub_batch"), ((2048, 1, 3), "leave_one_out")]


def affordable(values):
    """Those that the interpreter does not take minutes for."""
    if not interpreted():
        return values
    shapes = [v[0] if isinstance(v[0], tuple) else v for v in values]
    return [v for v, shape in zip(values, shapes, strict=True) if math.prod(shape) <= 500]


def assert_close(inputs, **options):
    rows, positions, features = inputs[0].shape
    roles = rows if options["pairing"] == "leave_one_out" else rows // 2
    if roles**2 * positions * features <= PAIR_ELEMENTS:
        assert_rule10(lambda t: mi(t, **options), inputs, options)
    else:
        assert options["estimator"] == "jensen"
        assert_sample(inputs, **options)


@estimator
@pairing
@pytest.mark.parametrize("of_inputs", DTYPES.values(), ids=DTYPES.keys())
def test_dtypes(estimator, pairing, of_inputs):
    inputs = mi_inputs(6, 2, 20)
    for i, dtype in zip(FLOATING, of_inputs, strict=True):
        inputs[i] = inputs[i].to(dtype)
    assert_close(inputs, estimator=estimator, pairing=pairing)


@estimator
@pytest.mark.parametrize(("shape", "pairing"), affordable(SIZES), ids=str)
@dtypes(F32, BF16)
def test_sizes(estimator, shape, pairing, dtype):
    assert_close(mi_inputs(*shape, dtype=dtype), estimator=estimator, pairing=pairing)


@pytest.mark.parametrize(("shape", "pairing"), affordable(LARGE), ids=str)
@dtypes(F32, BF16)
def test_large_batches(shape, pairing, dtype):
    assert_close(mi_inputs(*shape, dtype=dtype), estimator="jensen", pairing=pairing)


@estimator
@pairing
@combine
@pytest.mark.parametrize("shape", affordable([(48, 5, 200), (140, 2, 33)]), ids=str)
def test_several_tiles(estimator, pairing, combine, shape):
    inputs = mi_inputs(*shape, dtype=F32)
    assert_close(inputs, estimator=estimator, pairing=pairing, combine=combine)


@estimator
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("shape", affordable([(6, 4, 5), (64, 9, 130), (64, 9, 13)]), ids=str)
def test_densities(estimator, density, shape):
    inputs = mi_inputs(*shape, dtype=F32, density=density)
    assert_close(inputs, estimator=estimator, pairing="sub_batch")
