"""Forward + backward of the default loss: against the eager pair broadcast, and growing batches.

    python benchmarks/jensen.py [--rounds N] [--threads N]

Medians of rounds that alternate between the contestants in one process; float32, CPU, a tenth of
the positions masked; all inputs want gradients. The values must agree before a time is printed.
"""

import argparse
import statistics
import time

import torch
from fused_mi import mutual_information_sub_batch


def batch(b, s, e):
    """mu, sigma, mask, x, y of a noise layer on random embeddings."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(b, s, e, generator=generator) for _ in range(2))
    mu = torch.randn(b, s, e, generator=generator) / 10
    sigma = torch.rand(b, s, e, generator=generator) + 0.5
    mask = torch.rand(b, s, generator=generator) < 0.9
    y = x + mu + sigma * noise
    mu, sigma, x, y = (t.requires_grad_() for t in (mu, sigma, x, y))
    return mu, sigma, mask, x, y


def pair_broadcast(mu, sigma, mask, x, y):
    """The documented formula as it is usually written: every pair times every feature."""
    half = len(x) // 2
    i, j = slice(0, half), slice(half, None)
    eps = 100 * torch.finfo(sigma.dtype).eps
    v_i, v_j = (sigma[k].square() + eps * sigma[k][mask[k]].detach().square().min() for k in (i, j))
    weight = (mask[i, None] & mask[None, j])[..., None]
    terms = (y[i, None] - (x[j] + mu[j])).square() / v_j + v_j.log() - v_i.log()[:, None]
    return torch.where(weight, terms, 0).sum() / len(x)


def seconds(function, inputs):
    for tensor in inputs:
        tensor.grad = None
    start = time.perf_counter()
    value = function(*inputs)
    value.backward()
    return time.perf_counter() - start, value.item()


def median_times(contestants, rounds):
    """Median seconds of each (function, inputs), after one round that does not count."""
    times = [[seconds(*c)[0] for c in contestants] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")

    for shape in ((128, 64, 768), (512, 1, 128)):
        inputs = batch(*shape)
        ours, theirs = (
            seconds(f, inputs)[1] for f in (mutual_information_sub_batch, pair_broadcast)
        )
        if abs(ours - theirs) > 1e-4 * abs(theirs):
            raise SystemExit(f"{shape}: the values differ, {ours} and {theirs}: nothing is timed")
        linear, pairs = median_times(
            [(mutual_information_sub_batch, inputs), (pair_broadcast, inputs)], arguments.rounds
        )
        factor = f"{pairs / linear:.0f}x"
        print(f"{shape}: {linear * 1e3:.1f} ms, pair broadcast {pairs * 1e3:.0f} ms: {factor}")

    growing = [(mutual_information_sub_batch, batch(b, 1, 128)) for b in (4096, 8192, 16384)]
    small, double, quadruple = median_times(growing, 4 * arguments.rounds)
    growth = f"twice the batch {double / small:.2f}x, four times {quadruple / small:.2f}x"
    print(f"(4096, 1, 128): {small * 1e3:.1f} ms; {growth}")


if __name__ == "__main__":
    main()
