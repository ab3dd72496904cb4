"""What only a GPU has: streams, captured graphs, waiting, a second device, peaks of its memory."""

from concurrent.futures import ThreadPoolExecutor

import fused_mi
import pytest
import torch
from cases import DEVICE, assert_same_bits, mi, mi_inputs, value_and_gradients
from large import large_inputs, without_copies
from marks import dtypes, every_mode

pytestmark = [
    pytest.mark.every_device,
    pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: --device cuda"),
]
SHAPE = (64, 33, 200)
LONG = 50_000_000  # cycles, tens of milliseconds: long enough that a missing wait shows
every_dtype = dtypes(torch.float32, torch.bfloat16)


def evaluate(inputs, options):
    """Value and gradients, without a copy of the inputs."""
    leaves = without_copies(inputs)
    value = mi(leaves, **options)
    return value.detach(), *torch.autograd.grad(value, [t for t in leaves if t.requires_grad])


def assert_same(found, want):
    assert_same_bits(found, want)


def on_a_stream_of_its_own(inputs, options):
    """On copies that this stream makes late: a kernel on another one would read too early."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [torch.empty_like(t) for t in inputs]
        torch.cuda._sleep(LONG)
        for to, value in zip(late, inputs, strict=True):
            to.copy_(value)
        found = evaluate(late, options)
    stream.synchronize()
    return found


def test_triton_serves_every_operator():
    """Else the other tests are about something else."""
    assert {choice.backend for choice in fused_mi.explain(mi_inputs()[0])} == {"triton"}


@every_mode
def test_a_stream_of_its_own(options):
    inputs = mi_inputs(*SHAPE, dtype=torch.float32)
    assert_same(on_a_stream_of_its_own(inputs, options), evaluate(inputs, options))


def test_threads_with_a_stream_each():
    inputs = mi_inputs(*SHAPE, dtype=torch.float32)
    want = evaluate(inputs, {})
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(on_a_stream_of_its_own, [inputs] * 4, [{}] * 4):
            assert_same(found, want)


@every_mode
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device(options):
    inputs = mi_inputs(*SHAPE, dtype=torch.float32)
    evaluate(inputs, options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(inputs, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_mode
@every_dtype
def test_a_captured_graph_is_replayed_on_new_inputs(options, dtype):
    static = mi_inputs(*SHAPE, dtype=dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            evaluate(static, options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = evaluate(static, options)
    for seed in (1, 2, 3):
        new = mi_inputs(*SHAPE, dtype=dtype, seed=seed, density=0.5)
        for held, value in zip(static, new, strict=True):
            held.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, evaluate(new, options))


@every_mode
@every_dtype
@pytest.mark.filterwarnings("default")  # those of the compiler are its own
def test_one_compiled_graph_for_any_size(options, dtype):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: mi(t, **options), fullgraph=True, dynamic=True)
    for shape in ((6, 4, 40), (10, 3, 130), SHAPE):
        inputs = mi_inputs(*shape, dtype=dtype)
        value, grads = value_and_gradients(lambda t: compiled(*t), inputs)
        want = evaluate(inputs, options)
        for a, b in zip((value, *grads), want, strict=True):  # may round differently
            assert (a - b).abs().max() <= 8 * torch.finfo(b.dtype).eps * b.abs().max()


@every_mode
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_device_that_is_not_the_current_one(options):
    inputs = mi_inputs(*SHAPE, dtype=torch.float32)
    other = torch.device("cuda", 1 - torch.cuda.current_device())
    found = evaluate([t.to(other) for t in inputs], options)
    assert all(t.device == other for t in found)
    for a, b in zip(found, evaluate(inputs, options), strict=True):  # another GPU, other splits
        torch.testing.assert_close(a.to(b.device), b, rtol=1e-4, atol=1e-5)


@every_dtype
def test_memory_of_the_default_loss(dtype):
    """Beyond inputs and gradients, less than one of them."""
    inputs = large_inputs((4096, 16, 768), dtype)
    evaluate(inputs, {})
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = evaluate(inputs, {})
    extra = torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in found)
    assert extra < inputs[0].nbytes
