"""Checks of how the loss runs: repeatedly, on streams and threads, captured, compiled, and without
waiting for the device. The same code on the same inputs gives the same bits."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import fused_mi
import torch
from cases import FLOATING, PAIRINGS

from ._loss import Evaluation, Inputs, evaluate, leaves_of, small_inputs
from .values import BF16, F32, Check, Checks

SHAPE = (64, 33, 200)
_LONG = 50_000_000  # cycles, tens of milliseconds: long enough that a missing wait shows
_RUNS = 100
VARIANTS: list[dict[str, str]] = [
    *({"pairing": pairing} for pairing in PAIRINGS),
    {"pairing": "sub_batch", "estimator": "logsumexp"},
    {"pairing": "leave_one_out", "estimator": "logsumexp"},
]
"""Options of the loss."""


def repeats(device: str) -> Checks:
    """Bit-equal results of many runs."""
    for dtype in (F32, BF16):
        for options in VARIANTS:

            def equal(dtype=dtype, options=options):
                inputs = small_inputs(SHAPE, device, (dtype,) * 4)
                first = evaluate(inputs, **options)
                for run in range(1, _RUNS):
                    again = evaluate(inputs, **options)
                    assert first.same_bits(again), f"run {run} differs from the first"

            yield _check(f"{_RUNS} runs, {dtype}, {_name(options)}", equal)


def execution(device: str) -> Checks:
    """Streams, threads and host synchronisation."""
    plain = small_inputs(SHAPE, device)

    def other_stream():
        for options in VARIANTS:
            want = evaluate(plain, **options)
            found = _on_a_stream_of_its_own(plain, **options)
            assert want.same_bits(found), f"{options}: differs from the default stream"

    def other_threads():
        want = evaluate(plain)
        # The backend is forced for the whole process, whichever thread ends first.
        with fused_mi.use_backend("triton"), ThreadPoolExecutor(4) as pool:
            found = list(pool.map(_on_a_stream_of_its_own, [plain] * 4))
        assert all(want.same_bits(of_thread) for of_thread in found), "a thread differs"

    def no_synchronisation():
        for options in VARIANTS:
            evaluate(plain, **options)  # compiles
            torch.cuda.set_sync_debug_mode("error")
            try:
                evaluate(plain, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def no_gradient():
        inputs = small_inputs(SHAPE, device)
        with torch.no_grad(), fused_mi.use_backend("triton"):
            value = fused_mi.mutual_information_sub_batch(*inputs)
        assert torch.equal(value, evaluate(inputs).value), "differs without gradients"

    def some_gradients():
        for options in VARIANTS:
            want = evaluate(plain, **options).gradients
            for kept in (0, 1, 2, 3):
                leaves = leaves_of(plain)
                for n, i in enumerate(FLOATING):
                    leaves[i].requires_grad_(n == kept)
                with fused_mi.use_backend("triton"):
                    value = fused_mi.mutual_information_sub_batch(*leaves, **options)
                    (found,) = torch.autograd.grad(value, leaves[FLOATING[kept]])
                _assert_close([found], [want[kept]])

    yield _check("a stream of its own", other_stream)
    yield _check("four threads, a stream each", other_threads)
    yield _check("no synchronisation with the host", no_synchronisation)
    yield _check("without gradients", no_gradient)
    yield _check("one gradient only", some_gradients)


def graphs(device: str) -> Checks:
    """A captured forward and backward pass, replayed on new inputs."""
    for dtype in (F32, BF16):
        for options in VARIANTS:

            def replays(dtype=dtype, options=options):
                static = small_inputs(SHAPE, device, (dtype,) * 4)
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        evaluate(static, **options)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    captured = evaluate(static, **options)
                for seed in (1, 2, 3):
                    new = small_inputs(SHAPE, device, (dtype,) * 4, seed=seed, density=0.5)
                    for held, value in zip(static, new, strict=True):
                        held.copy_(value)
                    graph.replay()
                    torch.cuda.synchronize()
                    want = evaluate(new, **options)
                    assert want.same_bits(captured), f"replay on inputs {seed} differs"

            yield _check(f"capture and replay, {dtype}, {_name(options)}", replays)


def compiled(device: str) -> Checks:
    """torch.compile: one graph, any size, the same result."""
    for dtype in (F32, BF16):
        for options in VARIANTS:

            def same(dtype=dtype, options=options):
                torch._dynamo.reset()

                def loss(*tensors: torch.Tensor) -> torch.Tensor:
                    return fused_mi.mutual_information_sub_batch(*tensors, **options)

                function = torch.compile(loss, fullgraph=True, dynamic=True)
                for shape in ((6, 4, 40), (10, 3, 130), (64, 33, 200)):
                    inputs = small_inputs(shape, device, (dtype,) * 4)
                    found = _evaluate(function, inputs)
                    want = evaluate(inputs, **options)
                    _assert_close((found.value, *found.gradients), (want.value, *want.gradients))

            yield _check(f"torch.compile, {dtype}, {_name(options)}", same)


GROUPS = (repeats, execution, graphs, compiled)


def _check(name: str, function: Callable[[], None]) -> Check:
    return Check(name, SHAPE[0] * SHAPE[1] * SHAPE[2], function)


def _name(options: dict[str, str]) -> str:
    return ", ".join(options.values())


def _on_a_stream_of_its_own(inputs: Inputs, **options: str) -> Evaluation:
    """On copies that this stream makes late: a kernel on another one would read too early."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = [torch.empty_like(t) for t in inputs]
        torch.cuda._sleep(_LONG)
        for to, value in zip(late, inputs, strict=True):
            to.copy_(value)
        found = evaluate(late, **options)
    stream.synchronize()
    return found


def _evaluate(function: Callable[..., torch.Tensor], inputs: Inputs) -> Evaluation:
    leaves = leaves_of(inputs)
    with fused_mi.use_backend("triton"):
        value = function(*leaves)
        gradients = torch.autograd.grad(value, [leaves[i] for i in FLOATING])
    return Evaluation(value.detach(), gradients, {})


def _assert_close(found: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> None:
    """Other code for the same formula may round differently: a few units of the largest element."""
    for a, b in zip(found, want, strict=True):
        bound = 8 * torch.finfo(b.dtype).eps * b.abs().max()
        error = (a - b).abs().max()
        assert error <= bound, f"error {error.item():.3e}, bound {bound.item():.3e}"
