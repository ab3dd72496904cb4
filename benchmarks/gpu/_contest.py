"""What the timed phases share: children that send rows, contestants that are admitted only if they
compute the loss, and the time of those."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from oracle import LOG_DETERMINANT, MAHALANOBIS, STD_LOG, TOTAL
from torch import Tensor

from ._children import Ended, Job, Row, python, run
from ._loss import Inputs, evaluate
from ._measure import Clock, Copy, Run, by_kernel, extra_memory, interleaved, summary

OURS = "fused_mi"
Exact = tuple[float, float, list[Tensor]]
_NO_MEMORY = "not run: out of memory"


class Bench(NamedTuple):
    """What all cases share."""

    device: str
    clock: Clock
    copy: Copy
    deadline: float  # of `time.monotonic`


def rows(
    phase: str, module: str, seconds: float, green: bool, judged: Callable[[Row, bool], Row]
) -> Iterator[Row]:
    """Time all cases of a phase in a child.

    Args:
        green: no check of the values has failed; otherwise no speed-up is reported.
    """
    job = Job(phase, python(module, seconds), {"FUSED_MI_AUTOTUNE": "0"})
    for event in run([job], 1, seconds + 10):
        if not isinstance(event, Ended):
            yield judged(event[1], green)
        elif event.returncode is None:
            yield {"name": "the rest", "message": "cut off: out of time"}
        elif event.returncode:
            message = f"exit code {event.returncode}: {event.tail}"
            yield {"name": "the rest", "message": message, "passed": False}


def compete(
    row: Row,
    names: Sequence[str],
    make: Callable[[str], Run],
    want: Callable[[], Exact],
    bench: Bench,
) -> dict[str, Run]:
    """Admit contestants into `row["contestants"]`, and time those that agree if OURS is one.

    Args:
        make: the passes of a contestant, by its name.
        want: value, sum of terms and gradients in float64.

    Returns:
        Those that agree.
    """
    contestants: dict[str, Row] = row["contestants"]
    expected, runs = want(), {}
    for name in names:
        if time.monotonic() > bench.deadline:
            contestants[name] = {"message": "not run: out of time"}
            continue
        made = make(name)
        contestants[name] = admitted(made, expected, bench.device)
        if contestants[name]["agrees"]:
            runs[name] = made
    del expected
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    if OURS not in runs:
        return runs
    times, copies = interleaved(runs, bench.copy, bench.clock)
    row["copy"] = {"bytes": bench.copy.bytes, "ms": summary(copies)}
    for name in runs:
        if name in times:
            contestants[name]["ms"] = {key: summary(ms) for key, ms in times[name].items()}
        else:
            contestants[name]["message"] = _NO_MEMORY
    return runs


def exact(inputs: Inputs, **options: Any) -> Exact:
    """Value, sum of the magnitudes of its terms, and gradients, in float64 by plain torch."""
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    # eps is a multiple of the machine epsilon of the type that the inputs have.
    factor = 100 * torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    found = evaluate(wide, backend="reference", safety_factor=factor, **options)
    terms = {name: found.terms[name].item() for name in (MAHALANOBIS, LOG_DETERMINANT, STD_LOG)}
    return found.terms[TOTAL].item(), sum(map(abs, terms.values())), list(found.gradients)


def admitted(run: Run, want: Exact, device: str) -> dict[str, Any]:
    """Whether a contestant computes the loss, and the memory that it needs; only then is it timed.

    The value may be wrong by a few roundings of its terms, and each gradient by as much relative to
    its norm. This tells a wrong formula from a right one; "correctness" is stricter.
    """
    try:
        value, backward = run()
        gradients = backward()
        eps = max(torch.finfo(gradients[0].dtype).eps, 100 * torch.finfo(torch.float32).eps)
        errors = {"value": abs(value.item() - want[0]) / want[1]}
        for name, a, b in zip(("means", "stds", "clean", "noisy"), gradients, want[2], strict=True):
            errors[name] = ((a.double() - b).norm() / b.norm()).item()
        agrees = all(error <= eps for error in errors.values())
        found: dict[str, Any] = {"agrees": agrees, "errors": errors, "bound": eps}
        del value, backward, gradients, a, b
        if device == "cuda":
            found["extra_bytes"] = extra_memory(run)
        return found
    except torch.OutOfMemoryError:
        message = _NO_MEMORY
    except Exception as error:  # whatever a contestant raises is its result
        message = f"{type(error).__name__}: {error}"[:2000]
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"agrees": False, "message": message}


def kernels(run: Run) -> list[dict[str, Any]] | str:
    """Times by kernel, or why there are none."""
    try:
        return by_kernel(run)
    except Exception as error:  # a missing or forbidden profiler must not cost the times
        return f"not run: {error}"
