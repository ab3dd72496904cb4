"""The training loss: utility lost plus alpha times the mutual information per noised feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fused_mi import mutual_information_sub_batch
from fused_mi._mixture import Scoring, positions_of_samples

from .config import Estimator, Pairing
from .encoder import Encoder
from .text import Passages


@dataclass(frozen=True)
class Terms:
    """0-dim tensors; ``mi`` in nats per sample, d/2 subtracted from it and ``mi_per_feature``."""

    loss: Tensor
    utility: Tensor
    mi: Tensor
    mi_per_feature: Tensor
    sigma_mean: Tensor


def shared_features(noise_mask: Tensor, features: int, pairing: Pairing) -> float:
    """d: how many features a scored pair (i, l) shares on average; noise_mask is (B, S).

    This is the d of the constant d/2 = h(Y|X) - k: the combined masks make both a mean over pairs.
    """
    scoring = Scoring(noise_mask, noise_mask, pairing=pairing)
    batch = noise_mask.shape[0]
    return positions_of_samples(scoring, batch, batch).mean().item() * features


def mutual_information(
    x: Tensor,
    y: Tensor,
    mu: Tensor,
    sigma: Tensor,
    noise_mask: Tensor,
    estimator: Estimator,
    pairing: Pairing,
) -> tuple[Tensor, Tensor]:
    """Bound of I(x; y), nats per sample and per feature; embeddings (B, S, E), mask (B, S)."""
    total = mutual_information_sub_batch(
        mu, sigma, noise_mask, x, y, estimator=estimator, pairing=pairing, reduction="mean"
    )
    features = shared_features(noise_mask, x.shape[-1], pairing)
    nats = total - features / 2  # as constant="subtract" has it, of a d that is needed anyway
    return nats, nats / max(features, 1.0)


def objective(
    layer: nn.Module,
    encoder: Encoder,
    batch: Passages,
    alpha: float,
    estimator: Estimator,
    pairing: Pairing,
    generator: torch.Generator,
) -> Terms:
    """One draw of the noise for one batch, and what it costs."""
    with torch.no_grad():
        clean = encoder.embed(batch.ids)
        target = encoder.encode(clean, batch.attention_mask)
    x = clean.to(torch.promote_types(clean.dtype, torch.float32))
    y, mu, sigma = layer(x, generator)
    noisy = torch.where(batch.noise_mask[..., None], y, x)
    utility = (encoder.encode(noisy, batch.attention_mask) * target).sum(-1).mean()
    nats, per_feature = mutual_information(x, y, mu, sigma, batch.noise_mask, estimator, pairing)
    sigma_mean = sigma.detach()[batch.noise_mask].mean()
    return Terms(1 - utility + alpha * per_feature, utility, nats, per_feature, sigma_mean)
