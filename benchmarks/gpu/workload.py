"""What other tools watch, in a process of its own: `python -m benchmarks.gpu.workload --help`."""

import argparse
from collections.abc import Iterator

import torch
from cases import PAIRINGS
from fused_mi.triton_kernels import _traffic
from fused_mi.triton_kernels._launch import Launch, recorded

from ._children import Row, emit
from ._loss import Shape, evaluate, large_inputs, small_inputs
from .sanitizer import DONE


def profiled(shape: Shape) -> None:
    """One forward and one backward pass while a profiler records; compiled before."""
    inputs = large_inputs(shape, "cuda", torch.float32, density=1.0)
    evaluate(inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    evaluate(inputs)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def small(device: str) -> None:
    """Every pairing, once with and once without masks combined, on shapes of odd sizes."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((6, 4, 3), (6, 3, 129), (40, 2, 130)):
            for pairing in PAIRINGS:
                for combine in (True, False):
                    inputs = small_inputs(shape, device, (dtype,) * 4)
                    evaluate(inputs, pairing=pairing, combine=combine)
                    if combine:
                        evaluate(inputs, pairing=pairing, estimator="logsumexp")
    if device == "cuda":
        torch.cuda.synchronize()


def launches(shape: Shape, device: str) -> list[Launch]:
    """The launches of one forward and one backward pass, none of them executed."""
    inputs = large_inputs(shape, device, torch.float32, density=1.0)
    with recorded() as found:
        evaluate(inputs)
    return found


def traffic(shape: Shape, device: str) -> Iterator[Row]:
    """Bytes that each of these launches asks for by the kernels' own model, every row active."""
    for launch in launches(shape, device):
        model = _traffic.traffic(launch, _traffic.expected(launch))
        read, written = sum(model.read.values()), sum(model.written.values())
        yield {"kernel": launch.kernel.__name__, "read": read, "written": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("profiled", "small", "traffic"))
    parser.add_argument("shape", type=int, nargs="*")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if arguments.what == "profiled":
        profiled(shape)
    elif arguments.what == "small":
        small("cuda")
    else:
        for row in traffic(shape, "cuda"):
            emit(row)
    print(DONE)


if __name__ == "__main__":
    main()
