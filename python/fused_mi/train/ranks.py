"""Ranks, precision and trackers of a run, by Accelerate; under `torchrun` or `accelerate launch`
each rank is a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from .config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


def group() -> dist.ProcessGroup | None:
    """All ranks, for a loss of the whole batch; None where there is one."""
    return dist.group.WORLD if count() > 1 else None


def rows_of_all(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in their order; each has as many."""
    if group is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group)
    return torch.cat(parts)


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
    if config.batch_size % count() or config.batch_size < 2 * count():
        raise ConfigError(
            f"--batch-size {config.batch_size}: {count()} ranks need a multiple of {count()} "
            f"passages, {2 * count()} at least"
        )
    return accelerate.Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.precision,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=folder,
    )


def average_gradients(accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Over the ranks. A loss of all of them has gradients that are times their number, so that it
    weighs the same beside losses of each rank's own passages."""
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
