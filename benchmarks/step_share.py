"""What the objective takes of a training step of `fused-mi train`, by backend and as chunked eager
code: medians of interleaved runs in one process, as a table. Seconds are those of the processor, so
that other work beside it counts less; take one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.step_share [--model smollm2] [--rounds 5]
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import fused_mi
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .contestants import backends
from .end_to_end import _loss_of_a_step

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
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
    for _ in range(given.rounds):
        times[""].append(_seconds(lambda: trainer._one_step(rest)))
        for name, function in variants.items():
            times[name].append(_seconds(function))
    base = median(times.pop(""))
    words, features = len(run.vocabulary.words), run.encoder.table.shape[1]
    print(
        f"{given.model}: {config.tokens} tokens against {words} words of {features} features, "
        f"{torch.get_num_threads()} threads; a step without them, of {config.batch_size} passages "
        f"of {config.seq_len} tokens: {base:.2f} s\n"
    )
    print("| | the objective, s | its share of the step |\n|---|---:|---:|")
    for name, seconds in times.items():
        here = median(seconds)
        print(f"| {name} | {here:.2f} | {here / (here + base):.0%} |")


if __name__ == "__main__":
    main()
