"""What the noise costs: outputs of the frozen model under noise, against the clean ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import Utility

MEASURES: dict[Utility, tuple[str, ...]] = {  # what is shown beside the loss
    "retrieval": ("cosine", "found"),
    "cosine": ("cosine", "found"),
    "kl": ("agreement",),
}
TEMPERATURE = 0.05  # of the cosines among which a passage finds its own


def lost(
    utility: Utility, clean: Tensor, noisy: Tensor, noise_mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, 0-dim, and what to show beside it; `clean` and `noisy` come from `Model.encode`.

    - "retrieval": cross entropy of the clean passages of the batch, by their cosines;
    - "cosine": 1 minus the cosine; with both, ``found``: share of the passages nearest to their own
      clean one;
    - "kl": `divergence` under noise, mean over the positions, in nats; ``agreement``: share of the
      positions whose most likely next token is the same.
    """
    if utility == "kl":
        clean, noisy = clean[noise_mask], noisy[noise_mask]
        return divergence(clean, noisy).mean(), {"agreement": agreement(clean, noisy).mean()}
    cosines = noisy @ clean.T
    own = torch.arange(len(cosines), device=cosines.device)
    cosine = cosines.diagonal().mean()
    kept = {"cosine": cosine, "found": (cosines.argmax(1) == own).float().mean()}
    if utility == "cosine":
        return 1 - cosine, kept
    return nn.functional.cross_entropy(cosines / TEMPERATURE, own), kept


def divergence(clean: Tensor, noisy: Tensor) -> Tensor:
    """KL(clean || noisy) of log probabilities (T, V) -> (T,), in nats."""
    return nn.functional.kl_div(noisy, clean, reduction="none", log_target=True).sum(1)


def agreement(clean: Tensor, noisy: Tensor) -> Tensor:
    """1 where the most likely token is the same, else 0: (T, V) -> (T,)."""
    return (clean.argmax(1) == noisy.argmax(1)).float()
