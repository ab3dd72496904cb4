"""Compile before the first step of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import _checks
from ._types import Estimator, Pairing
from ._warming import every_kernel
from .losses import mutual_information_sub_batch
from .tokens import token_information

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
    tokens: int | None = None,
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
        tokens: M; then it is `token_information` that runs, of `batch` embeddings of one position
            against so many tokens, with and without the own one: a vocabulary has other kernels
            than a batch. Name the sizes to come. Its centers have a gradient where "clean" or
            "means" have.

    Raises:
        TypeError: `combine_noise_masks` is no bool.
        ValueError: an unknown name in `gradients`; `tokens` with more positions than one.
    """
    combine = _checks.flag("combine_noise_masks", combine_noise_masks)
    unknown = set(gradients) - set(INPUTS)
    if unknown:
        raise ValueError(f"gradients: expected names among {INPUTS}, got {sorted(unknown)}")
    if tokens is not None:
        if positions != 1:
            raise ValueError(f"positions: expected 1, as tokens were given, got {positions}")
        centers = not {"clean", "means"}.isdisjoint(gradients)
        needed = "noisy" in gradients, centers, "stds" in gradients
        _token_information((batch, tokens, features), needed, device, dtype, safety_factor)
        return
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


def _token_information(
    sizes: tuple[int, int, int],  # N, M, E
    needed: tuple[bool, bool, bool],  # gradients of the embeddings, the centers and their stds
    device: torch.device | str,
    dtype: torch.dtype,
    safety_factor: float,
) -> None:
    N, M, E = sizes
    inputs = [
        torch.ones((rows, E), dtype=dtype, device=device).requires_grad_(here)
        for rows, here in zip((N, M, M), needed, strict=True)
    ]
    tokens = torch.zeros(N, dtype=torch.int64, device=device)
    weights = torch.full((M,), -math.log(M), dtype=torch.float32, device=device)
    for leave_own_out in (False, True):
        with every_kernel():
            noisy, centers, stds = inputs
            value = token_information(
                *(noisy, tokens, centers, stds, weights),
                leave_own_out=leave_own_out,
                safety_factor=safety_factor,
            )
            if any(needed):
                torch.autograd.grad(value, [t for t in inputs if t.requires_grad])
    if value.is_cuda:
        torch.cuda.synchronize(value.device)
