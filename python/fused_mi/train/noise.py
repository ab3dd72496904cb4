"""Noise layers: y = x + mu + sigma * N(0, I); mu and sigma depend on the token's own embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sample(x: Tensor, mu: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
    """One reparametrised draw of y, all (B, S, E); gradients reach mu and sigma."""
    if generator is None:
        return x + mu + sigma * torch.randn_like(x)  # the other form cannot be exported
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + mu + sigma * noise


class NoiseLayer(nn.Module):
    """A two-layer network per token; sigma between ``min_std`` and ``max_std``, mu starts at 0 and
    sigma at the share ``start`` of that range, in the logarithm.

    No token sees another one, so an attacker who knows the layer knows the exact density of y for
    every word: the strongest attack on a single token can be computed (see ``evaluate.py``).
    """

    scale: Tensor  # the spread of the embedding table, ()

    def __init__(
        self,
        features: int,
        min_std: float,
        max_std: float,
        scale: float,
        start: float = 0.5,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.log_min, self.log_max = math.log(min_std), math.log(max_std)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.GELU())
        self.to_mu = nn.Linear(hidden, features)
        self.to_sigma = nn.Linear(hidden, features)
        for head in (self.to_mu, self.to_sigma):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.to_sigma.bias, math.log(start / (1 - start)))

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and sigma for embeddings ``x``, all (..., E)."""
        hidden = self.body(x / self.scale)
        mu = self.scale * self.to_mu(hidden)
        # Interpolated in the logarithm: a step means the same factor at both ends of the range.
        share = torch.sigmoid(self.to_sigma(hidden))
        return mu, torch.exp(self.log_min + (self.log_max - self.log_min) * share)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, E) -> y, mu, sigma, each (B, S, E)."""
        mu, sigma = self.parameters_of(x)
        return sample(x, mu, sigma, generator), mu, sigma


class ConstantVector(nn.Module):
    """The floor: every token becomes the same vector, and says nothing."""

    centre: Tensor  # (E,)

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.centre - x, torch.full_like(x, 1e-3)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mu, sigma = self.parameters_of(x)
        return sample(x, mu, sigma, generator), mu, sigma


class IsotropicNoise(nn.Module):
    """The baseline: one standard deviation for every feature of every token, and mu = 0."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), torch.full_like(x, self.std)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mu, sigma = self.parameters_of(x)
        return sample(x, mu, sigma, generator), mu, sigma
