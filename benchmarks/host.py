"""Small calls: what the whole call takes beside plain torch, its host time included.

    python -m benchmarks.host [--tree FOLDER] [--threads 1 2] [--only NAME ...] [--out FILE]
    python -m benchmarks.host --gpu-host [--tree FOLDER]

Forward + backward in float32 with all four gradients, all positions active, caches warm. Everything
is timed in one process, in rounds of short blocks that take turns; what is printed is the ratio of
the medians and, beside it, that of the least times, with the target. Nothing is timed before its
value and gradients agree with float64.

`--tree` measures the package of another source tree, whose CPU library was built there.
`--gpu-host` counts what Python takes to launch the Triton kernels; it needs Triton, no GPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from . import _source_tree

PARTS = ("jensen", "bound", "logsumexp", "host", "compiled")
BLOCK = 3e-3  # seconds of a block, after one call that does not count


def compare(part, case, pair, limit, rounds, clock=time.perf_counter):
    """A row, from two functions without arguments. The first is ours, the other one is measured in
    its times; `limit` is an upper bound of ours over the other, or with a minus a lower bound of
    the other over ours, or None."""
    times: list[list[float]] = [[], []]
    often = [_often(function) for function in pair]
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 else (1, 0):
            function = pair[i]
            function()
            start = clock()
            for _ in range(often[i]):
                function()
            times[i].append((clock() - start) / often[i])
    ours, other = (statistics.median(t) for t in times)
    least = min(times[0]) / min(times[1])
    ratio = ours / other
    if limit is not None and limit < 0:
        ratio, least = 1 / ratio, 1 / least
        reached = ratio >= -limit
    else:
        reached = limit is None or ratio <= limit
    return {
        "part": part,
        "case": case,
        "ours_us": 1e6 * ours,
        "other_us": 1e6 * other,
        "ratio": ratio,
        "least": least,
        "limit": limit,
        "reached": reached,
    }


def _often(function):
    """How many calls fill a block."""
    for _ in range(3):
        start = time.perf_counter()
        function()
        taken = time.perf_counter() - start
    return max(1, round(BLOCK / taken))


def shapes(part, threads, rounds):
    """Ours against peers, against the bound, and compiled against eager."""
    import torch

    from . import contestants
    from .cases import Case
    from .exact import exact
    from .measure import errors
    from .peers import eager_lean, eager_pairs

    def both(run):
        return lambda: run()[1]()

    def rows(name, shape, estimator, other, limit):
        b, s, e = shape
        case = Case("host", b, s, e, estimator)
        inputs, loss = contestants.inputs_of(case, "cpu"), contestants.loss_of(case)
        want = exact(case, inputs)

        def checked(function):
            run = contestants.run_of(case, function, inputs)
            errors(case, run, want)  # raises where one is wrong
            return both(run)

        pair = [checked(loss)]
        if other == contestants.BOUND:
            entries = contestants.of(case, "cpu", float("inf"))
            pair.append(both(next(e for e in entries if e.name == other).make(inputs)))
        elif other == "eager":
            pair = [checked(torch.compile(loss)), *pair]
        elif other == "sums":  # what torch takes at least for a compiled call of these inputs
            sums = torch.compile(
                lambda mu, sigma, mask, x, y: sum(t.sum() for t in (mu, sigma, x, y))
            )
            pair = [both(contestants.run_of(case, sums, inputs)), *pair]
        else:
            pair.append(checked(lambda *t: other.loss(*t, case.estimator)))
        return compare(part, f"{name} {shape}", pair, limit, rounds)

    if part == "jensen":
        for shape, limit in (
            ((8, 4, 64), 3),
            ((32, 4, 128), 3),
            ((1024, 1, 128), 4 if threads == 1 else 3),
            ((2048, 1, 128), 4 if threads == 1 else 3),
        ):
            yield rows("over ours: linear form,", shape, "jensen", eager_lean.PEER, -limit)
    elif part == "bound":
        yield rows("over reads + fills:", (64, 128, 384), "jensen", contestants.BOUND, 1.3)
    elif part == "logsumexp":
        yield rows("over ours: pairs,", (32, 4, 128), "logsumexp", eager_pairs.PEER, -3)
    else:
        for estimator in ("jensen", "logsumexp"):
            torch.compiler.reset()
            yield rows(f"alone, over eager: {estimator}", (32, 4, 128), estimator, "eager", None)
        yield rows("sums alone, over eager: jensen", (32, 4, 128), "jensen", "sums", None)
        for estimator in ("jensen", "logsumexp"):
            for shape in ((32, 4, 128), (1024, 1, 128)):
                torch.compiler.reset()
                yield step(part, shape, estimator, rounds)


def step(part, shape, estimator, rounds):
    """A compiled noise layer and its loss: the loss in the same graph, over the loss after it."""
    import torch
    from fused_mi import mutual_information_sub_batch as loss

    from . import contestants
    from .cases import Case

    b, s, e = shape
    case = Case("host", b, s, e, estimator)
    mu, sigma, mask, x, noise = contestants.inputs_of(case, "cpu")
    leaves = [t.detach().requires_grad_() for t in (mu, sigma, x)]

    def layer(mu, raw, x):
        sigma = torch.nn.functional.softplus(raw)
        return sigma, x + mu + sigma * noise

    def both(mu, raw, x, layer=layer):
        sigma, y = layer(mu, raw, x)
        return loss(mu, sigma, mask, x, y, estimator=estimator) + y.square().mean()

    inside, compiled = torch.compile(both, fullgraph=True), torch.compile(layer, fullgraph=True)

    def run(function, **options):
        return torch.autograd.grad(function(*leaves, **options), leaves)

    for ours, other in zip(run(inside), run(both), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    pair = lambda: run(inside), lambda: run(both, layer=compiled)
    return compare(part, f"step, over loss outside: {estimator} {shape}", pair, 1, rounds)


def host(part, threads, rounds):
    """The public call where nothing is computed, over `t.sum()` and its gradient: process time."""
    import torch
    from fused_mi import mutual_information_sub_batch as loss

    from . import contestants
    from .cases import Case

    if threads > 1:
        return
    mu, sigma, mask, x, y = contestants.inputs_of(Case("host", 2, 1, 1), "cpu")
    leaves = [t.requires_grad_() for t in (mu, sigma, x, y)]

    def yardstick():
        torch.autograd.grad(mu.sum(), mu)

    for estimator, limit in (("jensen", 3), ("logsumexp", 4)):

        def both(estimator=estimator):
            torch.autograd.grad(loss(mu, sigma, mask, x, y, estimator=estimator), leaves)

        def forward(estimator=estimator):
            with torch.no_grad():
                loss(mu, sigma, mask, x, y, estimator=estimator)

        for name, function, most in (("", both, limit), (", no_grad", forward, 1)):
            case = f"over sum + gradient: {estimator}{name}"
            yield compare(part, case, (function, yardstick), most, rounds, time.process_time)


def show(row):
    limit = row["limit"]
    bound = "" if limit is None else f">= {-limit:g}" if limit < 0 else f"<= {limit:g}"
    print(
        f"{row['threads']} {row['part']:10} {row['case']:42} {row['ours_us']:9.1f} "
        f"{row['other_us']:9.1f} {row['ratio']:7.2f} {row['least']:7.2f}  {bound:6} "
        f"{'' if row['reached'] else 'missed'}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=_source_tree.ROOT)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="a file that gets one line of JSON")
    parser.add_argument("--gpu-host", action="store_true")
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    _source_tree.use(tree)
    import torch

    from .machine import describe

    if arguments.gpu_host:
        from . import _gpu_host

        torch.set_num_threads(1)
        rows = list(_gpu_host.rows(arguments.rounds))
    else:
        print("threads, what, us of ours, us of the other, ratio of medians, of least, target")
        rows = []
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for part in arguments.only:
                measure = host if part == "host" else shapes
                for row in measure(part, threads, arguments.rounds):
                    rows.append({"threads": threads, **row})
                    show(rows[-1])
    if arguments.out is not None:
        record = {"machine": describe("cpu", None, tree), "rows": rows}
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
