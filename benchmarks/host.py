"""Small calls: what the whole call takes beside plain torch, its host time included.

    python -m benchmarks.host [--tree FOLDER] [--threads 1 2] [--only NAME ...]
    python -m benchmarks.host --gpu-host [--tree FOLDER]

`--tree` measures the package of another source tree, whose CPU library was built there.
`--gpu-host` counts what Python takes to launch the Triton kernels; it needs Triton, no GPU.
"""

import argparse
from pathlib import Path

from . import _source_tree

PARTS = ("jensen", "bound", "logsumexp", "host", "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=_source_tree.ROOT)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--gpu-host", action="store_true")
    given = parser.parse_args()
    _source_tree.use(given.tree.resolve())
    import torch

    if given.gpu_host:
        from . import _gpu_host

        torch.set_num_threads(1)
        for _ in _gpu_host.rows(given.rounds):  # it prints them
            pass
        return
    from . import _cpu_host

    print("threads, what, us of the first and of the second, ratio of medians, of least, target")
    for threads in given.threads:
        torch.set_num_threads(threads)
        for part in given.only:
            _cpu_host.show(part, threads, given.rounds)


if __name__ == "__main__":
    main()
