"""The frozen models: token embeddings in; of an encoder one unit vector per passage out, of a
causal model what it expects after each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """A frozen transformer that takes word embeddings in place of token ids."""

    causal: bool  # whether it predicts the next token

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @property
    def table(self) -> Tensor:
        """Word embeddings (V, E)."""
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return weight

    def embed(self, ids: Tensor) -> Tensor:
        """(B, S) token ids -> (B, S, E); positions and norms are added inside the model."""
        return nn.functional.embedding(ids, self.table)

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """What the model makes of (B, S, E) word embeddings under a (B, S) mask."""
        raise NotImplementedError

    def _outputs(self, embeddings: Tensor, mask: Tensor, **how: bool) -> Tensor:
        dtype = self.table.dtype
        found = self.model(inputs_embeds=embeddings.to(dtype), attention_mask=mask.to(dtype), **how)
        first: Tensor = found[0]  # last hidden states, or logits
        return first.to(torch.promote_types(first.dtype, torch.float32))


class Encoder(Model):
    """With mean pooling over the attention mask."""

    causal = False

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, H) unit sentence embeddings."""
        states = self._outputs(embeddings, attention_mask)
        mask = attention_mask.to(states.dtype)
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(pooled, dim=-1)


class CausalModel(Model):
    """A language model: what it expects next depends on the embeddings up to there."""

    causal = True

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S, V) log probabilities of the token after each position."""
        return self._outputs(embeddings, attention_mask, use_cache=False).log_softmax(-1)
