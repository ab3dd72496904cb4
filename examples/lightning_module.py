"""A noise layer in front of a frozen model, trained by Lightning.

    python examples/lightning_module.py
    python examples/lightning_module.py --micro 4 --precision bf16-mixed

A batch of the loader is the batch of the loss: its rows are compared with each other. Lightning's
`accumulate_grad_batches` knows batches that have nothing to do with each other, and would give
another gradient: `NoiseInParts` cuts a large batch instead.
"""

import argparse
from typing import Any

import fused_mi
import lightning
import torch
from tiny import NoiseLayer, Reader, collate, lost, sentences
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Noise(lightning.LightningModule):
    """The noise layer, and its loss: utility lost, plus `alpha` times the information in nats."""

    def __init__(self, alpha: float = 1e-2) -> None:
        super().__init__()
        self.model, self.layer, self.alpha = Reader(), NoiseLayer(), alpha
        # The last batch of an epoch may be odd, which this pairing takes, or a single row: skipped.
        options: dict[str, Any] = {
            "pairing": "leave_one_out",
            "reduction": "mean",
            "constant": "subtract",
            "small_batch": "skip",
        }
        self.information = fused_mi.MutualInformationLoss(**options)
        # A stabiliser of its own: values of validation do not depend on the other rows' stds.
        self.validation = fused_mi.MutualInformationLoss(**options, eps=1e-6)

    def on_fit_start(self) -> None:
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "accumulate_grad_batches: expected 1, for rows of different batches would not be "
                f"compared; got {self.trainer.accumulate_grad_batches}; cut batches by NoiseInParts"
            )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        ids, mask = batch
        x, terms = self.model.words(ids), {}
        means, stds, noisy = self.layer(x)
        information = self.information(means, stds, mask, x, noisy, terms)
        utility = lost(self.model, x, noisy, mask).mean()
        self.log_terms(terms | {"utility": utility}, len(ids))
        return utility + self.alpha * information

    def validation_step(self, batch: Batch, index: int) -> None:
        ids, mask = batch
        x = self.model.words(ids)
        means, stds, noisy = self.layer(x)
        information = self.validation(means, stds, mask, x, noisy)
        self.log_terms({"validation_information": information}, len(ids))

    def log_terms(self, terms: dict[str, Tensor], rows: int) -> None:
        """Their means over an epoch, by rows; Lightning detaches them."""
        if rows > 1:  # a skipped row has terms of 0, which would spoil the means
            self.log_dict(terms, on_step=False, on_epoch=True, batch_size=rows)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.layer.parameters(), lr=1e-2)


class NoiseInParts(Noise):
    """The same gradient, with the graph of one part of a batch in memory at a time."""

    def __init__(self, alpha: float = 1e-2, micro: int = 4) -> None:
        super().__init__(alpha)
        self.micro, self.automatic_optimization = micro, False

    def training_step(self, batch: Batch, index: int) -> None:
        ids, mask = batch
        # Every loop has the same noise. It is as large as the embeddings; seeds would do as well.
        noise = torch.randn(*ids.shape, self.model.words.embedding_dim, device=ids.device)
        parts = list(zip(*(t.chunk(self.micro) for t in (ids, mask, noise)), strict=True))
        step = self.information.micro_batches(len(ids))
        # The noise layer alone runs twice more, not the model behind it.
        with torch.no_grad():
            for part, there, drawn in parts:
                step.observe(self.layer(self.model.words(part), drawn)[1], there)
            for part, there, drawn in parts:
                x = self.model.words(part)
                means, stds, noisy = self.layer(x, drawn)
                step.add(means, stds, there, x, noisy)
        terms = {"utility": torch.zeros((), device=ids.device)}
        step.value(terms)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for part, there, drawn in parts:
            x = self.model.words(part)
            means, stds, noisy = self.layer(x, drawn)
            information = step.part(means, stds, there, x, noisy)
            utility = lost(self.model, x, noisy, there).sum() / len(ids)
            # Parts add up to the batch: nothing is divided by their number.
            self.manual_backward(utility + self.alpha * information)
            terms["utility"] += utility.detach()
        optimizer.step()
        self.log_terms(terms, len(ids))


def train(module: Noise, **options: Any) -> lightning.Trainer:
    """`options` of `lightning.Trainer`."""
    defaults: dict[str, Any] = {"max_epochs": 5, "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(**{**defaults, **options})

    def loader(count: int, seed: int) -> torch.utils.data.DataLoader:
        # The last batch has one row.
        return torch.utils.data.DataLoader(sentences(count, seed), 16, collate_fn=collate)

    trainer.fit(module, loader(65, 0), loader(33, 1))
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micro", type=int, default=0, help="parts of each batch; 0: whole")
    parser.add_argument("--precision", default="32-true", help="see lightning.Trainer")
    options = parser.parse_args()
    lightning.seed_everything(0)
    module = NoiseInParts(micro=options.micro) if options.micro else Noise()
    trainer = train(module, precision=options.precision)
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
