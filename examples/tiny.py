"""What the examples share: a noise layer, a frozen model, sentences, means of what is logged."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

VOCABULARY, LONGEST, FEATURES = 64, 12, 32


class NoiseLayer(nn.Module):
    """Shifts and scales that depend on the embedding.

    They are float32, also under autocast: bfloat16 has two to three decimal digits, which are too
    few for x + mu.
    """

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.shift, self.scale = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Means, stds and noisy embeddings (B, S, E); `noise` is N(0, I), None: drawn here."""
        means = 0.1 * self.shift(x).float()
        stds = nn.functional.softplus(self.scale(x).float()) + 0.01
        return means, stds, x + means + stds * (torch.randn_like(x) if noise is None else noise)


class Reader(nn.Module):
    """A frozen model that takes word embeddings (B, S, E): one vector for each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, FEATURES)
        self.body = nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, FEATURES))
        self.requires_grad_(False)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, E), for a mask (B, S) of the positions that are there."""
        mixed = embeddings.cumsum(1) / (1 + mask.cumsum(1))[..., None]
        return (self.body(mixed) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def lost(model: Reader, clean: Tensor, noisy: Tensor, mask: Tensor) -> Tensor:
    """How much of what the model makes of each sentence the noise has changed, (B,)."""
    noisy = torch.where(mask[..., None], noisy, clean)  # padding carries no noise
    found, wanted = model(noisy, mask).float(), model(clean, mask).float()
    return 1 - nn.functional.cosine_similarity(found, wanted, dim=-1)


def sentences(count: int, seed: int = 0) -> list[Tensor]:
    """Of made-up words, (length,) each."""
    gen = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, LONGEST + 1, (count,), generator=gen).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=gen) for length in lengths]


def collate(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids (B, S), and which of them are no padding."""
    ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
    return ids, ids != 0


class Means:
    """Means of terms over steps; nothing waits for the device before they are read."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def add(self, terms: Mapping[str, Tensor]) -> None:
        self.rows.append({name: term.detach() for name, term in terms.items()})

    def read(self) -> dict[str, float]:
        """Of the steps since the last call."""
        rows, self.rows = self.rows, []
        if not rows:
            return {}
        return {name: torch.stack([row[name] for row in rows]).mean().item() for name in rows[0]}
