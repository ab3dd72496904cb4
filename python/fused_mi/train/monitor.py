"""What the layer does to validation passages while it is trained: some of them, now and then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fused_mi import token_information

from .config import TrainConfig, Utility
from .encoder import Model
from .seeds import generator
from .text import Passages, Vocabulary
from .utility import MEASURES, agreement

EVERY, TOKENS = 5, 256  # steps; tokens of each time
PASSAGES, OF_CAUSAL = 32, 8  # of each time; a causal model encodes each of them twice
PREFIX = "validation_"


def watched(utility: Utility) -> tuple[str, str]:
    """The columns of the curve that a monitor fills: what is kept, and the information."""
    return f"{PREFIX}{MEASURES[utility][-1]}", f"{PREFIX}information"


class Monitor:
    """Scores some validation passages, of an encoder among all of them, other ones each time. The
    seed and the step say which, and which noise: a resumed run sees the same."""

    def __init__(
        self, config: TrainConfig, model: Model, passages: Passages, vocabulary: Vocabulary
    ) -> None:
        self.config, self.model, self.passages = config, model, passages
        self.vocabulary = vocabulary
        self.columns = watched(config.utility_for(model.causal))
        self.count = OF_CAUSAL if model.causal else PASSAGES
        self.words = nn.functional.embedding(vocabulary.words, model.table)
        self.targets: Tensor | None = None  # (P, H), of an encoder
        if not model.causal:
            parts = [passages[slice(n, n + PASSAGES)] for n in range(0, len(passages), PASSAGES)]
            with torch.no_grad():
                encoded = [model.encode(model.embed(p.ids), p.attention_mask) for p in parts]
            self.targets = torch.cat(encoded)

    @torch.no_grad()
    def __call__(self, layer: nn.Module, step: int) -> dict[str, float]:
        """Share of passages that find their own clean one, or of positions whose most likely next
        token stays the same; and nats of a token among the words of the training text (words that
        are not in it left out)."""
        device = self.words.device
        noise = generator(device, self.config.seed, "validation", step)
        first = step // EVERY * self.count
        rows = torch.arange(first, first + self.count, device=device)
        rows = (rows % len(self.passages)).unique()
        batch = self.passages[rows]
        x = self.model.embed(batch.ids)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        y = layer(x, noise)[0]
        noisy = torch.where(batch.noise_mask[..., None], y, x)
        found = self.model.encode(noisy, batch.attention_mask)
        if self.targets is None:
            clean = self.model.encode(x, batch.attention_mask)
            same = agreement(clean[batch.noise_mask], found[batch.noise_mask])
        else:
            same = (found @ self.targets.T).argmax(1) == rows
        kept, information = self.columns
        measured = {kept: float(same.double().mean())}
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
        return {**measured, information: float(nats)}
