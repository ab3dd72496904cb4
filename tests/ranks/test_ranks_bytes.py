"""How much travels: counted where torch.distributed is asked, the most of all ranks."""

import fused_mi
import pytest
import torch
import torch.distributed as dist
from cases import PAIRINGS, leaves, mi_inputs
from on_ranks import share
from pool import pool


class Counted:
    """Bytes that leave this rank, by the usual algorithms: of a ring where there is one."""

    def __enter__(self):
        self.bytes, self._saved = 0, {}
        world = dist.get_world_size()

        def gather(out, t, **_):
            return (world - 1) * t.nbytes

        def reduce(t, *_, **__):
            return 2 * (world - 1) * t.nbytes // world

        def exchange(out, t, received, sent, **_):
            own = sent[dist.get_rank()] * t.element_size()
            return t.nbytes - own

        self._wrap("all_gather_single", gather)
        self._wrap("all_gather_into_tensor", gather)
        self._wrap("all_reduce", reduce)
        self._wrap("all_to_all_single", exchange)
        return self

    def _wrap(self, name, count):
        original = getattr(dist, name, None)
        if original is None:
            return
        self._saved[name] = original

        def counted(*arguments, **options):
            self.bytes += count(*arguments, **options)
            return original(*arguments, **options)

        setattr(dist, name, counted)

    def __exit__(self, *_):
        for name, original in self._saved.items():
            setattr(dist, name, original)


def sent(rank, inputs, sizes, options):
    mine = leaves(share(rank, inputs, sizes))
    with Counted() as forward:
        value = fused_mi.mutual_information_sub_batch(*mine, group=dist.group.WORLD, **options)
    with Counted() as backward:
        value.backward()
    return forward.bytes, backward.bytes


def most_sent(batch, s, e, world, dtype=torch.float32, **options):
    sizes = [batch // world] * world
    found = pool(world).run(sent, mi_inputs(batch, s, e, dtype), sizes, options)
    return [max(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 96), (64, 96), (1, 64)])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_moments_travel_and_nothing_in_the_backward_pass(pairing, world, shape, dtype):
    S, E = shape
    forward, backward = most_sent(8, S, E, world, dtype, pairing=pairing)
    both = 1 if pairing == "sub_batch" else 2
    assert forward <= both * (24 * S * E + 64 * S + 4096) * (world - 1) / world
    assert forward >= 12 * S * E * (world - 1) / world
    assert backward == 0


def test_a_rank_of_both_roles_sends_both():
    """Of three ranks the one in the middle has samples and components."""
    S, E = 16, 96
    forward, _ = most_sent(6, S, E, 3)
    # What it says of either role, and what it merged, for the two others.
    assert forward <= 2 / 3 * (24 + 24) * S * E + 64 * S + 4096


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_batch_size_does_not_matter(pairing):
    few, many = (most_sent(b, 4, 40, 2, pairing=pairing)[0] for b in (4, 64))
    assert few == many


def test_logsumexp_sends_rows_by_features_or_by_samples():
    """Features of half the rows of either role there and back, and energies; or components."""
    S, E, batch = 8, 64, 8
    rows = batch // 2 * S * E * 8  # of one input on one rank, float64
    forward, backward = most_sent(batch, S, E, 2, torch.float64, estimator="logsumexp")
    assert forward <= 4 * rows / 2 + 16384
    assert backward <= 3 * rows / 2 + 16384
    forward, backward = most_sent(64, 1, 4, 2, torch.float64, estimator="logsumexp")
    assert forward <= 4 * 32 * 4 * 8 + 16384
