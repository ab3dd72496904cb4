"""What the noise costs and what it hides, measured on held-out passages; of the attackers see
``attacks.py``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fused_mi import token_information

from .attacks import Neighbours, guesses
from .config import ESTIMATORS, Pairing
from .encoder import Model
from .noise import IsotropicNoise
from .objective import mutual_information
from .seeds import generator
from .text import Passages, Vocabulary

DRAWS = 4  # of the noise, of each passage, for the retrieval
_CHUNK = 64  # passages per forward pass
_SMOOTHING = 0.1  # added to the count of each word: one that training never saw keeps a chance


class Retrieval(NamedTuple):
    """Shares of noisy passages whose own clean one is the nearest, or among the nearest five; the
    mean cosine between the two; and the standard error of the first."""

    top1: float
    top5: float
    cosine: float
    top1_error: float


@dataclass(frozen=True)
class Evaluation:
    """``attacks``: shares of noised tokens; ``mi``: bounds of the passages, nats per passage. An
    error is a standard error, over the passages."""

    retrieval_top1: float
    retrieval_top5: float
    cosine: float
    retrieval_top1_error: float
    token_information_nats: float
    token_information_error: float
    attacks: dict[str, float]
    attack_errors: dict[str, float]
    mi: dict[str, float]
    mi_per_feature: dict[str, float]


def over_passages(values: Tensor, noise_mask: Tensor) -> tuple[float, float]:
    """Mean over the noised tokens of what they are worth (T,), and its standard error: that of a
    ratio of sums over passages, for the tokens of one are not independent; noise_mask is (P, S)."""
    worth = torch.zeros(noise_mask.shape, dtype=torch.float64, device=values.device)
    worth[noise_mask] = values.double()
    tokens, mean = noise_mask.sum(1), values.double().mean()
    off = worth.sum(1) - mean * tokens  # (P,)
    passages = len(off)
    error = off.square().sum().sqrt() / tokens.sum() * math.sqrt(passages / max(1, passages - 1))
    return float(mean), float(error)


class HeldOut:
    """Held-out passages, their clean sentence embeddings, the vocabulary and its frequencies."""

    def __init__(self, encoder: Model, passages: Passages, train: Passages, seed: int) -> None:
        self.encoder, self.passages, self.seed = encoder, passages, seed
        self.device = encoder.table.device
        dtype = torch.promote_types(encoder.table.dtype, torch.float32)
        self.table = encoder.table.detach().to(dtype)  # (V, E)
        train = train.to(str(self.device))
        vocabulary = Vocabulary.of(train, len(self.table))
        smoothed = (vocabulary.counts + _SMOOTHING).to(self.table)
        self.log_prior = torch.log(smoothed / smoothed.sum())  # (V,)
        self.neighbours = Neighbours.of(train, vocabulary, self.log_prior.exp())
        self.tokens = passages.ids[passages.noise_mask]  # (T,)
        self.x = encoder.embed(passages.ids).to(dtype)  # (P, S, E)

    @property
    def token_entropy(self) -> float:
        """-mean log p(t): what is to be told about the held-out tokens, nats each."""
        return -float(self.log_prior[self.tokens].double().mean())

    @functools.cached_property
    def target(self) -> Tensor:
        """(P, H) of the clean passages."""
        with torch.no_grad():
            return self._encode(self.x)

    def _encode(self, embeddings: Tensor) -> Tensor:
        masks = self.passages.attention_mask.split(_CHUNK)
        parts = zip(embeddings.split(_CHUNK), masks, strict=True)
        return torch.cat([self.encoder.encode(*part) for part in parts])

    @torch.no_grad()
    def draw(self, layer: nn.Module, number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """y, mu, sigma, each (P, S, E); every layer gets the same standard normal numbers."""
        found: tuple[Tensor, Tensor, Tensor] = layer(
            self.x, generator(self.device, self.seed, "held-out", number)
        )
        return found

    @torch.no_grad()
    def retrieval(self, layer: nn.Module, draws: int = DRAWS) -> Retrieval:
        """Of the passages among each other, under several draws of the noise."""
        found = []
        for number in range(draws):
            y = self.draw(layer, number)[0]
            noisy = torch.where(self.passages.noise_mask[..., None], y, self.x)
            cosines = self._encode(noisy) @ self.target.T
            own = cosines.diagonal()
            nearer = (cosines > own[:, None]).sum(1)
            found.append(torch.stack([nearer < 1, nearer < 5, own]).double())
        each = torch.stack(found).mean(0)  # (3, P): draws of one passage are not independent
        top1, top5, cosine = each.mean(1).tolist()
        return Retrieval(top1, top5, cosine, float(each[0].std() / math.sqrt(each.shape[1])))

    @torch.no_grad()
    def token_information(self, layer: nn.Module, y: Tensor) -> Tensor:
        """Nats of each noised token (T,) among the whole vocabulary; y is (P, S, E)."""
        mu, sigma = layer.parameters_of(self.table)  # type: ignore[operator]
        return token_information(
            y[self.passages.noise_mask],
            self.tokens,
            self.table + mu,
            sigma,
            self.log_prior,
            reduction="none",
        )

    def guesses(self, layer: nn.Module, y: Tensor) -> dict[str, Tensor]:
        """What each attacker names (T,) for the noised tokens; y is (P, S, E)."""
        return guesses(layer, y, self.passages, self.table, self.neighbours)

    def share(self, guess: Tensor) -> tuple[float, float]:
        """Of the noised tokens, those that a guess (T,) names, and its standard error."""
        return over_passages(guess == self.tokens, self.passages.noise_mask)

    def hidden(
        self, layer: nn.Module, y: Tensor, guessed: dict[str, Tensor] | None
    ) -> tuple[float, float, dict[str, float], dict[str, float]]:
        """Token information and its error, shares that the attackers name and their errors;
        `guessed`: their `guesses`, where they are known."""
        found = over_passages(self.token_information(layer, y), self.passages.noise_mask)
        guessed = self.guesses(layer, y) if guessed is None else guessed
        shares = {name: self.share(guess) for name, guess in guessed.items()}
        attacks, errors = ({name: pair[n] for name, pair in shares.items()} for n in (0, 1))
        return *found, attacks, errors

    def evaluate(
        self, layer: nn.Module, pairing: Pairing, guessed: dict[str, Tensor] | None = None
    ) -> Evaluation:
        """Everything about one noise layer; `guessed`: its `guesses`, where they are known."""
        y, mu, sigma = self.draw(layer)
        mi: dict[str, float] = {}
        per_feature: dict[str, float] = {}
        mask = self.passages.noise_mask
        for estimator in ESTIMATORS:
            with torch.no_grad():
                bound = mutual_information(self.x, y, mu, sigma, mask, estimator, pairing)
            mi[estimator], per_feature[estimator] = map(float, bound)
        hidden = self.hidden(layer, y, guessed)
        return Evaluation(*self.retrieval(layer), *hidden, mi, per_feature)


def tune_isotropic(validation: HeldOut, target: float, rounds: int = 7) -> IsotropicNoise:
    """The isotropic noise with the largest sigma under which own passages are found as often as
    ``target`` (top-1), by bisection in log sigma."""

    def kept(std: float) -> bool:
        found = validation.retrieval(IsotropicNoise(std), draws=2)
        return found.top1 >= target - 0.5 / len(validation.passages)

    return largest(kept, float(validation.table.std()), rounds)


def largest(kept: Callable[[float], bool], start: float, rounds: int = 7) -> IsotropicNoise:
    """Isotropic noise of the largest sigma with `kept`, by bisection in log sigma."""
    low = high = start
    for _ in range(20):
        if kept(low):
            break
        low, high = low / 2, low
    for _ in range(20):
        if not kept(high):
            break
        low, high = high, high * 2
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return IsotropicNoise(low)
