"""Memory and time: linear in the batch for Jensen, nothing of size N*M*S*E anywhere."""

import itertools
import statistics
import time

import fused_mi
import pytest
import torch
from cases import FLOATING, mi
from oracle import TOTAL, broadcast_energies, mutual_information
from torch.profiler import ProfilerActivity, profile


class Allocations:
    """Peak of the bytes that the CPU allocator holds from calls inside, whoever made them."""

    def __enter__(self):
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        events = [
            (event.start_ns(), event.nbytes())
            for event in self._profile.profiler.kineto_results.events()
            if event.name() == "[memory]"
        ]
        live = itertools.accumulate(size for _, size in sorted(events, key=lambda e: e[0]))
        self.peak = max(live, default=0)


def random_inputs(b, s, e, dtype=torch.float32):
    means, clean, noise = (torch.randn(b, s, e, dtype=dtype) for _ in range(3))
    stds = torch.rand(b, s, e, dtype=dtype) + 0.5
    inputs = [means, stds, torch.rand(b, s) < 0.9, clean, clean + means + stds * noise]
    for i in FLOATING:
        inputs[i].requires_grad_()
    return inputs


def run(function, inputs):
    return torch.autograd.grad(function(inputs), [inputs[i] for i in FLOATING])


def extra_memory(function, inputs):
    """Peak bytes beyond the inputs and the four gradients, in input tensors."""
    with Allocations() as allocations:
        grads = run(function, inputs)
    one = inputs[0].nbytes
    assert allocations.peak >= 4 * one
    assert len(grads) == 4
    return (allocations.peak - 4 * one) / one


def test_the_counter_sees_an_intermediate():
    inputs = random_inputs(4, 8, 64)
    wasteful = extra_memory(
        lambda t: mi(t) + sum((t[0] * k).square().sum() for k in range(8)), inputs
    )
    assert wasteful > 8


@pytest.mark.parametrize(
    ("pairing", "s"), [("sub_batch", 64), ("symmetric", 32), ("leave_one_out", 32)]
)
def test_jensen_memory(pairing, s):
    assert extra_memory(lambda t: mi(t, pairing=pairing), random_inputs(128, s, 768)) < 4


def test_pairs_memory():
    """The pair broadcast would take N = 64 half batches, 32 inputs, for each intermediate."""
    inputs = random_inputs(128, 8, 512)
    assert extra_memory(lambda t: mi(t, estimator="logsumexp"), inputs) < 5


def test_pairs_memory_of_a_large_batch():
    """A multiple of N*M, in which the width of a row has no part."""
    matrix = 256 * 256 * 8

    def peak(e):
        inputs = random_inputs(512, 1, e)
        return extra_memory(lambda t: mi(t, estimator="logsumexp"), inputs) * inputs[0].nbytes

    assert peak(64) <= peak(16) + 4 * 512 * (64 - 16) * 4
    assert peak(64) < 32 * matrix  # one intermediate of the broadcast is 64


@pytest.mark.parametrize("shape", ["outer", "three"])
def test_distance_memory(shape):
    x, y, stds = (torch.randn(48, 32, 256) for _ in range(3))
    mask = torch.ones(48, 1, 32, dtype=torch.bool)
    x, y, stds = x[:, None], y[None], stds[None]
    if shape == "three":
        x, y, stds, mask = x[None], y[:, None], stds[None], mask[None]
    with Allocations() as allocations:
        q = fused_mi.square_mahalanobis_distance(x, y, stds, mask)
    assert q.shape[-2:] == (48, 48)
    assert allocations.peak < 5 * x.nbytes


def seconds(functions, rounds):
    """Median time of each, in turns so that a slow moment hits all; of one thread while it has a
    core, because a busy machine would time the neighbours, not the functions."""
    torch.set_num_threads(1)  # the fixture of conftest.py resets it
    times = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, kept in zip(functions, times, strict=True):
            start = time.thread_time()
            function()
            kept.append(time.thread_time() - start)
    return [statistics.median(kept) for kept in times]


def attempts(measure, good, count=3):
    """A busy machine may spoil a measurement, not three of them."""
    results = []
    for _ in range(count):
        results.append(measure())
        if good(results[-1]):
            return
    pytest.fail(f"measured {results}")


def test_twice_the_batch_costs_twice_the_time():
    small, large = random_inputs(1024, 4, 128), random_inputs(2048, 4, 128)

    def measure():
        a, b = seconds([lambda: run(mi, small), lambda: run(mi, large)], rounds=7)
        return b / a

    attempts(measure, lambda ratio: ratio <= 2.3)


def test_a_large_batch_of_single_tokens_is_quick():
    inputs = random_inputs(4096, 1, 128)
    attempts(lambda: seconds([lambda: run(mi, inputs)], rounds=5)[0], lambda t: t < 0.2)


def test_faster_than_the_pair_broadcast():
    """A small case; the factor grows with the batch."""
    inputs = random_inputs(128, 8, 256)

    def eager(t):
        return mutual_information(t, energies=broadcast_energies)[TOTAL]

    def measure():
        ours, theirs = seconds([lambda: run(mi, inputs), lambda: run(eager, inputs)], rounds=3)
        return theirs / ours

    attempts(measure, lambda factor: factor >= 8)
