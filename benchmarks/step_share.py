"""What the objective takes of a training step of `fused-mi train`, by backend and as chunked eager
code: medians of interleaved runs in one process, as a table. Seconds are those of the processor, so
that other work beside it counts less; take one thread. Memory is the peak beyond what is there and
beyond the gradients, of the objective alone and of the step without it.

    OMP_NUM_THREADS=1 python -m benchmarks.step_share [--model smollm2] [--rounds 5] [--out FILE]
    python -m benchmarks.step_share --draw FILE --picture docs/step.png
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import fused_mi
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import _source_tree, machine
from .contestants import backends
from .end_to_end import _loss_of_a_step
from .measure import extra_memory

WORDS = 64  # of a chunk: 256 tokens, 64 words and 576 features are 38 MB


def chunked(noisy: Tensor, tokens: Tensor, centers: Tensor, stds: Tensor, logs: Tensor) -> Tensor:
    """`fused_mi.token_information` in plain torch, as one writes it: (N, WORDS, E) at once, and
    once more in the backward pass."""

    def density(center: Tensor, std: Tensor) -> Tensor:
        squares = ((noisy[:, None] - center) / std).square().sum(2)
        return -squares / 2 - std.log().sum(1)

    parts = zip(centers.split(WORDS), stds.split(WORDS), strict=True)
    found = torch.cat([checkpoint(density, *part, use_reentrant=False) for part in parts], 1)
    own = found.gather(1, tokens[:, None])[:, 0]
    return (own - (found + logs).logsumexp(1)).mean()


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _mib(function: Callable[[], Any], gives_gradients: bool) -> float | None:
    """Of its peak."""

    def run() -> tuple[Any, Callable[[], Any]]:
        return None, lambda: function() if gives_gradients else (function(), ())[1]

    found = extra_memory(run, "cpu")
    return None if found is None else found / 2**20


def draw(found: dict[str, Any], picture: Path) -> None:
    """A bar for each way to compute the objective: seconds and MiB of a whole step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * len(found["objective"]) + 1.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    base = found["step_without"]
    for name, of_objective in reversed(found["objective"].items()):
        color = "#0072B2" if name in ("cpu", "triton") else "#56B4E9"
        color = "#D55E00" if name.startswith("chunked") else color
        for axes, unit in ((seconds, "seconds"), (memory, "mib")):
            axes.barh(name, base[unit], 0.65, color="#BBBBBB")
            stacked = unit == "seconds"  # peaks of memory come one after the other
            more = of_objective[unit]
            bar = axes.barh(name, more, 0.65 if stacked else 0.3, left=stacked * base[unit])
            bar[0].set_color(color)
            axes.bar_label(bar, [f" {more:.3g}"], fontsize=8)
    for axes, label in ((seconds, "seconds of a step"), (memory, "MiB at the peak of either")):
        axes.set_xlabel(f"{label}; grey: without the objective", fontsize=8)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
        axes.tick_params(labelsize=8)
    figure.suptitle(found["title"], fontsize=9)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file of JSON to write")
    parser.add_argument("--draw", type=Path, help="a file of --out: nothing is measured")
    parser.add_argument("--picture", type=Path, default=Path("step.png"))
    given = parser.parse_args()
    if given.draw is not None:
        draw(json.loads(given.draw.read_text()), given.picture)
        return
    from fused_mi.train import objective, trainer
    from fused_mi.train.config import TrainConfig

    config = TrainConfig(
        model=given.model, batch_size=given.batch_size, device="cpu", tracker="none"
    )
    run = trainer.prepare(config, Path("runs"), None)
    rest = dataclasses.replace(run, config=dataclasses.replace(run.config, objective="none"))
    loss = _loss_of_a_step(run)

    def with_chunks() -> object:
        with mock.patch.object(objective, "token_information", chunked):
            return loss()

    def with_backend(name: str) -> Callable[[], object]:
        def measured() -> object:
            with fused_mi.use_backend(name):  # type: ignore[arg-type]
                return loss()

        return measured

    variants = {name: with_backend(name) for name in backends("cpu")}
    variants[f"chunked eager, {WORDS} words"] = with_chunks
    times: dict[str, list[float]] = {name: [] for name in ("", *variants)}
    gradients = [f() for f in variants.values()]  # to warm up; and they are the same
    for others in gradients[1:]:
        for a, b in zip(gradients[0], others, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3 * float(a.abs().max()))
    trainer._one_step(rest)
    memory = {name: _mib(function, True) for name, function in variants.items()}
    of_rest = _mib(lambda: trainer._one_step(rest), False)
    for _ in range(given.rounds):
        times[""].append(_seconds(lambda: trainer._one_step(rest)))
        for name, function in variants.items():
            times[name].append(_seconds(function))
    base = median(times.pop(""))
    words, features = len(run.vocabulary.words), run.encoder.table.shape[1]
    title = f"{given.model}: {config.tokens} tokens against {words} words of {features} features"
    print(
        f"{title}, {torch.get_num_threads()} threads; a step without them, of {config.batch_size} "
        f"passages of {config.seq_len} tokens: {base:.2f} s, {of_rest or 0:.0f} MiB\n"
    )
    print("| | the objective, s | its share of the step | MiB |\n|---|---:|---:|---:|")
    for name, seconds in times.items():
        here = median(seconds)
        print(f"| {name} | {here:.2f} | {here / (here + base):.0%} | {memory[name] or 0:.0f} |")
    if given.out is not None:
        of_each = {
            name: {"seconds": median(s), "mib": memory[name], "samples": s}
            for name, s in times.items()
        }
        about = machine.describe("cpu", None, _source_tree.ROOT)
        found = {
            "title": f"{title}, {torch.get_num_threads()} thread(s)",
            "step_without": {"seconds": base, "mib": of_rest},
            "objective": of_each,
            "machine": about,
        }
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
