"""The example trains the same layer on one rank or several, by whole batches or micro-batches."""

import argparse
import importlib.util
from pathlib import Path

import fused_mi
import pytest
import torch
from cases import mi_inputs
from on_ranks import on_one
from pool import pool

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ddp.py"


def curve(rank, fsdp, micro):
    spec = importlib.util.spec_from_file_location("ddp", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = argparse.Namespace(
        fsdp=fsdp, micro=micro, steps=3, batch=12, positions=3, features=8, alpha=1e-2
    )
    return module.train(options)


@pytest.mark.parametrize(
    ("world", "fsdp", "micro"),
    [(2, False, 0), (3, False, 0), (2, True, 0), (1, False, 3), (2, False, 2)],
)
def test_the_curve_is_that_of_one_rank(world, fsdp, micro):
    [whole] = pool(1).run(curve, False, 0)
    assert whole[-1] < whole[0]
    for found in pool(world).run(curve, fsdp, micro):
        assert found == pytest.approx(whole, rel=1e-5)


def test_pairs_by_way_of_gradients_of_the_embeddings():
    """The recipe of the docs for micro-batches under logsumexp."""
    means, stds, mask, clean, noisy = mi_inputs(6, 2, 3)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)

    def model(rows):
        return means[rows] * factor, stds[rows] * factor, noisy[rows] * factor

    batches = [slice(0, 2), slice(2, 5), slice(5, 6)]
    loss = fused_mi.MutualInformationLoss(estimator="logsumexp")
    with torch.no_grad():
        found = [model(batch) for batch in batches]
    cached = [torch.cat(column).requires_grad_() for column in zip(*found, strict=True)]
    loss(cached[0], cached[1], mask, clean, cached[2]).backward()
    rows = [len(of_batch[0]) for of_batch in found]
    of_batches = zip(*(t.grad.split(rows) for t in cached), strict=True)
    for batch, grads in zip(batches, of_batches, strict=True):
        torch.autograd.backward(model(batch), grads)
    _, (of_means, of_stds, _, of_noisy), _ = on_one(
        [means, stds, mask, clean, noisy], estimator="logsumexp"
    )
    wanted = sum((a * b).sum() for a, b in ((of_means, means), (of_stds, stds), (of_noisy, noisy)))
    torch.testing.assert_close(factor.grad, wanted)
