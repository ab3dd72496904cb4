"""The least positive variance and the stabiliser made of it."""

import math

import pytest
import torch
from fused_mi.reference.variance import min_positive_variance, stabiliser

F32, F64 = torch.float32, torch.float64


def least(values, mask=None, dtype=F64):
    stds = torch.tensor(values, dtype=dtype).view(1, -1, 1)
    mask = None if mask is None else torch.tensor(mask).view(1, -1)
    result = min_positive_variance(stds, mask, dtype)
    assert result.shape == ()
    assert result.dtype == dtype
    return result.item()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_least_square_counts(dtype):
    assert least([3.0, -0.5, 2.0], dtype=dtype) == 0.25


def test_zero_nan_and_inf_do_not_count():
    assert least([0.0, math.nan, math.inf, 2.0, -math.inf]) == 4.0


def test_squares_that_leave_the_range_of_the_dtype_do_not_count():
    assert least([1e-30, 2.0, 1e20], dtype=F32) == 4.0
    assert least([1e-30, 2.0], dtype=F64) == pytest.approx(1e-60)
    assert least([1e-200, 2.0, 1e200], dtype=F64) == 4.0


def test_a_denormal_square_counts():
    assert 0 < least([1e-20, 2.0], dtype=F32) < 1e-38


@pytest.mark.parametrize("values", [[0.0], [math.nan, 0.0], [math.inf], []])
def test_nothing_left_is_one(values):
    assert least(values) == 1.0


def test_only_active_positions_count():
    assert least([0.1, 0.5, 3.0], [False, True, True]) == 0.25
    assert least([0.1, 0.5, 3.0], [False, False, False]) == 1.0


def test_half_types_are_squared_in_the_accumulation_type():
    stds = torch.full((1, 1, 1), 1e-5, dtype=torch.float16)
    result = min_positive_variance(stds, None, F32)
    assert result.item() == pytest.approx(stds.double().item() ** 2, rel=1e-6)


def test_no_gradient():
    stds = torch.rand(2, 3, 4, requires_grad=True)
    assert not min_positive_variance(stds, None, F32).requires_grad


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("factor", [0.0, 10.0, 100.0])
def test_stabiliser(dtype, factor):
    stds = torch.tensor([0.5, 2.0], dtype=dtype).view(1, 2, 1)
    eps = stabiliser(stds, torch.ones(1, 2, dtype=torch.bool), dtype, factor)
    assert eps.item() == pytest.approx(factor * torch.finfo(dtype).eps * 0.25, rel=1e-6)


def test_the_stabiliser_of_the_least_denormal_does_not_vanish():
    stds = torch.full((1, 1, 1), 1e-22, dtype=F32)
    assert stabiliser(stds, torch.ones(1, 1, dtype=torch.bool), F32, 100.0) > 0


def test_strided_and_expanded_stds():
    base = torch.tensor([[5.0, 0.1], [3.0, 4.0]], dtype=F64)
    strided = base.view(1, 2, 2)[..., :1]
    assert min_positive_variance(strided, None, F64).item() == 9.0
    expanded = base[1].view(1, 1, 2).expand(3, 4, 2)
    assert min_positive_variance(expanded, None, F64).item() == 9.0
