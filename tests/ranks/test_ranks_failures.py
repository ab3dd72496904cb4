"""What is wrong on one rank is an error on all of them, the same one, and nobody waits."""

import copy
import pickle

import fused_mi
import pytest
import torch
from cases import leaves, mi_inputs
from on_ranks import share
from pool import pool


def call(rank, inputs, sizes, case):
    """What each rank raises, one of them being wrong."""
    import torch.distributed as dist

    mine: list = share(rank, inputs, sizes)
    options: dict = {"group": dist.group.WORLD}
    if rank == 1:
        if case == "shape":
            mine[2] = mine[2][:, :1]
        elif case == "dtype":
            mine[3] = mine[3].long()
        elif case == "option":
            options["pairing"] = "all"
        elif case == "options":
            options["pairing"] = "leave_one_out"
        elif case == "positions":
            mine = [t[:, :1] for t in mine]
        elif case == "dtypes":
            mine = [t.double() if t.is_floating_point() else t for t in mine]
    try:
        fused_mi.mutual_information_sub_batch(*mine, **options)
    except (TypeError, ValueError) as e:
        return type(e), str(e)
    return None


@pytest.mark.parametrize(
    ("case", "kind", "says"),
    [
        ("shape", ValueError, r"^noise_mask: expected shape .*\(rank 1 of 2 in the group\)"),
        ("dtype", TypeError, r"^clean_input_embeddings: .*\(rank 1 of 2 in the group\)"),
        ("option", ValueError, r"^pairing: expected one of .*\(rank 1 of 2 in the group\)"),
        ("options", ValueError, r"^group: expected the same options on every rank, got \[\d, \d\]"),
        ("positions", ValueError, r"^group: expected the same S on every rank, got \[2, 1\]"),
        ("dtypes", ValueError, r"^group: expected the same dtypes on every rank"),
    ],
)
def test_all_ranks_raise_the_same(case, kind, says):
    first, second = pool(2).run(call, mi_inputs(4, 2, 3, torch.float32), (2, 2), case)
    assert first == second
    assert first[0] is kind
    with pytest.raises(kind, match=says):
        raise kind(first[1])


@pytest.mark.parametrize(
    ("rows", "sizes", "says"),
    [(5, (2, 3), "expected an even batch"), (1, (1, 0), "expected a batch of at least 2")],
)
def test_the_batch_is_that_of_all_ranks(rows, sizes, says):
    inputs = mi_inputs(rows, 2, 3, torch.float32)
    for kind, message in pool(2).run(call, inputs, sizes, None):
        assert kind is ValueError
        assert says in message
        assert f"B = {rows}" in message


def test_one_row_each_is_a_batch():
    assert pool(2).run(call, mi_inputs(2, 2, 3, torch.float32), (1, 1), None) == [None, None]


def twice(rank, inputs, sizes, estimator):
    import torch.distributed as dist

    mine = leaves(share(rank, inputs, sizes))
    value = fused_mi.mutual_information_sub_batch(
        *mine, group=dist.group.WORLD, estimator=estimator
    )
    try:
        torch.autograd.grad(value, mine[0], create_graph=True)
    except RuntimeError as e:
        return str(e)
    return None


@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
def test_second_derivatives_are_refused(estimator):
    found = pool(2).run(twice, mi_inputs(4, 2, 3), (2, 2), estimator)
    for message in found:
        assert "no second derivative" in message


def kept(rank):
    import torch.distributed as dist

    loss = fused_mi.MutualInformationLoss(group=dist.group.WORLD)
    assert copy.deepcopy(loss).group is loss.group
    assert not loss.state_dict()
    try:
        pickle.dumps(loss)
    except TypeError as e:
        return str(e)
    return None


def test_a_group_is_copied_and_not_pickled():
    for message in pool(2).run(kept):
        assert "cannot be pickled" in message


def groups(rank):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    inputs = mi_inputs(4, 2, 3)
    other = dist.new_group([0])
    messages = []
    for group in (
        "world",
        init_device_mesh("cpu", (2, 1)),
        other if rank == 1 else "nothing",
        fused_mi.Ranks(dist.group.WORLD, averaged="all"),
        fused_mi.Ranks(dist.group.WORLD, sizes=(2,)),
        fused_mi.Ranks(dist.group.WORLD, sizes=(2.0, 2)),
    ):
        try:
            fused_mi.mutual_information_sub_batch(*inputs, group=group)
        except (TypeError, ValueError) as e:
            messages.append(f"{type(e).__name__}: {e}")
    return messages


def test_what_is_no_group():
    _, found = pool(2).run(groups)
    assert [m.split(",")[0] for m in found] == [
        "TypeError: group: expected a ProcessGroup",
        "ValueError: group: expected a mesh of one dimension",
        "ValueError: group: this process is not among its rows",
        "TypeError: group: expected a number averaged",
        "ValueError: group: expected 2 sizes",
        "ValueError: group: expected sizes to be numbers of rows",
    ]


def edited(rank, inputs, sizes, estimator):
    import torch.distributed as dist

    mine = leaves(share(rank, inputs, sizes))
    noisy = mine[4] * 1.0
    value = fused_mi.mutual_information_sub_batch(
        *mine[:4], noisy, group=dist.group.WORLD, estimator=estimator
    )
    noisy.mul_(2.0)
    try:
        value.backward()
    except RuntimeError as e:
        return str(e)
    return None


@pytest.mark.parametrize("estimator", ["jensen", "logsumexp"])
def test_an_edit_before_the_backward_pass_is_found(estimator):
    for message in pool(2).run(edited, mi_inputs(4, 2, 3), (2, 2), estimator):
        assert "modified by an inplace operation" in message


def test_weights_of_a_group_with_shards_are_refused():
    [message, _] = pool(2).run(weights)
    assert message.startswith("component_log_weights: expected None for a group with shards")


def weights(rank):
    import torch.distributed as dist

    means, stds, mask, clean, noisy = mi_inputs(4, 2, 3)
    try:
        fused_mi.gaussian_mixture_entropy(
            *(clean, noisy, means, stds, mask),
            component_log_weights=torch.zeros(4),
            estimator="logsumexp",
            group=fused_mi.Ranks(shards=dist.group.WORLD),
        )
    except ValueError as e:
        return str(e)
    return None
