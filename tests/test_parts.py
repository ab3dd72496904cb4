"""Moments of rows whose partners are elsewhere, of whichever backend is forced: what they tell,
what sets of them meet, and the gradients from that."""

import fused_mi
import pytest
import torch
from cases import DEVICE, FLOATING, PAIRINGS, leaves, mi_inputs
from fused_mi._building_blocks import Partners
from fused_mi._mixture import Mixture
from fused_mi.ops._backends import building_blocks
from fused_mi.reference import parts as plain
from rules import assert_by_rule10

pytestmark = pytest.mark.every_backend


def blocks():
    """`parts`, `merge`, `unite` and `pull` of the backend that serves the device."""
    return building_blocks(torch.empty(0, device=DEVICE)).parts


SPLITS = {  # rows that are samples, and components, of each mixture
    "samples alone": [((0, 6), (6, 6))],
    "components alone": [((0, 0), (0, 6))],
    "sub_batch": [((0, 2), (2, 6))],
    "symmetric": [((0, 4), (4, 6)), ((4, 6), (0, 4))],
    "leave_one_out": [((0, 6), (0, 6))],
}


def case(split, same_mask, dtype=torch.float64, offset=10.0, features=5):
    """y, x, mu, stds; mixtures; and how many rows elsewhere each of their rows meets."""
    means, stds, mask, clean, noisy = mi_inputs(6, 2, features, dtype, offset=offset)
    masks = mask, mask if same_mask else torch.ones_like(mask)
    one, other = (torch.tensor(e, dtype=dtype, device=DEVICE) for e in (1e-3, 2e-3))
    given = []
    for d, rows in enumerate(SPLITS[split]):
        eps = (one, one) if same_mask else ((one, other), (other, one))[d]
        given.append(Mixture(*masks, *eps, *rows, split == "leave_one_out"))
    numbers = torch.tensor([[3, 0], [5, 7]], dtype=torch.int32, device=DEVICE)
    if split == "leave_one_out" and same_mask:  # and so are the rows elsewhere
        numbers = numbers[:1].expand(2, -1)
    partners = [Partners(*numbers.roll(d, 0)) for d in range(len(given))]
    return [noisy, clean, means, stds], given, partners


