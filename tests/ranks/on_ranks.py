"""A loss on the ranks of a pool: each has some rows of a batch; what comes back is put together."""

import contextlib

import fused_mi
import torch
import torch.distributed as dist
from cases import FLOATING, MASK, leaves
from pool import pool


def share(rank, tensors, sizes):
    """The rows of a rank."""
    start = sum(sizes[:rank])
    return [None if t is None else t[start : start + sizes[rank]].clone() for t in tensors]


def weighted_sum(losses, weights):
    """Of the entries of `losses`, by name; without weights the loss."""
    return sum(weight * losses[name] for name, weight in weights.items())


def information(rank, inputs, sizes, options, weights, backend):
    """Value, gradients of this rank's rows of the loss of all ranks, and entries."""
    mine = leaves(share(rank, inputs, sizes))
    losses = {}
    combine = options.pop("combine", True)
    options = {"group": fused_mi.Ranks(dist.group.WORLD, averaged=1), **options}
    chosen = contextlib.nullcontext() if backend is None else fused_mi.use_backend(backend)
    with chosen:
        value = fused_mi.mutual_information_sub_batch(*mine, combine, losses, **options)
        of_value = value if weights is None else weighted_sum(losses, weights)
        of_value.backward()
    return value.detach(), [mine[i].grad for i in FLOATING], detached(losses)


def detached(losses):
    return {name: entry.detach() for name, entry in losses.items()}


def on_ranks(inputs, sizes, weights=None, backend=None, **options):
    """Of the whole batch: value, gradients in the order of FLOATING, and entries; the same bits on
    all ranks."""
    found = pool(len(sizes)).run(information, inputs, sizes, options, weights, backend)
    for value, _, losses in found[1:]:
        assert torch.equal(value, found[0][0])
        for name, entry in losses.items():
            assert torch.equal(entry, found[0][2][name]), name
    grads = [torch.cat(of_ranks) for of_ranks in zip(*(g for _, g, _ in found), strict=True)]
    return found[0][0], grads, found[0][2]


def on_one(inputs, weights=None, **options):
    """The same of one process."""
    whole = leaves(inputs)
    losses = {}
    combine = options.pop("combine", True)
    value = fused_mi.mutual_information_sub_batch(*whole, combine, losses, **options)
    (value if weights is None else weighted_sum(losses, weights)).backward()
    return value.detach(), [whole[i].grad for i in FLOATING], detached(losses)


def nan_where_masked(inputs):
    """Poison where no row is active."""
    poisoned = [t.clone() for t in inputs]
    for i in FLOATING:
        poisoned[i][~inputs[MASK]] = torch.nan
    return poisoned
