"""The share of a training step that the loss takes, with each backend."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import fused_mi
import torch

from .cases import FROZEN_CLEAN, TRAINING, Case
from .contestants import backends
from .measure import Clock
from .records import REFUSED, Record, record_of

_SECONDS = {"tiny": 1.0, "MiniLM": 15.0}  # per backend
_LEAST, _MOST = 5, 30


def steps(encoder: str, device: str, about: dict[str, Any]) -> Iterator[Record]:
    """A record for each backend: mode "step", with the share of the loss and its gradients."""
    from fused_mi.train.config import ConfigError, TrainConfig

    config = TrainConfig(device=device)
    names = backends(device)
    try:
        run = (_tiny if encoder == "tiny" else _real)(config)
    except (ImportError, ConfigError, OSError) as error:
        reason = " ".join(f"not installed: {error}".split())
        case = _case(encoder, config, 0)
        for name in names:
            more = {"mode": "step", "status": REFUSED, "reason": reason}
            yield record_of(case, name, "backend", about, **more)
        return
    case = _case(encoder, run.config, run.encoder.table.shape[1])
    whole, loss = _interleaved(run, names, Clock(device), _SECONDS[encoder])
    for name in names:
        record = record_of(case, name, "backend", about, mode="step")
        share = median(loss[name]) / median(whole[name])
        yield dataclasses.replace(record, loss_share=share).timed(whole[name])


def _case(encoder: str, config: Any, features: int) -> Case:
    shape = config.batch_size, config.seq_len, features
    return Case(f"{TRAINING}, {encoder}", *shape, wanted=FROZEN_CLEAN)


def _interleaved(run: Any, names: list[str], clock: Clock, seconds: float) -> tuple[Any, Any]:
    """ms of steps and of the loss with its gradients on the batch of a step, by backend."""
    from fused_mi.train import trainer

    loss = _loss_of_a_step(run)
    whole: dict[str, list[float]] = {name: [] for name in names}
    of_loss: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(_MOST + 1):
        for name in names:
            with fused_mi.use_backend(name):
                step = clock.single(lambda: trainer._one_step(run))
                alone = clock.single(loss)
            if turn:  # the first warms up
                whole[name].append(step)
                of_loss[name].append(alone)
        if turn >= _LEAST and time.perf_counter() - start > seconds * len(names):
            break
    return whole, of_loss


def _loss_of_a_step(run: Any) -> Callable[[], object]:
    """The loss and its gradients, as the step of the example calls them."""
    from fused_mi.train import objective

    batch = run.train[slice(0, run.config.batch_size)].to(run.config.device)
    with torch.no_grad():
        x = run.encoder.embed(batch.ids).float()
        y, mu, sigma = run.layer(x)
    wanted = [t.detach().requires_grad_() for t in (y, mu, sigma)]

    def loss() -> object:
        y, mu, sigma = wanted
        options = run.config.estimator, run.config.pairing
        _, per_feature = objective.mutual_information(x, y, mu, sigma, batch.noise_mask, *options)
        return torch.autograd.grad(per_feature, wanted)

    return loss


def _real(config: Any) -> Any:
    """What `make train` does, with its defaults."""
    from fused_mi.train import trainer

    return trainer.prepare(config, Path("runs"), None)


def _tiny(config: Any) -> Any:
    """The same step around an encoder of two small layers, on random tokens."""
    import transformers
    from fused_mi.train import encoder, text, trainer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, **layers))
    model = encoder.Encoder(bert).to(config.device)
    ids = torch.randint(1000, (4 * config.batch_size, config.seq_len))
    passages = text.Passages(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())
    layer = trainer.build_layer(config, model)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    return trainer.Run(config, Path("runs"), model, layer, optimizer, passages, passages)
