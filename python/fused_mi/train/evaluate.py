"""What the noise costs and what it hides, measured on held-out passages.

Three attackers try to read each noised token back from y:

- ``nearest``: the nearest row of the embedding table, knowing nothing about the layer;
- ``informed``: knowing the whole layer, the word v whose density N(y; x_v + mu_v, sigma_v) is
  highest;
- ``prior``: the same, weighted with the word frequencies of the training text.

For isotropic noise the first two are the same attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .config import ESTIMATORS, Pairing
from .encoder import Encoder
from .noise import IsotropicNoise
from .objective import mutual_information
from .seeds import generator
from .text import Passages

ATTACKS = ("nearest", "informed", "prior")
_CHUNK = 64  # passages per forward pass
_TOKENS = 512  # tokens scored against the vocabulary at once: 512 * V numbers of memory


@dataclass(frozen=True)
class Evaluation:
    """Utility is a cosine, ``mi`` nats per passage, ``recovery`` shares of noised tokens."""

    utility: float
    mi: dict[str, float] = field(default_factory=dict)
    mi_per_feature: dict[str, float] = field(default_factory=dict)
    recovery: dict[str, float] = field(default_factory=dict)


class HeldOut:
    """Held-out passages, their clean sentence embeddings, the vocabulary and its frequencies."""

    def __init__(self, encoder: Encoder, passages: Passages, train: Passages, seed: int) -> None:
        self.encoder, self.passages, self.seed = encoder, passages, seed
        self.device = encoder.table.device
        dtype = torch.promote_types(encoder.table.dtype, torch.float32)
        self.table = encoder.table.detach().to(dtype)  # (V, E)
        counts = torch.bincount(train.ids[train.noise_mask].cpu(), minlength=self.table.shape[0])
        smoothed = (counts + 0.1).to(self.table)  # words never seen in training keep a small chance
        self.log_prior = torch.log(smoothed / smoothed.sum())  # (V,)
        with torch.no_grad():
            self.target = torch.cat(
                [encoder.encode(encoder.embed(p.ids), p.attention_mask) for p in self._chunks()]
            )

    def _chunks(self) -> list[Passages]:
        return [
            self.passages[start : start + _CHUNK] for start in range(0, len(self.passages), _CHUNK)
        ]

    @torch.no_grad()
    def draw(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, y, mu, sigma, each (P, S, E); every layer gets the same standard normal numbers."""
        x = self.encoder.embed(self.passages.ids).to(self.table.dtype)
        y, mu, sigma = layer(x, generator(self.device, self.seed, "held-out"))
        return x, y, mu, sigma

    @torch.no_grad()
    def utility(self, x: Tensor, y: Tensor) -> float:
        """Mean cosine between the sentence embeddings of noisy and clean passages."""
        noisy = torch.where(self.passages.noise_mask[..., None], y, x)
        found = [
            self.encoder.encode(noisy[start : start + _CHUNK], chunk.attention_mask)
            for start, chunk in zip(
                range(0, len(self.passages), _CHUNK), self._chunks(), strict=True
            )
        ]
        return float((torch.cat(found) * self.target).sum(-1).mean())

    def utility_of(self, layer: nn.Module) -> float:
        x, y, _, _ = self.draw(layer)
        return self.utility(x, y)

    @torch.no_grad()
    def recovery(self, layer: nn.Module, y: Tensor) -> dict[str, float]:
        """Share of noised tokens that each attacker names correctly; y is (P, S, E)."""
        tokens = self.passages.ids[self.passages.noise_mask]
        noisy = y[self.passages.noise_mask]
        mu, sigma = layer.parameters_of(self.table)  # type: ignore[operator]
        naive = _GaussianScores(self.table, torch.ones_like(self.table))
        informed = _GaussianScores(self.table + mu, sigma)
        hits = dict.fromkeys(ATTACKS, 0)
        for start in range(0, len(tokens), _TOKENS):
            wanted, rows = tokens[start : start + _TOKENS], noisy[start : start + _TOKENS]
            likelihood = informed(rows)
            if isinstance(layer, IsotropicNoise):  # nearest and most likely are then the same
                nearest = likelihood.argmax(1)
            else:
                nearest = naive(rows).argmax(1)
            guesses = (nearest, likelihood.argmax(1), (likelihood + self.log_prior).argmax(1))
            for name, guess in zip(ATTACKS, guesses, strict=True):
                hits[name] += int((guess == wanted).sum())
        return {name: count / len(tokens) for name, count in hits.items()}

    def evaluate(self, layer: nn.Module, pairing: Pairing) -> Evaluation:
        """Everything about one noise layer."""
        x, y, mu, sigma = self.draw(layer)
        mi: dict[str, float] = {}
        per_feature: dict[str, float] = {}
        for estimator in ESTIMATORS:
            nats, each = mutual_information(
                x, y, mu, sigma, self.passages.noise_mask, estimator, pairing
            )
            mi[estimator], per_feature[estimator] = float(nats), float(each)
        return Evaluation(self.utility(x, y), mi, per_feature, self.recovery(layer, y))


class _GaussianScores:
    """log N(y; center_v, diag sigma_v^2) for every word v, as two matrix products.

    Up to a constant per y. Relative to the mean centre, which keeps the products small.
    """

    def __init__(self, centers: Tensor, sigma: Tensor) -> None:
        self.shift = centers.mean(0)  # (E,)
        shifted = centers - self.shift
        # With one sigma for all words, y^2 is the same for all of them and decides nothing.
        self.shared = bool((sigma == sigma[:1]).all())
        self.precision = sigma.square().reciprocal()  # (V, E)
        self.weighted = shifted * self.precision
        self.constant = -(shifted * self.weighted).sum(1) / 2 - sigma.log().sum(1)  # (V,)

    def __call__(self, y: Tensor) -> Tensor:
        """(T, E) -> (T, V)."""
        y = y - self.shift
        scores = torch.addmm(self.constant, y, self.weighted.T)
        if self.shared:
            return scores
        return scores.addmm_(y.square(), self.precision.T, alpha=-0.5)


def tune_isotropic(held_out: HeldOut, target: float, rounds: int = 16) -> IsotropicNoise:
    """The isotropic noise whose held-out utility is ``target``, by bisection in log sigma."""
    low, high = _bracket(held_out, target)
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        utility = held_out.utility_of(IsotropicNoise(middle))
        if abs(utility - target) < 5e-4:
            return IsotropicNoise(middle)
        low, high = (middle, high) if utility > target else (low, middle)
    return IsotropicNoise(math.sqrt(low * high))


def _bracket(held_out: HeldOut, target: float) -> tuple[float, float]:
    """Two sigmas between which utility crosses the target: the table's spread, widened."""
    low = high = float(held_out.table.std())
    for _ in range(20):
        if held_out.utility_of(IsotropicNoise(low)) > target:
            break
        low /= 4
    for _ in range(10):
        if held_out.utility_of(IsotropicNoise(high)) < target:
            break
        high *= 4
    return low, high
