"""The Triton kernels of "leave_one_out", in float32 for inputs of up to 32 bits: rows that are
nearly all of a sum, tiles and splits, and what follows from the instructions of a GPU."""

import numpy as np
import pytest
import torch
from cases import mi, mi_inputs, mixtures
from fused_mi import use_backend
from fused_mi.triton_kernels import _configs, _leave_one_out_few, _leave_one_out_rows, moments
from rules import assert_rule10
from test_moments_rows import CASES, approximate, errors

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
combine = pytest.mark.parametrize("combine", [True, False])


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"):
        yield


def assert_loss(inputs, combine=True):
    options = {"pairing": "leave_one_out", "combine": combine}
    assert_rule10(lambda t: mi(t, **options), inputs, options)


def scaled(inputs, row, factor):
    """The stds of one row, and how far its sample is from its component."""
    means, stds, mask, clean, noisy = inputs
    noise = noisy - clean - means
    stds[row] *= factor
    noise[row] *= factor
    return [means, stds, mask, clean, clean + means + noise]


@combine
@pytest.mark.parametrize("factor", [1e2, 1e3, 1e4, 1e-4])
@pytest.mark.parametrize(
    ("rows", "row"), [(2, 1), (3, 0), (8, 5), (17, 0), (17, 6), (64, 0), (64, 33)]
)
def test_one_row_of_another_scale(rows, row, factor, combine):
    inputs = mi_inputs(rows, 2, 3, torch.float32, seed=1, density=0.7)
    assert_loss(scaled(inputs, row, factor), combine)


@combine
@pytest.mark.parametrize("rows", [5, 16, 21])
@pytest.mark.parametrize("offset", [1e3, 5e5])
def test_offsets(rows, offset, combine):
    assert_loss(mi_inputs(rows, 2, 5, torch.float32, seed=2, offset=offset), combine)


@combine
@pytest.mark.parametrize("rows", [7, 8, 18, 24])
@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(rows, density, dtype, combine):
    """Whole groups of four rows, where every row contributes, and the rest; a whole tile."""
    assert_loss(mi_inputs(rows, 2, 4, dtype, seed=3, density=density), combine)


@combine
@pytest.mark.parametrize("rows", [6, 20])
def test_positions_of_one_active_row(rows, combine):
    """No pair where masks are combined; else its sample meets every other component."""
    inputs = mi_inputs(rows, 3, 4, torch.float32, seed=4)
    inputs[2][:, 1:] = False
    inputs[2][rows // 2, 1] = True
    assert_loss(inputs, combine)


@pytest.mark.parametrize("rows", [40, 41])
def test_splits(monkeypatch, rows):
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 10**6)
    monkeypatch.setattr(_configs, "_MIN_GROUPS", 1)
    tile = _configs.MomentsTile(1, 4, 4, 1, 255)
    monkeypatch.setattr(moments, "moments_tiles", lambda *_, **__: [tile])
    assert_loss(scaled(mi_inputs(rows, 1, 6, torch.float32, seed=5, density=1.0), 9, 1e3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("error", errors)
@pytest.mark.parametrize("rows", [8, 24])
def test_approximate_instructions(monkeypatch, case, error, rows):
    """As inexact as the PTX manual allows."""
    approximate(
        monkeypatch,
        errors[error](np.random.default_rng(0)),
        inverse=(_leave_one_out_few, _leave_one_out_rows),
        logarithm=(_leave_one_out_rows,),
    )
    for density in (0.6, 1.0):
        inputs = CASES[case](mi_inputs(rows, 2, 4, torch.float32, seed=6, density=density))
        assert_loss(inputs)


def test_a_heavy_row_leaves_the_column_to_the_moments():
    """Only such rows are summed pair by pair: the state has all other numbers."""
    means, stds, mask, clean, noisy = scaled(
        mi_inputs(32, 1, 4, torch.float32, seed=7, density=1.0), 5, 1e-2
    )
    _, state = moments.moments(noisy, clean, means, stds, mixtures("leave_one_out", mask))
    assert not state.isnan().any()
    assert (state[0, 3] < 0).all()
