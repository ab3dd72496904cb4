"""Compile before the first step of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import _checks
from ._types import Estimator, Pairing
from ._warming import every_kernel
from .losses import mutual_information_sub_batch

INPUTS = ("means", "stds", "clean", "noisy")


def warmup(
    positions: int,
    features: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    estimator: Estimator = "jensen",
    batch: int = 4,
    pairing: Pairing = "sub_batch",
    combine_noise_masks: bool = True,
    gradients: Sequence[str] = INPUTS,
    safety_factor: float = 100.0,
) -> None:
    """Run the loss once, forward and backward, on a batch of contiguous tensors.

    Whatever the chosen backend compiles is compiled then, and not in the first step of training or
    inside the capture of a CUDA graph. The kernels of "jensen" do not depend on the batch size, so
    that a small one serves; the tiles of "logsumexp" do: name the `batch` of the training.

    Args:
        positions, features: S and E of the tensors to come.
        device, dtype: of the tensors to come.
        estimator: "jensen" or "logsumexp".
        batch: B of the tensors to come; it matters for "logsumexp" alone.
        pairing, combine_noise_masks, safety_factor: as the loss will be called.
        gradients: which of "means", "stds", "clean" and "noisy" will require one.

    Raises:
        TypeError: `combine_noise_masks` is no bool.
        ValueError: an unknown name in `gradients`.
    """
    combine = _checks.flag("combine_noise_masks", combine_noise_masks)
    unknown = set(gradients) - set(INPUTS)
    if unknown:
        raise ValueError(f"gradients: expected names among {INPUTS}, got {sorted(unknown)}")
    shape = (batch if estimator == "logsumexp" else 4, positions, features)
    tensors = {
        name: torch.ones(shape, dtype=dtype, device=device).requires_grad_(name in gradients)
        for name in INPUTS
    }
    mask = torch.ones(shape[:2], dtype=torch.bool, device=device)
    with every_kernel():
        loss = mutual_information_sub_batch(
            tensors["means"],
            tensors["stds"],
            mask,
            tensors["clean"],
            tensors["noisy"],
            combine,
            safety_factor=safety_factor,
            estimator=estimator,
            pairing=pairing,
        )
        if gradients:
            torch.autograd.grad(loss, [tensors[name] for name in gradients])
    if loss.is_cuda:
        torch.cuda.synchronize(loss.device)
