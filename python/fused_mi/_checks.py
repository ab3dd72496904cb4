"""Checks of arguments: every message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor


def floating(**tensors: Any) -> torch.dtype:
    """Each argument is a real floating tensor on one device; returns the accumulation type T."""
    for name, tensor in tensors.items():
        _tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    _one_device(tensors)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return torch.float64 if wide else torch.float32


def activity(name: str, mask: Any, like: Tensor) -> Tensor:
    """A 0/1 mask of any real dtype as bool, on the device of `like`."""
    _tensor(name, mask)
    if mask.is_complex():
        raise TypeError(
            f"{name}: expected a bool, integer or floating-point tensor, got {mask.dtype}"
        )
    _one_device({"the embeddings": like, name: mask})
    active: Tensor = mask if mask.dtype == torch.bool else mask.detach() != 0
    return active


def shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """`tensor` has exactly the shape `expected`; `meaning` names its dimensions."""
    if tensor.shape != torch.Size(expected):
        raise ValueError(
            f"{name}: expected shape {meaning} = {tuple(expected)}, got {tuple(tensor.shape)}"
        )


def dimensions(name: str, tensor: Tensor, meaning: str) -> None:
    """`tensor` has as many dimensions as `meaning`, for example "(B, S, E)", names."""
    if tensor.dim() != meaning.count(",") + 1:
        raise ValueError(f"{name}: expected shape {meaning}, got {tuple(tensor.shape)}")


def not_empty(name: str, tensor: Tensor) -> None:
    """`tensor` has at least one row."""
    if tensor.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row, got shape {tuple(tensor.shape)}")


def option(name: str, value: Any, literal: Any) -> None:
    """`value` is one of the strings of the type `literal`."""
    if value not in get_args(literal):
        raise ValueError(
            f"{name}: expected one of {', '.join(map(repr, get_args(literal)))}, got {value!r}"
        )


def factor(safety_factor: Any) -> None:
    """`safety_factor` is a finite number >= 0."""
    if isinstance(safety_factor, bool) or not isinstance(safety_factor, (int, float)):
        raise TypeError(f"safety_factor: expected a number, got {type(safety_factor).__name__}")
    if not 0 <= safety_factor < float("inf"):
        raise ValueError(f"safety_factor: expected a finite number >= 0, got {safety_factor}")


def _tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _one_device(tensors: Mapping[str, Tensor]) -> None:
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(
                f"{name}: expected device {reference.device} as {first}, got {tensor.device}"
            )
