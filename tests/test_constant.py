"""`constant="subtract"`: the mutual information itself, without d/2."""

import fused_mi
import pytest
import torch
from cases import DEVICE, MASK, assert_same_bits, directions, gradients, leaves, mi, mi_inputs
from marks import combine, estimator, every_option, options, pairing

pytestmark = pytest.mark.every_device  # the same code for every backend
TOTAL, STD_LOG = "mutual_information_loss", "std_log_loss"


def features(mask, size, pairing, combine):
    """d, pair by pair."""
    found = []
    for samples, components in directions(pairing, mask.shape[0]):
        for i in range(mask.shape[0])[samples]:
            for j in range(mask.shape[0])[components]:
                if i != j:
                    weight = mask[i] & mask[j] if combine else mask[i]
                    found.append(weight.sum().item() * size)
    return sum(found) / len(found)


@every_option
def test_it_takes_half_a_nat_from_each_feature(options):
    inputs = mi_inputs(seed=3)
    size = inputs[0].shape[-1]
    kept, taken = {}, {}
    ours_in, less_in = leaves(inputs), leaves(inputs)
    ours = mi(ours_in, losses=kept, **options)
    less = mi(less_in, losses=taken, constant="subtract", **options)
    half = features(inputs[MASK].cpu(), size, options["pairing"], options["combine"]) / 2
    if options["reduction"] == "sum":
        half *= len(inputs[0]) if options["pairing"] == "leave_one_out" else len(inputs[0]) // 2
    assert half > 1
    assert ours.item() - less.item() == pytest.approx(half, rel=1e-12)
    assert mi(inputs, constant="subtract", **options).item() == less.item()
    assert set(kept) == set(taken)
    for name, term in kept.items():
        lost = half if name in (TOTAL, STD_LOG) else 0
        assert term.item() - taken[name].item() == pytest.approx(lost, rel=1e-12, abs=0), name
    assert taken[TOTAL].item() == less.item()
    assert_same_bits(gradients(ours, ours_in), gradients(less, less_in))


@pairing
@combine
def test_nothing_is_told_where_all_inputs_are_one(pairing, combine):
    """Of 1000 features per sample: the sum of (noise^2 - 1) / 2, within 5 standard errors."""
    b, s, e = 4, 4, 250
    gen = torch.Generator().manual_seed(0)
    one = torch.randn((1, s, e), generator=gen).expand(b, s, e)
    stds = torch.full((b, s, e), 0.7)
    noisy = one + 0.7 * torch.randn((b, s, e), generator=gen)
    mask = torch.ones((b, s), dtype=torch.bool)
    inputs = [t.to(DEVICE) for t in (torch.zeros(b, s, e), stds, mask, one, noisy)]
    value = mi(inputs, combine, pairing=pairing, reduction="mean", constant="subtract").item()
    samples = b if pairing != "sub_batch" else b // 2
    assert abs(value) < 5 * (s * e / 2 / samples) ** 0.5


@estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_is_that_of_the_loss(estimator, dtype):
    losses = {}
    value = mi(mi_inputs(dtype=dtype), losses=losses, estimator=estimator, constant="subtract")
    wide = torch.promote_types(dtype, torch.float32)
    assert value.dtype == wide and value.dim() == 0
    assert all(term.dtype == wide and term.dim() == 0 for term in losses.values())


def test_nothing_active_is_zero():
    inputs = mi_inputs()
    inputs[MASK][:] = False
    assert mi(inputs, constant="subtract").item() == 0


@options(estimator=("jensen", "logsumexp"), pairing=("sub_batch", "leave_one_out"))
def test_one_graph_and_a_module(options):
    inputs = mi_inputs(dtype=torch.float32)
    module = fused_mi.MutualInformationLoss(constant="subtract", **options)
    want = mi(inputs, constant="subtract", **options)
    assert_same_bits([module(*inputs)], [want])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert_same_bits([compiled(*inputs)], [want])
    assert "constant='subtract'" in repr(module)