def assert_same_parts(found, wanted, tolerance):
    assert torch.equal(found.counts.long(), wanted.counts.long())
    assert torch.equal(found.components.long(), wanted.components.long())
    torch.testing.assert_close(found.sums, wanted.sums, rtol=tolerance, atol=tolerance)
    # The nearest number and the rest are one mean.
    for of in (0, 3):
        means = (p.planes.double()[:, of : of + 2].sum(1) for p in (found, wanted))
        torch.testing.assert_close(*means, rtol=tolerance, atol=tolerance)
    for i in (2, 5):
        planes = (p.planes[:, i].double() for p in (found, wanted))
        torch.testing.assert_close(*planes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("same_mask", [True, False])
@pytest.mark.parametrize("split", SPLITS)
def test_parts_and_pull_are_those_of_plain_torch(split, same_mask):
    inputs, given, partners = case(split, same_mask)
    found = blocks().parts(*inputs, given, partners, torch.float64)
    assert_same_parts(found, plain.parts(*inputs, given, partners, torch.float64), 1e-12)
    upstream = torch.tensor([[0.3, -2.0, 5.0], [1.0, 0.5, 0.25]], device=DEVICE).double()
    upstream = upstream[: len(given)]
    kept = [Partners(*(t.double() for t in p)) for p in partners]  # as a state keeps them
    planes = found.planes.flip(0) + 0.5
    for wanted in ([True] * 4, [False, True, False, True]):
        grads = blocks().pull(upstream, *inputs, given, kept, planes, wanted)
        exact = plain.pull(upstream, *inputs, given, kept, planes, wanted)
        for a, b, needed in zip(grads, exact, wanted, strict=True):
            assert (a is not None) == needed
            if needed:
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("told", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", ["sub_batch", "leave_one_out"])
def test_columns_that_float32_has_no_room_for(split, told):
    """Variances and squares beyond its range, and a first row that is far from the others."""
    inputs, given, partners = case(split, True, torch.float32, offset=0.0)
    for t in inputs:
        t[:, :, 1] *= 1e-16
        t[:, :, 3] *= 1e12
    for row in {rows[0] for m in given for rows in (m.sample_rows, m.component_rows)}:
        inputs[0][row, :, 2] += 3e6
        inputs[1][row, :, 2] += 3e6
    eps = torch.tensor(1e-36, device=DEVICE)
    given = [m._replace(component_eps=eps, sample_eps=eps) for m in given]
    found = blocks().parts(*inputs, given, partners, told)
    assert_same_parts(found, plain.parts(*inputs, given, partners, told), 2e-6)
    ones = torch.ones((1, 3), dtype=torch.float64, device=DEVICE)
    wanted = [True] * 4
    grads = blocks().pull(ones, *inputs, given, partners, found.planes.double(), wanted)
    exact = plain.pull(ones, *inputs, given, partners, found.planes.double(), wanted)
    for a, b in zip(grads, exact, strict=True):
        assert a is not None and b is not None
        for column in range(5):
            scale = b[..., column].abs().max().item()
            torch.testing.assert_close(a[..., column], b[..., column], rtol=1e-5, atol=1e-5 * scale)


def sets_of_columns(sets, positions, columns, dtype=torch.float64):
    """Planes of some columns of five features a position, and counts; 0 where a set has no rows."""
    counts = torch.randint(0, 3, (2, sets, positions))
    planes = torch.randn((2, sets, 6, len(columns)), dtype=torch.float64)
    planes[:, :, [2, 5]] = planes[:, :, [2, 5]].abs()
    planes[:, :, [1, 4]] *= 1e-8
    samples = counts.repeat_interleave(5, 2)[:, :, columns.start : columns.stop] > 0
    planes[:, :, :3] *= samples[:, :, None]
    planes[:, :, 3:] *= samples.roll(1, -1)[:, :, None]
    return planes.to(DEVICE, dtype), counts.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("sets", [1, 2, 5])
def test_merged_sets_are_those_of_plain_torch(sets, apart, dtype):
    """Of some columns, which begin and end within positions; some sets have no rows there."""
    planes, counts = sets_of_columns(sets, 8, range(3, 40), dtype)
    found = blocks().merge(planes, counts, 5, 3, apart)
    wanted = plain.merge(planes, counts, 5, 3, apart)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert found[0].dtype == dtype and found[2].item() and wanted[2].item()
    for a, b in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-12)
    planes[1, sets - 1, 5, 7] = torch.nan  # who told it had no room
    if sets > 1 or not apart:
        assert not blocks().merge(planes, counts, 5, 3, apart)[2].item()


def test_united_sets_are_those_of_plain_torch():
    planes, counts = sets_of_columns(3, 4, range(20))
    met = torch.randint(0, 9, (2, 4)).to(DEVICE)
    found = blocks().unite(planes, counts, met, 5)
    for a, b in zip(found, plain.unite(planes, counts, met, 5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_one_rank(pairing, dtype, combine):
    """The operator of ranks, on one of them, which is told to scale its gradient."""
    inputs = mi_inputs(6, 2, 5, dtype, offset=10.0)
    mine = leaves(inputs)
    group = fused_mi.Ranks(averaged=2)
    value = fused_mi.mutual_information_sub_batch(*mine, combine, pairing=pairing, group=group)
    value.backward()
    grads = [mine[i].grad / 2 for i in FLOATING]
    assert_by_rule10(value.detach(), grads, inputs, {"pairing": pairing, "combine": combine})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_micro_batches(pairing, dtype):
    inputs = mi_inputs(6, 2, 5, dtype, offset=10.0)
    step = fused_mi.MutualInformationLoss(pairing=pairing).micro_batches(6)
    windows = [slice(0, 2), slice(2, 6)]
    for w in windows:
        step.observe(inputs[1][w], inputs[2][w])
    for w in windows:
        step.add(*(t[w] for t in inputs))
    grads = []
    for w in windows:
        mine = leaves([t[w] for t in inputs])
        step.part(*mine).backward()
        grads.append([mine[i].grad for i in FLOATING])
    found = [torch.cat(of_all) for of_all in zip(*grads, strict=True)]
    assert_by_rule10(step.value(), found, inputs, {"pairing": pairing})


@pytest.mark.parametrize("pairing", ["symmetric", "leave_one_out"])
def test_a_warmup_runs_ranks_and_micro_batches(pairing):
    fused_mi.warmup(1, 3, device=DEVICE, pairing=pairing, gradients=("noisy",), ranks=True)
    with pytest.raises(TypeError, match="ranks"):
        fused_mi.warmup(1, 3, device=DEVICE, ranks=2)


def test_ranks_are_explained():
    (choice,) = (c for c in fused_mi.explain(mi_inputs()[0]) if c.operator == "ranks")
    (jensen,) = (c for c in fused_mi.explain(mi_inputs()[0]) if c.operator == "jensen")
    assert choice.backend == jensen.backend
