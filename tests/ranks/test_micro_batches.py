"""A step over micro-batches is that of the whole batch, on one rank or several."""

import fused_mi
import pytest
import torch
from cases import FLOATING, PAIRINGS, leaves, mi_inputs
from on_ranks import share
from pool import pool
from rules import assert_by_rule10


def run_step(mine, cuts, loss, factor=1.0):
    """Value, the sum of the parts, entries, and gradients of a step."""
    step = loss.micro_batches(len(mine[0]))
    windows = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(mine[0])], strict=True)]
    for w in windows:
        step.observe(mine[1][w], mine[2][w])
    for w in windows:
        step.add(*(t[w] for t in mine))
    losses = {}
    value, total, grads = step.value(losses), 0, []
    for w in windows:
        batch = leaves([t[w] for t in mine])
        part = step.part(*batch)
        (factor * part).backward()
        total = total + part.detach()
        grads.append([batch[i].grad for i in FLOATING])
    return value, total, losses, [torch.cat(of) for of in zip(*grads, strict=True)]


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("combine", [True, False])
@pytest.mark.parametrize("cuts", [(), (2,), (1, 2, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_one_rank(pairing, dtype, cuts, combine, offset):
    inputs = mi_inputs(6, 3, 4, dtype, offset=offset)
    options = {"pairing": pairing, "combine": combine}
    loss = fused_mi.MutualInformationLoss(combine, pairing=pairing)
    value, total, _, grads = run_step(inputs, cuts, loss)
    assert_by_rule10(value, grads, inputs, options)
    torch.testing.assert_close(total, value)


@pytest.mark.parametrize("constant", ["keep", "subtract"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_entries(pairing, reduction, constant):
    inputs = mi_inputs(6, 3, 4)
    options = {"pairing": pairing, "reduction": reduction, "constant": constant}
    value, total, losses, _ = run_step(inputs, (3,), fused_mi.MutualInformationLoss(**options))
    wanted = {}
    whole = fused_mi.mutual_information_sub_batch(*inputs, losses=wanted, **options)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(total, whole)
    assert losses.keys() == wanted.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], wanted[name])


def of_rank(rank, inputs, sizes, cuts, combine, options):
    import torch.distributed as dist

    group = fused_mi.Ranks(dist.group.WORLD, averaged=1)
    loss = fused_mi.MutualInformationLoss(combine, group=group, **options)
    return run_step(share(rank, inputs, sizes), cuts[rank], loss)


@pytest.mark.parametrize("combine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ((4, 4), ((2,), (1, 3))),
        ((6, 2), ((1, 4), ())),
        ((0, 8), ((), (3, 5))),
        ((3, 2, 3), ((1,), (), (2,))),
    ],
)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_several_ranks(pairing, sizes, cuts, dtype, combine):
    inputs = mi_inputs(8, 3, 4, dtype)
    found = pool(len(sizes)).run(of_rank, inputs, sizes, cuts, combine, {"pairing": pairing})
    grads = [torch.cat(of) for of in zip(*(f[3] for f in found), strict=True)]
    for value, total, _, _ in found:
        assert torch.equal(value, found[0][0])
        torch.testing.assert_close(total, value)
    assert_by_rule10(found[0][0], grads, inputs, {"pairing": pairing, "combine": combine})


def test_an_outlying_row_of_a_micro_batch_of_its_own():
    """Moments of the others are merged from theirs: nothing is subtracted from a sum of all."""
    inputs = mi_inputs(5, 1, 6, torch.float32)
    inputs[1][2] *= 1e-2
    inputs[1][4] *= 1e2
    loss = fused_mi.MutualInformationLoss(pairing="leave_one_out")
    value, _, _, grads = run_step(inputs, (1, 2, 3, 4), loss)
    assert_by_rule10(value, grads, inputs, {"pairing": "leave_one_out"})


@pytest.mark.parametrize(
    ("options", "says"),
    [({"estimator": "logsumexp"}, 'expected estimator="jensen"'), ({"reduction": "none"}, "none")],
)
def test_what_has_no_micro_batches(options, says):
    with pytest.raises(ValueError, match=says):
        fused_mi.MutualInformationLoss(**options).micro_batches(4)


def test_the_order_of_calls_is_checked():
    inputs = mi_inputs(4, 2, 3)
    step = fused_mi.MutualInformationLoss().micro_batches(4)
    with pytest.raises(RuntimeError, match="to be added"):
        step.value()
    with pytest.raises(RuntimeError, match="observe micro-batch 0"):
        step.add(*inputs)
    step.observe(inputs[1], inputs[2])
    with pytest.raises(ValueError, match="expected 4 rows"):
        step.observe(inputs[1], inputs[2])
    with pytest.raises(RuntimeError, match="to be added"):
        step.part(*inputs)
    with pytest.raises(ValueError, match="expected 4 rows in micro-batch 0, got 2"):
        step.add(*(t[:2] for t in inputs))
    step.add(*inputs)
    with pytest.raises(RuntimeError, match="before the first add"):
        step.observe(inputs[1], inputs[2])
    step.part(*inputs)
    with pytest.raises(RuntimeError, match="observe micro-batch 1"):
        step.part(*inputs)


def test_too_few_rows():
    inputs = mi_inputs(4, 2, 3)
    step = fused_mi.MutualInformationLoss().micro_batches(6)
    step.observe(inputs[1], inputs[2])
    step.add(*inputs)
    with pytest.raises(ValueError, match="expected 6 rows, got 4"):
        step.value()
    odd = fused_mi.MutualInformationLoss().micro_batches(3)
    with pytest.raises(ValueError, match="expected an even batch"):
        odd.observe(inputs[1][:3], inputs[2][:3])


@pytest.mark.parametrize("constant", ["keep", "subtract"])
def test_one_row_is_skipped(constant):
    """Also where it comes in parts of which some are empty."""
    inputs = mi_inputs(1, 3, 4, torch.float32)
    loss = fused_mi.MutualInformationLoss(small_batch="skip", constant=constant)
    value, total, losses, grads = run_step(inputs, (0,), loss)
    assert value == total == 0
    assert not value.requires_grad
    wanted = {}
    loss(*inputs, losses=wanted)
    assert losses == wanted
    assert all((g == 0).all() and len(g) == 1 for g in grads)
    with pytest.raises(RuntimeError, match="all micro-batches to be added"):
        loss.micro_batches(1).value()


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_an_empty_micro_batch_on_plain_torch(pairing):
    inputs = mi_inputs(6, 3, 4, torch.float32)
    with fused_mi.use_backend("reference"):
        value, total, _, grads = run_step(
            inputs, (0, 4), fused_mi.MutualInformationLoss(pairing=pairing)
        )
    assert_by_rule10(value, grads, inputs, {"pairing": pairing})
    torch.testing.assert_close(total, value)
