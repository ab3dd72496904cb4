"""The CPU kernels of the Jensen loss against the memory: copies, reads and fills of the same bytes.

    python -m benchmarks.cpu [--rounds N] [--threads N] [--compile] [--only NAME ...]

Medians of rounds that alternate between the contestants in one process, all memory touched before.
Values must agree with eager torch before anything is timed. Run it on a quiet machine.

Bytes, in tensors of half a batch: eps reads 2, forward 5, backward 5, and 8 gradients are written.
"""

import argparse
import os
import resource
import statistics
import time

import torch
from fused_mi import mutual_information_sub_batch, use_backend
from fused_mi._mixture import Mixture
from fused_mi.cpu import _library, moments

from benchmarks.peers import linear, pairs

SHAPES = ((128, 64, 768), (16, 512, 2048))
LARGE = 24, 512, 2048
READS, WRITES = 12, 8
OFTEN = 20, 1  # runs in a round, against what takes a hundred times as long


def batch(b, s, e, dtype=torch.float32, density=1.0):
    """mu, sigma, mask, x, y of a noise layer on random embeddings."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(b, s, e, generator=generator) for _ in range(2))
    mu = torch.randn(b, s, e, generator=generator) / 10
    sigma = torch.rand(b, s, e, generator=generator) + 0.5
    mask = torch.rand(b, s, generator=generator) < density
    y = x + mu + sigma * noise
    mu, sigma, x, y = (t.to(dtype) for t in (mu, sigma, x, y))
    return mu, sigma, mask, x, y


def medians(functions, rounds, repeats=None):
    """Milliseconds of each, after one round that does not count; each so often in a round."""
    times = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, found, often in zip(
            functions, times, repeats or [1] * len(functions), strict=True
        ):
            for _ in range(often):
                start = time.perf_counter()
                function()
                if number > 0:
                    found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def kernels(inputs):
    """The raw operators of forward and backward, eps included, into outputs that are reused."""
    mu, sigma, mask, x, y = inputs
    b, s, e = x.shape
    half, raw, path = b // 2, _library.operators(), _library.path()
    eps = torch.tensor(1e-6)
    mixture = Mixture(mask, mask, eps, eps, (0, half), (half, b))
    constants = moments.constants([mixture])
    sums, state = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 4, s, e)
    upstream, found = torch.ones_like(sums), torch.zeros(())
    gradients = [torch.zeros_like(t) for t in (y, x, mu, sigma)]
    every = 0b1111
    passes = [0, half, 0, -1, every, half, b, -1, 0, every]
    tensors = (y, x, mu, sigma, *constants)

    def run():
        raw.variance(sigma, mask, 0, half, 1e-5, 0.0, path, found)
        raw.variance(sigma, mask, half, b, 1e-5, 0.0, path, found)
        raw.moments(*tensors, path, sums, state)
        raw.moments_backward(upstream, *tensors, state, passes, path, *gradients)

    return run


def copy_of_the_same_bytes(inputs):
    """As many bytes read and written as the kernels do."""
    elements = inputs[0].numel() // 2 * (READS + WRITES) // 2
    source, target = (torch.ones(elements, dtype=inputs[0].dtype) for _ in range(2))
    return lambda: target.copy_(source)


def loss(function, inputs, wanted="mu sigma x y"):
    mu, sigma, mask, x, y = inputs
    named = {"mu": mu, "sigma": sigma, "x": x, "y": y}
    leaves = {n: t.detach().requires_grad_(n in wanted.split()) for n, t in named.items()}

    def run():
        for leaf in leaves.values():
            leaf.grad = None
        value = function(leaves["mu"], leaves["sigma"], mask, leaves["x"], leaves["y"])
        value.backward()
        return value.item()

    return run


def reads_and_fills(inputs, wanted="mu sigma x y"):
    """The same reads, and the same gradients, fresh, filled with a constant."""
    mu, sigma, _, x, y = inputs
    half = len(x) // 2
    samples, components = (y[:half], sigma[:half]), (x[half:], mu[half:], sigma[half:])
    read = [sigma[:half], sigma[half:], *2 * (*samples, *components)]

    def run():
        for tensor in read:
            tensor.sum()
        return [torch.empty_like(x).fill_(1.0) for _ in wanted.split()]

    return run


def check(inputs):
    ours = loss(mutual_information_sub_batch, inputs)()
    theirs = loss(linear, inputs)()
    if not abs(ours - theirs) <= 1e-4 * abs(theirs):
        raise SystemExit(f"the values differ, {ours} and {theirs}: nothing is timed")


def report(what, ours, theirs, against):
    ratio = ours / theirs
    text = f"{ratio:.2f} of" if ratio > 0.1 else f"1/{1 / ratio:.0f} of"
    print(f"{what:44}{ours:9.3f} ms   {text} {against}, {theirs:.3f} ms")


def memory(rounds, _):
    """Kernels with reused outputs."""
    for shape in SHAPES:
        inputs = batch(*shape)
        check(inputs)
        contestants = [
            kernels(inputs),
            copy_of_the_same_bytes(inputs),
            kernels(batch(*shape, dtype=torch.bfloat16)),
            kernels(batch(*shape, density=0.5)),
        ]
        ours, copy, half, masked = medians(contestants, rounds)
        report(f"{shape} kernels", ours, copy, "a copy")
        report("  bfloat16", half, ours, "float32")
        report("  half of the positions masked", masked, ours, "all of them")


def public(rounds, compile_pairs):
    """The public function, forward and backward, fresh gradients."""
    for shape in SHAPES:
        inputs = batch(*shape)
        for wanted in ("mu sigma x y", "mu sigma y"):
            ours, bound = medians(
                [
                    loss(mutual_information_sub_batch, inputs, wanted),
                    reads_and_fills(inputs, wanted),
                ],
                rounds,
            )
            report(f"{shape} gradients of {wanted}", ours, bound, "reads and fills")
    inputs = batch(*SHAPES[0])
    ours, theirs = medians(
        [loss(mutual_information_sub_batch, inputs), loss(linear, inputs)], rounds
    )
    report(f"{SHAPES[0]}", ours, theirs, "the eager linear form")
    few = max(rounds // 10, 1)
    if compile_pairs:
        compiled = torch.compile(pairs)
        ours, theirs = medians(
            [loss(mutual_information_sub_batch, inputs), loss(compiled, inputs)], few, OFTEN
        )
        report(f"{SHAPES[0]}", ours, theirs, "torch.compile of the pairs")
    ours, theirs = medians(
        [loss(mutual_information_sub_batch, inputs), loss(pairs, inputs)], few, OFTEN
    )
    report(f"{SHAPES[0]}", ours, theirs, "the eager pairs")


def faults(rounds, _):
    """Four fresh gradients of 100 MB, and the page faults that they cost: settings of memory."""
    inputs = batch(*LARGE)
    call = loss(mutual_information_sub_batch, inputs)
    ours, bound = medians([call, reads_and_fills(inputs)], rounds)
    report(f"{LARGE}", ours, bound, "reads and fills")
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(rounds):
        call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    number = (after.ru_minflt - before.ru_minflt) / rounds
    system = 1e3 * (after.ru_stime - before.ru_stime) / rounds
    most = after.ru_maxrss / 2**10
    print(f"  {number:.0f} page faults a call, {system:.1f} ms in the system, peak {most:.0f} MiB")


def batches(rounds, _):
    """One position: against the eager pair broadcast, and growing batches."""
    inputs = batch(2048, 1, 128)
    ours, theirs = medians(
        [loss(mutual_information_sub_batch, inputs), loss(pairs, inputs)],
        max(rounds // 10, 1),
        OFTEN,
    )
    report("(2048, 1, 128)", ours, theirs, "the eager pairs")
    sizes = [1 << n for n in range(11, 17)]
    times = medians([loss(mutual_information_sub_batch, batch(b, 1, 128)) for b in sizes], rounds)
    for size, ours in zip(sizes, times, strict=True):
        report(f"({size}, 1, 128) per 1024 rows", ours * 1024 / size, times[-1] / 64, "the largest")


def overhead(rounds, _):
    """A batch so small that only calls count."""
    inputs = batch(8, 4, 64)
    ours, theirs = medians(
        [loss(mutual_information_sub_batch, inputs), loss(linear, inputs)], 20 * rounds
    )
    report("(8, 4, 64)", ours, theirs, "the eager linear form")


PARTS = {part.__name__: part for part in (memory, public, faults, batches, overhead)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile of the pairs too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    works, reason = _library.usable()
    if not works:
        raise SystemExit(reason)
    path = _library.PATHS[_library.path()]
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {path}, load {load:.1f}")
    with use_backend("cpu"):
        for name in arguments.only:
            print(f"\n{PARTS[name].__doc__}")
            PARTS[name](arguments.rounds, arguments.compile)


if __name__ == "__main__":
    main()
