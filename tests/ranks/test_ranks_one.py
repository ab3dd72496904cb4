"""One rank that is told to scale its gradient takes the operator of ranks, on whatever device."""

import fused_mi
import pytest
import torch
import torch.distributed as dist
from cases import FLOATING, PAIRINGS, leaves, mi_inputs
from fused_mi.ranks import group_of
from rules import assert_by_rule10


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_sizes_that_ranks_ask_for_are_not_told(group):
    """Only where the caller told them may a call leave out what waits for the device."""
    ranks = fused_mi.Ranks(group, averaged=2)
    assert group_of(ranks)._replace(sizes=(6, 6)).told is False
    assert group_of(fused_mi.Ranks(group, averaged=2, sizes=(6,))).told is True


@pytest.mark.every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
def test_one_rank(group, estimator, pairing, dtype):
    inputs = mi_inputs(6, 3, 5, dtype)
    options = {"estimator": estimator, "pairing": pairing}
    mine = leaves(inputs)
    value = fused_mi.mutual_information_sub_batch(
        *mine, group=fused_mi.Ranks(group, averaged=2), **options
    )
    value.backward()
    grads = [mine[i].grad / 2 for i in FLOATING]
    assert_by_rule10(value.detach(), grads, inputs, options)
