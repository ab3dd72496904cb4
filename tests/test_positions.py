"""The kernel of the positions: what `Mixture.contributing` says, by one program and by several."""

import pytest
import torch
from cases import mixtures
from fused_mi._mixture import Mixture
from fused_mi.triton_kernels import _configs, _positions
from fused_mi.triton_kernels._launch import recorded
from marks import pairing


def masks(rows, s, seed):
    """Strided, with a position that nobody has, one of a single row, and one of all."""
    mask = torch.rand((s, rows), generator=torch.Generator().manual_seed(seed)).t() < 0.4
    for position, who in ((0, slice(0, 0)), (1, slice(rows - 1, rows)), (2, slice(0, rows))):
        if position < s:
            mask[:, position] = False
            mask[who, position] = True
    return mask


def assert_positions(mixture, launches=1):
    with recorded() as found:
        _positions.positions(mixture)
    assert len(found) == launches
    result = _positions.positions(mixture)
    roles = mixture.contributing()
    for ours, plain in zip((result.sample_active, result.component_active), roles, strict=True):
        assert torch.equal(ours, plain.to(ours.dtype))
    counts, first = result.counts[:2], result.counts[2:]
    for n, at, plain in zip(counts, first, roles, strict=True):
        assert torch.equal(n, plain.sum(0).int())
        some = plain.any(0)
        assert torch.equal(at[some], plain.int().argmax(0).int()[some])
    assert result.irregular.item() == 0


@pairing
@pytest.mark.parametrize("s", [1, 3, 33, 70])
@pytest.mark.parametrize("rows", [2, 10, 26])
def test_positions_of_one_launch(pairing, s, rows):
    for mixture in mixtures(pairing, masks(rows, s, seed=rows)):
        assert_positions(mixture)


@pairing
@pytest.mark.parametrize(("s", "rows"), [(1, 9001), (5, 1302), (33, 313), (70, 602)])
def test_positions_of_many_rows_are_found_by_several_programs(pairing, s, rows):
    rows -= pairing != "leave_one_out" and rows % 2
    tile = _configs.positions_tile(s)
    part = rows if pairing == "leave_one_out" else rows // 2
    several = _configs.positions_splits(part, tile.BLOCK_ROWS)[0] > 1
    for mixture in mixtures(pairing, masks(rows, s, seed=s)):
        assert_positions(mixture, 1 + several)
    if s != 33 or pairing == "leave_one_out":
        assert several


def test_roles_of_different_sizes_and_masks():
    samples, components = masks(700, 33, seed=1), masks(150, 33, seed=2)
    components[:, 5] = False
    assert_positions(Mixture.of_all_rows(samples, components, torch.tensor(1.0)), 2)
    assert_positions(Mixture.of_all_rows(components, samples, torch.tensor(1.0)), 2)
