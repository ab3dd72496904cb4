"""Compile before the first step of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import _checks
from ._types import Estimator, Pairing
from ._warming import every_kernel
from .losses import mutual_information_sub_batch
from .micro_batches import MicroBatches
from .modules import MutualInformationLoss
from .ranks import Ranks
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
    ranks: bool = False,
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
        ranks: also what "jensen" needs with a `group`, and for micro-batches; each rank does so for
            itself, nothing is sent.

    Raises:
        TypeError: `combine_noise_masks` or `ranks` is no bool.
        ValueError: an unknown name in `gradients`; `tokens` with more positions than one; `ranks`
            with "logsumexp".
    """
    combine = _checks.flag("combine_noise_masks", combine_noise_masks)
    if _checks.flag("ranks", ranks) and estimator != "jensen":
        raise ValueError(f'ranks: expected False, as the estimator is "{estimator}"')
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
    arguments = tensors["means"], tensors["stds"], mask, tensors["clean"], tensors["noisy"]
    wanted = [tensors[name] for name in gradients]
    with every_kernel():
        # On one rank whose gradients are scaled it is the operator of ranks.
        for group in (None, Ranks(averaged=2)) if ranks else (None,):
            loss = mutual_information_sub_batch(
                *arguments,
                combine,
                safety_factor=safety_factor,
                estimator=estimator,
                pairing=pairing,
                group=group,
            )
            if wanted:
                torch.autograd.grad(loss, wanted)
        if ranks:
            module = MutualInformationLoss(combine, safety_factor=safety_factor, pairing=pairing)
            part = _of_micro_batches(module.micro_batches(shape[0]), arguments)
            if wanted:
                torch.autograd.grad(part, wanted)
    if loss.is_cuda:
        torch.cuda.synchronize(loss.device)


def _of_micro_batches(step: MicroBatches, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The parts of two micro-batches, added up."""
    windows = [[t[rows] for t in arguments] for rows in (slice(0, 2), slice(2, None))]
    for _, stds, mask, _, _ in windows:
        step.observe(stds, mask)
    for means, stds, mask, clean, noisy in windows:
        step.add(means, stds, mask, clean, noisy)
    total = step.value()
    for means, stds, mask, clean, noisy in windows:
        total = total + step.part(means, stds, mask, clean, noisy)
    return total


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
