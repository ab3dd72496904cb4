"""Small calls on a CPU: forward + backward in float32 with all four gradients, all positions
active, caches warm.

Everything is timed in one process, in rounds of short blocks that take turns. Nothing is timed
before its value and gradients agree with float64.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from fused_mi import mutual_information_sub_batch

from . import contestants, peers
from .cases import Case
from .exact import exact
from .measure import errors

BLOCK = 3e-3  # seconds of a block, after one call that does not count
SMALL, VECTORS, LONG = (32, 4, 128), (1024, 1, 128), (2048, 1, 128)
BOTH = ("jensen", "logsumexp")
Call = Callable[[], object]


class Pair(NamedTuple):
    """The time of the first call is divided by that of the second."""

    name: str
    calls: tuple[Call, Call]
    sign: str = ""  # of the target: "<=" or ">="
    limit: float = 0.0
    clock: Callable[[], float] = time.perf_counter


def show(part: str, threads: int, rounds: int) -> None:
    """A line for each pair of a part: us, ratios, and whether the target is reached."""
    for name, calls, sign, limit, clock in PARTS[part](threads):
        first, second = _times(calls, rounds, clock)
        ratio = median(first) / median(second)
        missed = ratio > limit if sign == "<=" else ratio < limit
        print(
            f"{threads} {part:10} {name:42} {1e6 * median(first):9.1f} {1e6 * median(second):9.1f}"
            f" {ratio:7.2f} {min(first) / min(second):7.2f}  {f'{sign} {limit:g}' * bool(sign):6}"
            f" {'missed' * missed}",
            flush=True,
        )


def _times(
    calls: tuple[Call, Call], rounds: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Seconds of a call, of every block."""
    times: tuple[list[float], list[float]] = ([], [])
    often = [_often(call) for call in calls]
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 else (1, 0):
            calls[i]()
            start = clock()
            for _ in range(often[i]):
                calls[i]()
            times[i].append((clock() - start) / often[i])
    return times


def _often(call: Call) -> int:
    """How many calls fill a block."""
    for _ in range(3):
        start = time.perf_counter()
        call()
        taken = time.perf_counter() - start
    return max(1, round(BLOCK / taken))


class _Passes:
    """Both passes of losses on the inputs of one case."""

    def __init__(self, shape: tuple[int, int, int], estimator: str) -> None:
        self.case = Case("host", *shape, estimator)
        self.inputs = contestants.inputs_of(self.case, "cpu")
        self.loss = contestants.loss_of(self.case)
        self.want = exact(self.case, self.inputs)

    def of(self, loss: Callable[..., Any]) -> Call:
        run = contestants.run_of(self.case, loss, self.inputs)
        errors(self.case, run, self.want)  # raises where one is wrong
        return lambda: run()[1]()

    def peer(self, peer: peers.Peer) -> Call:
        return self.of(lambda *t: peer.loss(*t, self.case.estimator, "sub_batch", True))


def _jensen(threads: int) -> Iterator[Pair]:
    of_vectors = 4 if threads == 1 else 3
    for shape, least in (((8, 4, 64), 3), (SMALL, 3), (VECTORS, of_vectors), (LONG, of_vectors)):
        both = _Passes(shape, "jensen")
        calls = both.peer(peers.LEAN), both.of(both.loss)
        yield Pair(f"linear form, over ours: {shape}", calls, ">=", least)


def _logsumexp(threads: int) -> Iterator[Pair]:
    both = _Passes(SMALL, "logsumexp")
    calls = both.peer(peers.PAIRS), both.of(both.loss)
    yield Pair(f"pairs, over ours: {SMALL}", calls, ">=", 3)


def _bound(threads: int) -> Iterator[Pair]:
    shape = (64, 128, 384)
    both = _Passes(shape, "jensen")
    bound = contestants.bound(both.case, both.inputs)
    calls = both.of(both.loss), lambda: bound()[1]()
    yield Pair(f"ours, over reads + fills: {shape}", calls, "<=", 1.3)


def _host(threads: int) -> Iterator[Pair]:
    """The public call where nothing is computed, over `t.sum()` and its gradient: process time."""
    if threads > 1:
        return
    mu, sigma, mask, x, y = contestants.inputs_of(Case("host", 2, 1, 1), "cpu")
    leaves = [t.requires_grad_() for t in (mu, sigma, x, y)]

    def yardstick() -> None:
        torch.autograd.grad(mu.sum(), mu)

    for estimator, most in (("jensen", 3), ("logsumexp", 4)):

        def forward(estimator: Any = estimator) -> torch.Tensor:
            return mutual_information_sub_batch(mu, sigma, mask, x, y, estimator=estimator)

        def both(forward: Callable[[], torch.Tensor] = forward) -> None:
            torch.autograd.grad(forward(), leaves)

        name = f"over sum + gradient: {estimator}"
        yield Pair(name, (both, yardstick), "<=", most, time.process_time)
        alone = torch.no_grad()(forward)
        yield Pair(f"{name}, no_grad", (alone, yardstick), "<=", 1, time.process_time)


def _compiled(threads: int) -> Iterator[Pair]:
    for estimator in BOTH:
        for shape in (SMALL, VECTORS):
            torch.compiler.reset()
            name = f"step, over loss outside: {estimator} {shape}"
            yield Pair(name, _steps(shape, estimator), "<=", 1)


def _steps(shape: tuple[int, int, int], estimator: Any) -> tuple[Call, Call]:
    """A compiled noise layer and its loss: the loss in the same graph, and the loss after it."""
    mu, sigma, mask, x, noise = contestants.inputs_of(Case("host", *shape), "cpu")
    leaves = [t.detach().requires_grad_() for t in (mu, sigma, x)]

    def layer(mu, raw, x):
        sigma = torch.nn.functional.softplus(raw)
        return sigma, x + mu + sigma * noise

    def both(mu, raw, x, layer=layer):
        sigma, y = layer(mu, raw, x)
        loss = mutual_information_sub_batch(mu, sigma, mask, x, y, estimator=estimator)
        return loss + y.square().mean()

    inside, outside = torch.compile(both, fullgraph=True), torch.compile(layer, fullgraph=True)

    def run(function, **options):
        return torch.autograd.grad(function(*leaves, **options), leaves)

    for found, want in zip(run(inside), run(both), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    return lambda: run(inside), lambda: run(both, layer=outside)


PARTS: dict[str, Callable[[int], Iterator[Pair]]] = {
    "jensen": _jensen,
    "bound": _bound,
    "logsumexp": _logsumexp,
    "host": _host,
    "compiled": _compiled,
}
