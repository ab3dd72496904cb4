"""What other tools watch, in a process of its own: `python -m benchmarks.gpu.workload --help`."""

import argparse
from collections.abc import Iterator

import torch
from fused_mi import use_backend
from fused_mi.triton_kernels import _traffic
from fused_mi.triton_kernels._launch import recorded

from benchmarks.cases import BOTH, Case
from benchmarks.contestants import inputs_of, loss_of, run_of

from ._children import Row, emit
from .sanitizer import DONE

Shape = tuple[int, int, int]


def evaluate(case: Case, device: str, combine: bool = True) -> None:
    """One forward and one backward pass."""
    loss = loss_of(case, combine)
    run_of(case, loss, inputs_of(case, device), lambda: use_backend("triton"))()[1]()


def profiled(shape: Shape) -> None:
    """One forward and one backward pass while a profiler records, compiled before; and the model
    of what it sees."""
    for row in traffic(shape, "cuda"):
        emit(row)
    case = Case("profiled", *shape)
    run = run_of(case, loss_of(case), inputs_of(case, "cuda"), lambda: use_backend("triton"))
    run()[1]()
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        run()[1]()
        torch.cuda.synchronize()


def small(device: str) -> None:
    """Every estimator, pairing and use of masks, on shapes of odd sizes."""
    for dtype in ("float32", "bfloat16"):
        for shape in ((6, 4, 3), (6, 3, 129), (40, 2, 130)):
            for estimator in BOTH:
                for pairing in ("sub_batch", "symmetric", "leave_one_out"):
                    for combine in (True, False):
                        case = Case("small", *shape, estimator, pairing, dtype, 0.4)
                        evaluate(case, device, combine)
                evaluate(Case("small", *shape, estimator, dtype=dtype, op="entropy"), device)
    if device == "cuda":
        torch.cuda.synchronize()


def traffic(shape: Shape, device: str) -> Iterator[Row]:
    """Bytes that each launch of both passes asks for by the kernels' own model, every row active;
    none of them is executed."""
    with recorded() as launches:
        evaluate(Case("traffic", *shape), device)
    for launch in launches:
        model = _traffic.traffic(launch, _traffic.expected(launch))
        read, written = sum(model.read.values()), sum(model.written.values())
        yield {"kernel": launch.kernel.__name__, "read": read, "written": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("profiled", "small"))
    parser.add_argument("shape", type=int, nargs="*")
    arguments = parser.parse_args()
    if arguments.what == "profiled":
        profiled(tuple(arguments.shape))
    else:
        small("cuda")
    print(DONE)


if __name__ == "__main__":
    main()
