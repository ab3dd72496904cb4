"""What Python takes of a call: process time of one thread, where next to nothing is computed.

    python -m benchmarks.host [--tree FOLDER] [--gpu-host]

`--tree` measures the package of another source tree, whose CPU library was built there.
`--gpu-host` measures the way to the Triton kernels; it needs Triton, no GPU, see `_gpu_host`.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from . import _source_tree
from .cases import BOTH, PAIRINGS

BLOCK = 20  # calls


def calls(shape: tuple[int, int, int], estimator: str, pairing: str) -> dict[str, Callable]:
    """The public call without gradients, with them, and a yardstick: a sum and its gradient."""
    import fused_mi

    leaves = [torch.ones(shape).requires_grad_() for _ in range(4)]
    mu, stds, x, y = leaves
    mask = torch.ones(shape[:2], dtype=torch.bool)
    options: Any = {"estimator": estimator, "pairing": pairing}

    def forward() -> torch.Tensor:
        return fused_mi.mutual_information_sub_batch(mu, stds, mask, x, y, **options)

    return {
        "forward": torch.no_grad()(forward),
        "both": lambda: torch.autograd.grad(forward(), leaves),
        "sum": lambda: torch.autograd.grad(mu.sum(), mu),
    }


def times(calls: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """us of a call, of each block; blocks take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _, (name, call) in itertools.product(range(rounds), calls.items()):
        call()
        start = time.process_time()
        for _ in range(BLOCK):
            call()
        found[name].append(1e6 * (time.process_time() - start) / BLOCK)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=_source_tree.ROOT)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--gpu-host", action="store_true")
    given = parser.parse_args()
    _source_tree.use(given.tree.resolve())
    torch.set_num_threads(1)
    shape, launched = (2, 1, 1), None
    if given.gpu_host:
        from . import _gpu_host

        shape, launched = _gpu_host.SHAPE, _gpu_host.launched
        _gpu_host.stub()
    print(f"{shape}: us without gradients; with them, and the least; over a sum and its gradient")
    for estimator, pairing in itertools.product(BOTH, PAIRINGS):
        of_pairing = calls(shape, estimator, pairing)
        of_pairing["both"]()  # everything is imported and "compiled"
        said = f"; {launched(of_pairing['both'])}" if launched else ""
        found = times(of_pairing, given.rounds)
        forward, both, yardstick = map(median, found.values())
        print(
            f"{estimator:10}{pairing:14}{forward:7.1f} {both:7.1f} ({min(found['both']):.1f})  "
            f"{forward / yardstick:5.2f} {both / yardstick:5.2f}{said}",
            flush=True,
        )


if __name__ == "__main__":
    main()
