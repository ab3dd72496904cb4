"""What noise costs a causal model, and what it hides there, on held-out passages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .evaluate import HeldOut, largest
from .noise import IsotropicNoise
from .utility import agreement, divergence

DRAWS = 2  # of the noise, of each passage
_CHUNK = 8  # passages per forward pass, whose logits are 8 * S * V numbers


class Prediction(NamedTuple):
    """Of the next token, means over the positions under noise: KL of clean from noisy distribution
    and its standard error over passages, the share whose most likely token is the same, and minus
    the log probability of the token that follows; nats per token."""

    kl: float
    kl_error: float
    agreement: float
    next_token: float


@dataclass(frozen=True)
class LanguageEvaluation:
    """``attacks``: shares of noised tokens. An error is a standard error, over the passages."""

    kl_nats: float
    kl_error: float
    top1_agreement: float
    next_token_nats: float
    token_information_nats: float
    token_information_error: float
    attacks: dict[str, float]
    attack_errors: dict[str, float]


class HeldOutLanguage(HeldOut):
    """Held-out passages of a causal model."""

    @torch.no_grad()
    def prediction(self, layer: nn.Module, draws: int = DRAWS) -> Prediction:
        """Under several draws of the noise."""
        kl, same, following = zip(
            *(self._compare(self.draw(layer, number)[0]) for number in range(draws)), strict=True
        )
        each = torch.stack(kl).mean(0)  # (P,)
        error = float(each.std() / math.sqrt(len(each)))
        return Prediction(float(each.mean()), error, _mean(same), _mean(following))

    def _compare(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means of each passage (P,): KL, agreement, minus the log probability of what follows."""
        found = []
        noisy = torch.where(self.passages.noise_mask[..., None], y, self.x)
        for row in range(0, len(y), _CHUNK):
            here = slice(row, row + _CHUNK)
            passages = self.passages[here]
            p, q = (self.encoder.encode(t[here], passages.attention_mask) for t in (self.x, noisy))
            sizes, mask = p.shape[:2], passages.noise_mask
            p, q = p.flatten(0, 1), q.flatten(0, 1)
            follows = -q.view(*sizes, -1)[:, :-1].gather(2, passages.ids[:, 1:, None])[..., 0]
            found.append(
                (
                    _mean_of(divergence(p, q).view(sizes), mask),
                    _mean_of(agreement(p, q).view(sizes), mask),
                    _mean_of(follows, mask[:, :-1] & mask[:, 1:]),
                )
            )
        kl, same, following = (torch.cat(parts) for parts in zip(*found, strict=True))
        return kl, same, following

    def clean_next_token(self) -> float:
        """Minus the log probability of the token that follows, without noise, nats per token."""
        return self.prediction(IsotropicNoise(0.0), draws=1).next_token

    def evaluate_language(
        self, layer: nn.Module, guessed: dict[str, Tensor] | None = None
    ) -> LanguageEvaluation:
        """Everything about one noise layer; `guessed`: its `guesses`, where they are known."""
        y = self.draw(layer)[0]
        return LanguageEvaluation(*self.prediction(layer), *self.hidden(layer, y, guessed))


def tune_isotropic(validation: HeldOutLanguage, target: float) -> IsotropicNoise:
    """The isotropic noise with the largest sigma whose KL is at most `target`, in nats."""
    spread = float(validation.table.std())
    return largest(lambda std: validation.prediction(IsotropicNoise(std), 1).kl <= target, spread)


def _mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """(P, S) under a mask -> (P,)"""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1)


def _mean(parts: tuple[Tensor, ...]) -> float:
    return float(torch.stack(parts).mean())
