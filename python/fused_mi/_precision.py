"""In which dtype what is computed and kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ._environment import Variable

CAREFUL = Variable("FUSED_MI_CAREFUL")


def careful() -> bool:
    """Whether plain torch is to take no short cut, at several times the time: an oracle."""
    return CAREFUL.get() == "1"


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """T: float64 if any of the tensors is, else float32."""
    wide = torch.float64 in [t.dtype for t in tensors]
    return torch.float64 if wide else torch.float32


def working_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums and of plain arithmetic on `device`: float64, or float32 where there is no
    float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def moments_dtype(*tensors: Tensor, exact: bool) -> torch.dtype:
    """The dtype of moments that a fused backend hands from forward to backward: T, and float64
    where `exact`: a difference of sums follows."""
    return working_dtype(tensors[0].device) if exact else accumulation_dtype(*tensors)
