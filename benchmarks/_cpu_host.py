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
SMALL, VECTORS = (32, 4, 128), (1024, 1, 128)
OURS = "ours"
Call = Callable[[], object]
Shape = tuple[int, int, int]


class Pair(NamedTuple):
    """The time of the first call is divided by that of the second."""

    name: str
    calls: tuple[Call, Call]
    sign: str  # of the target: "<=" or ">="
    limit: float
    clock: Callable[[], float] = time.perf_counter


def show(part: str, threads: int, rounds: int) -> None:
    """A line for each pair of a part: us, ratios, and whether the target is reached."""
    for name, calls, sign, limit, clock in PARTS[part](threads):
        first, second = _times(calls, rounds, clock)
        ratio = median(first) / median(second)
        missed = ratio > limit if sign == "<=" else ratio < limit
        times = f"{1e6 * median(first):9.1f} {1e6 * median(second):9.1f}"
        ratios = f"{ratio:7.2f} {min(first) / min(second):7.2f}"
        target = f"{sign} {limit:<3g} {'missed' * missed}"
        print(f"{threads} {part:10} {name:56} {times} {ratios}  {target}", flush=True)


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


def _pair(
    shape: Shape, first: str, second: str, sign: str, limit: float, estimator: str = "jensen"
) -> Pair:
    """Contestants of a case."""
    case = Case("host", *shape, estimator)
    inputs = contestants.inputs_of(case, "cpu")
    want = exact(case, inputs)
    makes = {c.name: c.make for c in contestants.of(case, "cpu", float("inf"))}
    makes[OURS] = lambda inputs: contestants.run_of(case, contestants.loss_of(case), inputs)

    def call(name: str) -> Call:
        run = makes[name](inputs)
        if name != contestants.BOUND:
            errors(case, run, want)  # raises where one is wrong
        return lambda: run()[1]()

    return Pair(f"{first}, over {second}: {shape}", (call(first), call(second)), sign, limit)


def _jensen(threads: int) -> Iterator[Pair]:
    least = 4 if threads == 1 else 3
    for shape in ((8, 4, 64), SMALL):
        yield _pair(shape, peers.LEAN.name, OURS, ">=", 3)
    for shape in (VECTORS, (2048, 1, 128)):
        yield _pair(shape, peers.LEAN.name, OURS, ">=", least)


def _bound(threads: int) -> Iterator[Pair]:
    yield _pair((64, 128, 384), OURS, contestants.BOUND, "<=", 1.3)


def _logsumexp(threads: int) -> Iterator[Pair]:
    yield _pair(SMALL, peers.PAIRS.name, OURS, ">=", 3, "logsumexp")


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
    for estimator in ("jensen", "logsumexp"):
        for shape in (SMALL, VECTORS):
            torch.compiler.reset()
            name = f"step, over loss outside: {estimator} {shape}"
            yield Pair(name, _steps(shape, estimator), "<=", 1)


def _steps(shape: Shape, estimator: Any) -> tuple[Call, Call]:
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
