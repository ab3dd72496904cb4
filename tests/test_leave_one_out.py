"""Every row against all others where the row itself would take the digits: under rule 10."""

import pytest
import torch
from cases import DEVICE, FLOATING, MASK, interpreted, mi, mi_inputs, value_and_gradients
from marks import combine, dtypes
from rules import assert_rule10

pytestmark = pytest.mark.every_backend

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
BATCHES = 2, 3, 8, 17, 64

every_batch = pytest.mark.parametrize("b", BATCHES)
batch = pytest.mark.parametrize("b", BATCHES[:-1] if interpreted() else BATCHES)
offset = pytest.mark.parametrize("offset", [0.0, 1e3, 5e5])
which_row = pytest.mark.parametrize("row", ["first", "middle", "last"])


def rows_of(b, dtype, offset=0.0, seed=0, change=None):
    """Inputs that `change` has had in float64, where rounding cannot hide what it does."""
    inputs = mi_inputs(b, 3, 5, seed=seed, offset=offset)
    inputs[MASK][:, 1] = False
    inputs[MASK][b // 2, 1] = True  # one row only is active here
    if change:
        change(*inputs)
    return [t.to(dtype) if t.is_floating_point() else t for t in inputs]


def row_number(row, b):
    return {"first": 0, "middle": b // 2, "last": b - 1}[row]


def assert_right(inputs, combine):
    options = {"pairing": "leave_one_out", "combine": combine}
    assert_rule10(lambda tensors: mi(tensors, **options), inputs, options)


@every_batch
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e3, 1e4, 1e-4])
@which_row
@combine
@dtypes(F32, F64)
def test_one_sigma_beside_the_others(b, ratio, row, combine, dtype):
    def change(means, stds, mask, clean, noisy):
        i = row_number(row, b)
        noise = (noisy[i] - clean[i] - means[i]) * ratio
        stds[i] *= ratio
        noisy[i] = clean[i] + means[i] + noise

    assert_right(rows_of(b, dtype, seed=b, change=change), combine)


@batch
@pytest.mark.parametrize("ratio", [1e2, 1e-4])
@offset
@combine
@dtypes(F32, F64)
def test_one_sigma_in_one_column(b, ratio, offset, combine, dtype):
    """Its sample stays where it was: far from its component, in units of a small sigma."""

    def change(means, stds, mask, clean, noisy):
        stds[b // 2, :, 3] *= ratio

    assert_right(rows_of(b, dtype, offset, seed=20 + b, change=change), combine)


@batch
@offset
@combine
@dtypes(F32, F64)
def test_offsets(b, offset, combine, dtype):
    assert_right(rows_of(b, dtype, offset, seed=40 + b), combine)


@pytest.mark.parametrize("b", [3, 17])
@combine
def test_an_offset_of_the_means(b, combine):
    def change(means, stds, mask, clean, noisy):
        means += 1e3
        noisy += 1e3

    assert_right(rows_of(b, F32, seed=50 + b, change=change), combine)


@batch
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("far", ["x", "y", "x and y", "x, and y of others"])
@which_row
@combine
def test_one_row_far_from_the_others(b, distance, far, row, combine):
    def change(means, stds, mask, clean, noisy):
        i = row_number(row, b)
        if far.startswith("x"):
            clean[i] += distance
        if far in ("y", "x and y"):
            noisy[i] += distance
        if far.endswith("others"):
            noisy[(i + 1) % b] += 1.3 * distance
            noisy[(i + 2) % b] -= 1.7 * distance

    assert_right(rows_of(b, F32, seed=60 + b, change=change), combine)


@combine
@pytest.mark.parametrize("b", [3, 17])
def test_bfloat16(b, combine):
    def change(means, stds, mask, clean, noisy):
        stds[b // 2] *= 100
        noisy[b // 2] = clean[b // 2] + 100 * (noisy[b // 2] - clean[b // 2])

    assert_right(rows_of(b, BF16, seed=80 + b, change=change), combine)


@batch
@dtypes(F32, F64)
def test_a_row_alone_at_its_position_has_no_influence(b, dtype):
    """With the masks combined: what it holds there changes no bit, and its gradients are 0."""
    inputs = rows_of(b, dtype, seed=90 + b)

    def run(tensors):
        return mi(tensors, pairing="leave_one_out")

    value, gradients = value_and_gradients(run, inputs)
    assert all((g[:, 1] == 0).all() for g in gradients)
    for index in FLOATING:
        inputs[index][b // 2, 1] = torch.nan
    again, gradients_again = value_and_gradients(run, inputs)
    assert torch.equal(value, again)
    for before, after in zip(gradients, gradients_again, strict=True):
        assert torch.equal(before, after)


@combine
@dtypes(F32, F64)
def test_a_position_of_two_rows(combine, dtype):
    """Each meets the other alone, in a batch of many: all but nothing is taken off."""
    inputs = rows_of(17, dtype, seed=110)
    inputs[MASK][:, 2] = False
    inputs[MASK][[4, 11], 2] = True
    inputs[1][4, 2] *= 1e4
    assert_right(inputs, combine)


def test_no_pair_at_all():
    inputs = rows_of(4, F32, seed=120)
    inputs[MASK] = torch.zeros(4, 3, dtype=torch.bool, device=DEVICE)
    inputs[MASK][[0, 1], [0, 2]] = True
    value, gradients = value_and_gradients(lambda t: mi(t, pairing="leave_one_out"), inputs)
    assert value == 0
    assert all((g == 0).all() for g in gradients)
