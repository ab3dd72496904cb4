"""The share of a training step that the loss takes, with each backend."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import fused_mi
import torch

from .cases import FROZEN_CLEAN, TRAINING, Case, Suite
from .contestants import backends
from .measure import Clock, Run, interleaved
from .records import REFUSED, Record, record_of


def steps(suite: Suite, clock: Clock, about: dict[str, Any]) -> Iterator[Record]:
    """A record for each backend: mode "step", with the share of the loss and its gradients."""
    from fused_mi.train.config import ConfigError, TrainConfig

    config = TrainConfig(device="cuda" if clock.cuda else "cpu")
    case = Case(f"{TRAINING}, {suite.train}", config.batch_size, config.seq_len, 0)
    case = dataclasses.replace(case, wanted=FROZEN_CLEAN)
    names = backends(config.device)
    try:
        from fused_mi.train import trainer

        tiny = suite.train == "tiny"  # else what `make train` does, with its defaults
        run = _tiny(config) if tiny else trainer.prepare(config, Path("runs"), None)
    except (ImportError, ConfigError, OSError) as error:
        reason = " ".join(f"not installed: {error}".split())
        more = {"mode": "step", "status": REFUSED, "reason": reason}
        yield from (record_of(case, name, "backend", about, **more) for name in names)
        return
    case = dataclasses.replace(case, E=run.encoder.table.shape[1])
    loss = _loss_of_a_step(run)
    runs: dict[str, list[Run]] = {}
    for name in names:
        runs[name] = [_with(name, lambda: trainer._one_step(run))]
        runs[f"loss of {name}"] = [_with(name, loss)]
    times, _ = interleaved(runs, {}, clock, suite)
    for name in names:
        step, of_loss = times[name]["both"], times[f"loss of {name}"]["both"]
        share = median(of_loss) / median(step)
        record = record_of(case, name, "backend", about, mode="step", loss_share=share)
        yield record.timed(step)


def _with(backend: str, function: Callable[[], object]) -> Run:
    """A run all of which is its forward pass."""

    def run() -> tuple[Any, Callable[[], Any]]:
        with fused_mi.use_backend(backend):
            return function(), lambda: ()

    return run


def _loss_of_a_step(run: Any) -> Callable[[], object]:
    """The loss and its gradients on the batch of a step, as the step of the example calls them:
    with what the layer gives for all words."""
    from fused_mi.train import objective, seeds

    batch = run.train[slice(0, run.config.batch_size)].to(run.config.device)
    with torch.no_grad():
        x = run.encoder.embed(batch.ids).float()
        y, mu, sigma = run.layer(x)
    y.requires_grad_()
    wanted = [y, *run.layer.parameters()]

    def loss() -> object:
        noise = seeds.generator(run.config.device, run.config.seed, "noise", 0)
        draw = objective.Draw(batch, x, y, mu, sigma)
        parts = run.layer, run.encoder, run.vocabulary, run.config, noise
        return torch.autograd.grad(objective.information(draw, *parts), wanted)

    return loss


def _tiny(config: Any) -> Any:
    """A run around an encoder of two small layers, on random tokens."""
    import transformers
    from fused_mi.train import encoder, ranks, text, trainer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
    bert = transformers.BertModel(transformers.BertConfig(**sizes, **layers))
    model = encoder.Encoder(bert).to(config.device)
    ids = torch.randint(1000, (4 * config.batch_size, config.seq_len))
    passages = text.Passages(ids, torch.ones_like(ids).bool(), torch.ones_like(ids).bool())
    layer = trainer.build_layer(config, model)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    vocabulary = text.Vocabulary.of(passages, len(model.table)).to(config.device)
    accelerator = ranks.accelerator_of(config, Path("runs"))
    data = passages, passages, passages, vocabulary, accelerator
    return trainer.Run(config, Path("runs"), model, None, layer, optimizer, *data)
