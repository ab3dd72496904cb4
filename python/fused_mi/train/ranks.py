"""Ranks, precision and trackers of a run, by Accelerate; under `torchrun` or `accelerate launch`
each rank is a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


def accelerator_of(config: TrainConfig, folder: Path) -> Accelerator:
    """That of a run.

    Raises:
        ConfigError: no such tracker, or the batch cannot be shared by the ranks.
    """
    import accelerate
    from accelerate.tracking import get_available_trackers

    trackers = ["none", *map(str, get_available_trackers())]
    if config.tracker not in trackers:
        there = ", ".join(trackers)
        raise ConfigError(f"--tracker {config.tracker} is not installed; there are: {there}")
    share = config.batch_size // count()
    odd = share % 2 and config.pairing != "leave_one_out"
    if config.batch_size % count() or share < 2 or odd:
        raise ConfigError(
            f"--batch-size {config.batch_size}: {count()} ranks need a multiple of "
            f"{2 * count()} passages"
        )
    return accelerate.Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=folder,
    )


def average_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Over the ranks; their losses are those of their own passages."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def average(accelerator: Accelerator, numbers: list[float]) -> list[float]:
    """Over the ranks, in float64: the same bits on each."""
    if accelerator.num_processes == 1:
        return numbers
    here = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    found: Tensor = accelerator.reduce(here, "mean")
    return found.tolist()
