"""What the layer does to validation passages while it is trained: some of them, now and then."""

from __future__ import annotations

import torch
from torch import nn

from fused_mi import token_information

from .config import TrainConfig
from .encoder import Encoder
from .seeds import generator
from .text import Passages, Vocabulary

EVERY, PASSAGES, TOKENS = 5, 32, 256  # steps; of each time
COLUMNS = ("validation_found", "validation_information")


class Monitor:
    """Scores PASSAGES validation passages among all of them, other ones each time. The seed and the
    step say which, and which noise: a resumed run sees the same."""

    def __init__(
        self, config: TrainConfig, encoder: Encoder, passages: Passages, vocabulary: Vocabulary
    ) -> None:
        self.config, self.encoder, self.passages = config, encoder, passages
        self.vocabulary = vocabulary
        parts = [passages[slice(n, n + PASSAGES)] for n in range(0, len(passages), PASSAGES)]
        with torch.no_grad():
            encoded = [encoder.encode(encoder.embed(p.ids), p.attention_mask) for p in parts]
        self.targets = torch.cat(encoded)  # (P, H)
        self.words = nn.functional.embedding(vocabulary.words, encoder.table)

    @torch.no_grad()
    def __call__(self, layer: nn.Module, step: int) -> dict[str, float]:
        """Share of passages that find their own clean one, and nats of a token among the words of
        the training text (words that are not in it left out)."""
        noise = generator(self.targets.device, self.config.seed, "validation", step)
        first = step // EVERY * PASSAGES
        rows = torch.arange(first, first + PASSAGES, device=self.targets.device)
        rows = (rows % len(self.passages)).unique()
        batch = self.passages[rows]
        x = self.encoder.embed(batch.ids)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        y = layer(x, noise)[0]
        noisy = torch.where(batch.noise_mask[..., None], y, x)
        cosines = self.encoder.encode(noisy, batch.attention_mask) @ self.targets.T
        measured = {COLUMNS[0]: float((cosines.argmax(1) == rows).double().mean())}
        tokens = self.vocabulary.row_of[batch.ids[batch.noise_mask]]
        known = (tokens >= 0).nonzero()[:TOKENS, 0]
        if not len(known):
            return measured
        words = self.words.to(y.dtype)
        mu, sigma = layer.parameters_of(words)  # type: ignore[operator]
        nats = token_information(
            y[batch.noise_mask][known],
            tokens[known],
            words + mu,
            sigma,
            self.vocabulary.log_frequencies,
        )
        return {**measured, COLUMNS[1]: float(nats)}
