"""The Triton kernels of ranks and micro-batches, in the interpreter: what they move and how often
they are launched, batches that are split, and memory."""

import fused_mi
import pytest
import torch
from cases import FLOATING, PAIRINGS, assert_same_bits, fresh_memory_full_of_nan, leaves, mi_inputs
from fused_mi import use_backend
from fused_mi._building_blocks import Partners
from fused_mi.reference import parts as plain
from fused_mi.triton_kernels import _configs
from fused_mi.triton_kernels._launch import recorded
from fused_mi.triton_kernels._traffic import expected, traffic
from fused_mi.triton_kernels.parts import merge, parts, pull, unite
from rules import assert_by_rule10
from test_parts import assert_same_parts, case, sets_of_columns
from test_traffic import assert_modelled

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"
)
SPLITS = ("sub_batch", "symmetric", "leave_one_out")


@pytest.fixture(autouse=True)
def _forced():
    with use_backend("triton"):
        yield


@pytest.fixture
def in_parts(monkeypatch):
    """Programs enough to split the batch."""
    monkeypatch.setattr(_configs, "enough_programs", lambda device: 64)
    monkeypatch.setattr(_configs, "_MIN_GROUPS", 1)
    monkeypatch.setattr(_configs, "_MIN_ITERATIONS", 1)


def names(launches):
    return [this.kernel.__name__ for this in launches]


@pytest.mark.parametrize("same_mask", [True, False])
@pytest.mark.parametrize("split", SPLITS)
def test_a_call_has_few_launches_and_each_is_modelled(split, same_mask):
    inputs, given, partners = case(split, same_mask, torch.float32, offset=0.0)
    upstream = torch.ones((len(given), 3), dtype=torch.float64)
    with recorded() as forward:
        found = parts(*inputs, given, partners, torch.float32)
    assert names(forward) == [
        *("prepare_kernel", "meet_kernel", "parts_kernel", "parts_again_kernel", "reduce_kernel")
    ]
    assert_modelled(forward)
    planes = found.planes.double().flip(0) + 0.5
    with recorded() as backward:
        pull(upstream, *inputs, given, partners, planes, [True] * 4)
    assert names(backward) == ["pull_kernel"] * 2
    assert_modelled(backward)
    for this in (*forward, *backward):
        assert traffic(this, expected(this)).bytes > 0


@pytest.mark.parametrize("apart", [True, False])
def test_merging_is_modelled(apart):
    planes, counts = sets_of_columns(3, 8, range(3, 40), torch.float32)
    with recorded() as launches:
        merge(planes, counts, 5, 3, apart)
    assert names(launches) == ["merge_kernel", "reduce_kernel"]
    assert_modelled(launches)
    if not apart:
        planes, counts = sets_of_columns(2, 4, range(20))
        with recorded() as launches:
            unite(planes, counts, torch.ones((2, 4), dtype=torch.int64), 5)
        assert_modelled(launches)


@pytest.mark.parametrize("split", SPLITS)
def test_batches_that_are_split_over_programs(in_parts, split):
    """Each with a part of the rows; some masked, some columns lost."""
    inputs, given, _ = case(split, True, torch.float32, features=40)
    few = [t.repeat(4, 1, 1) + 0.1 * torch.rand(24, 1, 40) for t in inputs]
    few[3][:, :, 1] *= 1e-15
    mask = given[0].sample_mask.repeat(4, 1)
    many = [
        m._replace(
            sample_mask=mask,
            component_mask=mask,
            sample_rows=tuple(4 * row for row in m.sample_rows),
            component_rows=tuple(4 * row for row in m.component_rows),
        )
        for m in given
    ]
    partners = [Partners(*torch.ones((2, 2), dtype=torch.int32)) for _ in many]
    with recorded() as launches:
        parts(*few, many, partners, torch.float32)
    assert "parts_finish_kernel" in names(launches)
    assert_modelled([la for la in launches if la.kernel.__name__ != "parts_again_kernel"])
    found = parts(*few, many, partners, torch.float64)
    assert_same_parts(found, plain.parts(*few, many, partners, torch.float64), 2e-6)


def run(inputs, pairing):
    mine = leaves(inputs)
    group = fused_mi.Ranks(averaged=2)
    value = fused_mi.mutual_information_sub_batch(*mine, pairing=pairing, group=group)
    value.backward()
    return [value.detach(), *(mine[i].grad for i in FLOATING)]


@pytest.mark.parametrize("pairing", PAIRINGS[:2])
def test_memory_is_written_before_it_is_read(pairing):
    """Fresh memory full of NaN changes nothing, nor does another run."""
    inputs = mi_inputs(6, 2, 5, torch.float32, seed=4)
    inputs[2][:, 1] = False
    found = run(inputs, pairing)
    with fresh_memory_full_of_nan():
        assert_same_bits(run(inputs, pairing), found)
    assert not any(t.isnan().any() for t in found)


def test_rows_of_strides_and_types_of_their_own():
    inputs = mi_inputs(6, 2, 10, torch.float32)
    inputs = [t[..., ::2] if i in FLOATING else t for i, t in enumerate(inputs)]
    inputs[0], inputs[4] = inputs[0].bfloat16(), inputs[4].half()
    value, *grads = run(inputs, "symmetric")
    assert_by_rule10(value, [g / 2 for g in grads], inputs, {"pairing": "symmetric"})
