"""The training loss: utility lost, plus alpha times what the noise leaves to be told, in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fused_mi import (
    gaussian_entropy_log_loss,
    mutual_information_sub_batch,
    token_information,
)
from fused_mi._mixture import Scoring, positions_of_samples

from . import ranks
from .config import Estimator, Pairing, TrainConfig
from .encoder import Model
from .text import Passages, Vocabulary
from .utility import lost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Terms:
    """0-dim tensors. ``kept``: what of the utility is shown, see `utility.lost`; ``information`` in
    nats, of what see `information`."""

    loss: Tensor
    utility_loss: Tensor
    kept: dict[str, Tensor]
    information: Tensor
    sigma_mean: Tensor

    def numbers(self) -> dict[str, float]:
        """By their names, in the order of the curve."""
        both = {**vars(self), **self.kept}
        names = "loss", "utility_loss", *self.kept, "information", "sigma_mean"
        return {name: float(both[name].detach()) for name in names}


@dataclass(frozen=True)
class Draw:
    """Passages under one draw of the noise, and what it is of: x, y, mu, sigma (B, S, E)."""

    batch: Passages
    x: Tensor
    y: Tensor
    mu: Tensor
    sigma: Tensor


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
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Bound of I(x; y), nats per sample and per feature; embeddings (B, S, E), mask (B, S). Of a
    group: that of the samples of all ranks, as many on each; gradients are times their number."""
    total = mutual_information_sub_batch(
        mu,
        sigma,
        noise_mask,
        x,
        y,
        estimator=estimator,
        pairing=pairing,
        reduction="mean",
        group=group,
    )
    features = shared_features(ranks.rows_of_all(noise_mask, group), x.shape[-1], pairing)
    nats = total - features / 2  # as constant="subtract" has it, of a d that is needed anyway
    return nats, nats / max(features, 1.0)


def information(
    draw: Draw,
    layer: nn.Module,
    encoder: Model,
    vocabulary: Vocabulary,
    config: TrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """What the objective pushes down, 0-dim, in nats.

    - "tokens": what an embedding tells about its token among the words of the text, of some tokens
      of the batch;
    - "passages": the bound for passages among those of the batch, of all ranks, per feature;
    - "std": minus the entropy of the noise, per feature, whatever it hides;
    - "none": 0.
    """
    mask = draw.batch.noise_mask
    if config.objective == "tokens":
        at = mask.nonzero()
        order = torch.randperm(len(at), generator=generator, device=generator.device)
        rows, positions = at[order[: config.tokens].to(at.device)].unbind(1)
        words = nn.functional.embedding(vocabulary.words, encoder.table).to(draw.x.dtype)
        mu, sigma = layer.parameters_of(words)  # type: ignore[operator]
        tokens = vocabulary.row_of[draw.batch.ids[rows, positions]]
        noisy = draw.y[rows, positions]
        return token_information(noisy, tokens, words + mu, sigma, vocabulary.log_frequencies)
    if config.objective == "passages":
        how = config.estimator, config.pairing, ranks.group()
        return mutual_information(draw.x, draw.y, draw.mu, draw.sigma, mask, *how)[1]
    if config.objective == "std":
        return gaussian_entropy_log_loss(draw.sigma, mask)
    return draw.y.new_zeros(())


def objective(
    layer: nn.Module,
    encoder: Model,
    vocabulary: Vocabulary,
    batch: Passages,
    config: TrainConfig,
    generator: torch.Generator,
    target: Tensor | None = None,
) -> Terms:
    """One draw of the noise for one batch, and what it costs; ``target``: (B, H), the sentence
    embeddings of the clean passages, where they are known."""
    with torch.no_grad():
        clean = encoder.embed(batch.ids)
        if target is None:
            target = encoder.encode(clean, batch.attention_mask)
    x = clean.to(torch.promote_types(clean.dtype, torch.float32))
    y, mu, sigma = layer(x, generator)
    noisy = torch.where(batch.noise_mask[..., None], y, x)
    found = encoder.encode(noisy, batch.attention_mask)
    cost, kept = lost(config.utility_for(encoder.causal), target, found, batch.noise_mask)
    draw = Draw(batch, x, y, mu, sigma)
    nats = information(draw, layer, encoder, vocabulary, config, generator)
    return Terms(
        cost + config.weight * nats if config.weight else cost,
        cost,
        kept,
        nats,
        sigma.detach()[batch.noise_mask].mean(),
    )
