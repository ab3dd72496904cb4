"""The CPU kernels of the pairs against a matrix product; the logsumexp loss against eager torch.

    python -m benchmarks.cpu_pairs [--rounds N] [--threads N] [--only NAME ...]

Medians of rounds that alternate between the contestants in one process. A pair of rows costs 4
floating-point operations for each feature forward, `z = y r - c r` and `z * z`; backward 10. The
eager form holds several tensors of all pairs times all features: its shapes fit into memory.
"""

import argparse
import functools
import os

import torch
from fused_mi import mutual_information_sub_batch, use_backend
from fused_mi._mixture import Mixture
from fused_mi.cpu import _library
from fused_mi.cpu import pairs as kernels

from benchmarks.cpu import batch, loss, medians, report
from benchmarks.peers import pairs

SHAPES = ((128, 64, 768), (512, 64, 768), (128, 768, 64))
EAGER = ((32, 64, 768), (128, 8, 768))
SQUARE = 1536
FORWARD, BACKWARD = 4, 10  # operations for each pair and feature


def both_directions(inputs):
    """The raw operators into outputs that are reused: forward, and backward."""
    mu, sigma, mask, x, y = inputs
    half, eps = len(x) // 2, torch.tensor(1e-5)
    mixture = Mixture(mask, mask, eps, eps, (0, half), (half, len(x)))
    constants = kernels.constants([mixture])
    raw, path = _library.operators(), _library.path()
    energies = torch.zeros(1, 3, half, half, dtype=torch.float64)
    upstream = torch.rand_like(energies)
    gradients = [torch.zeros_like(t) for t in (y, x, mu, sigma)]
    of_samples, of_components = 0b1001, 0b1110  # y and stds; x, mu and stds
    passes = [0, half, 0, -1, of_samples, half, len(x), -1, 0, of_components]
    tensors = (y, x, mu, sigma, *constants, False)

    def forward():
        raw.pairs(*tensors, path, energies)

    def backward():
        raw.pairs_backward(upstream, *tensors, passes, path, *gradients)

    return forward, backward


def arithmetic(rounds):
    """Kernels with reused outputs: operations per second, of those of a float32 matrix product."""
    square = torch.randn(SQUARE, SQUARE)
    for shape in SHAPES:
        inputs = batch(*shape)
        forward, backward = both_directions(inputs)
        elements = (shape[0] // 2) ** 2 * shape[1] * shape[2]
        *times, product = medians([forward, backward, lambda: square @ square], rounds)
        rate = 2 * SQUARE**3 / product
        for name, operations, time in zip(
            ("forward", "backward"), (FORWARD, BACKWARD), times, strict=True
        ):
            found = operations * elements / time
            text = f"{found / 1e6:6.0f} GFLOP/s, {100 * found / rate:.0f}% of {rate / 1e6:.0f}"
            print(f"{f'{shape} {name}':44}{time:9.3f} ms   {text}")


def end_to_end(rounds):
    """The logsumexp loss, forward and backward, all gradients."""
    fused, eager = (
        functools.partial(function, estimator="logsumexp")
        for function in (mutual_information_sub_batch, pairs)
    )
    for shape in EAGER:
        inputs = batch(*shape, density=0.9)
        contestants = [loss(fused, inputs), loss(eager, inputs)]
        ours, theirs = (run() for run in contestants)
        if not abs(ours - theirs) <= 1e-4 * abs(theirs):
            raise SystemExit(f"the values differ, {ours} and {theirs}: nothing is timed")
        report(f"{shape}", *medians(contestants, rounds), "the eager pairs")


PARTS = {part.__name__: part for part in (arithmetic, end_to_end)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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
            PARTS[name](arguments.rounds)


if __name__ == "__main__":
    main()
