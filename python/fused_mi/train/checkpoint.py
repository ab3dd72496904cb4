"""Checkpoints in safetensors: weights and optimiser tensors; step and config in the metadata."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import ConfigError, TrainConfig
from .noise import NoiseLayer

FILE_NAME = "checkpoint.safetensors"
FORMAT = "fused-mi-train-2"
_ANY_FORMAT = FORMAT.rstrip("0123456789")


@dataclass(frozen=True)
class Checkpoint:
    """``step`` steps are done; tensors are ``layer.*`` and ``optimizer.<parameter>.<entry>``."""

    config: TrainConfig
    step: int
    tensors: dict[str, Tensor]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` at the end: no reader sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def save(
    folder: Path, config: TrainConfig, step: int, layer: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the checkpoint atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"layer.{name}": value for name, value in layer.state_dict().items()}
    for name, parameter in layer.named_parameters():
        for entry, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{entry}"] = torch.as_tensor(value)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "step": str(step), "config": config.to_json()}
    with replacing(folder / FILE_NAME) as path:
        try:
            save_file(tensors, path, metadata)
        except SafetensorError as error:  # of the file system, a full disk for one
            raise OSError(f"{folder / FILE_NAME} cannot be written: {error}") from None


def read(folder: Path) -> Checkpoint:
    """The checkpoint of an output folder, or a ConfigError that says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint in {folder} to resume from")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise ConfigError(f"{path} is not a readable safetensors file") from None
    found = metadata.get("format", "")
    if found != FORMAT and found.startswith(_ANY_FORMAT):
        raise ConfigError(
            f"{path} has the format {found}, this version reads {FORMAT}: train anew, or take the "
            "version that wrote it"
        )
    if found != FORMAT:
        raise ConfigError(f"{path} was not written by fused-mi train")
    try:
        return Checkpoint(TrainConfig.from_json(metadata["config"]), int(metadata["step"]), tensors)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{path}: its saved config is damaged") from None


def restore(
    checkpoint: Checkpoint, layer: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Loads layer and optimiser; one that does not fit raises ConfigError and changes nothing."""
    wanted = {f"layer.{name}": value for name, value in layer.state_dict().items()}
    for name, parameter in layer.named_parameters() if optimizer else ():
        for entry in ("exp_avg", "exp_avg_sq"):
            wanted[f"optimizer.{name}.{entry}"] = parameter
        wanted[f"optimizer.{name}.step"] = torch.tensor(0.0)
    for name, value in wanted.items():
        found = checkpoint.tensors.get(name)
        if found is None or found.shape != value.shape:
            has = "nothing" if found is None else f"shape {tuple(found.shape)}"
            raise ConfigError(
                f"the checkpoint does not fit the model: {name} needs shape {tuple(value.shape)}, "
                f"it has {has}"
            )
    layer.load_state_dict(
        {name: checkpoint.tensors[f"layer.{name}"] for name in layer.state_dict()}
    )
    if optimizer is None:
        return
    for name, parameter in layer.named_parameters():
        optimizer.state[parameter] = {
            "step": checkpoint.tensors[f"optimizer.{name}.step"].clone(),
            "exp_avg": checkpoint.tensors[f"optimizer.{name}.exp_avg"].to(parameter),
            "exp_avg_sq": checkpoint.tensors[f"optimizer.{name}.exp_avg_sq"].to(parameter),
        }


def load_noise_layer(folder: str | Path) -> tuple[NoiseLayer, TrainConfig]:
    """The trained layer of an output folder, on the CPU, and the config it was trained with."""
    checkpoint = read(Path(folder))
    config = checkpoint.config
    features = checkpoint.tensors["layer.to_mu.bias"].numel()
    layer = NoiseLayer(features, config.min_std, config.max_std, 1.0)
    layer = layer.to(checkpoint.tensors["layer.to_mu.bias"].dtype)
    restore(checkpoint, layer)
    return layer.eval(), config
