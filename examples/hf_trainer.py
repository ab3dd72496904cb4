"""A noise layer in front of a frozen language model, trained by the Trainer of transformers.

    python examples/hf_trainer.py

The batch of the loss is that of a step of the optimiser: `per_device_train_batch_size` times
`gradient_accumulation_steps` rows, which are compared with each other, not only those of one part.
"""

from collections.abc import Iterator
from typing import Any

import fused_mi
import torch
import transformers
from tiny import FEATURES, LONGEST, VOCABULARY, Means, NoiseLayer, sentences
from torch import Tensor, nn


class NoisyModel(nn.Module):
    """A frozen causal model that reads noisy embeddings."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model, self.layer = model.requires_grad_(False), NoiseLayer()

    def embed(self, input_ids: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """Clean embeddings, means, stds and noisy embeddings (B, S, E)."""
        clean = self.model.get_input_embeddings()(input_ids)
        return clean, *self.layer(clean, noise)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        noise: Tensor | None = None,
        **options: Any,  # num_items_in_batch: then the losses of the parts add up to a mean
    ) -> dict[str, Tensor]:
        clean, means, stds, noisy = self.embed(input_ids, noise)
        embeddings = torch.where(attention_mask[..., None].bool(), noisy, clean)
        loss = self.model(
            inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels, **options
        ).loss
        return {"loss": loss, "clean": clean, "means": means, "stds": stds, "noisy": noisy}


class NoiseTrainer(transformers.Trainer):
    """The loss of the model, plus `alpha` nats of what the noise lets through."""

    def __init__(self, *args: Any, alpha: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.alpha, self.terms = alpha, Means()
        # The last batch of an epoch may be odd, which this pairing takes, or a single row: skipped.
        self.information = fused_mi.MutualInformationLoss(
            pairing="leave_one_out", reduction="mean", constant="subtract", small_batch="skip"
        )

    def get_batch_samples(self, iterator: Iterator, count: int, device: torch.device) -> Any:
        """The parts of the next step, which are looked at together before the first is trained on:
        the noise layer runs twice more, the model does not."""
        parts, items = super().get_batch_samples(iterator, count, device)
        rows = sum(len(part["input_ids"]) for part in parts)
        self.parts = self.information.micro_batches(rows)
        for part in parts:
            shape = *part["input_ids"].shape, FEATURES
            part["noise"] = torch.randn(shape, device=part["input_ids"].device)
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad(), self.accelerator.autocast():
            for part in parts:
                _, _, stds, _ = model.embed(part["input_ids"], part["noise"])
                self.parts.observe(stds, part["attention_mask"])
            for part in parts:
                clean, means, stds, noisy = model.embed(part["input_ids"], part["noise"])
                self.parts.add(means, stds, part["attention_mask"], clean, noisy)
        terms: dict[str, Tensor] = {}
        self.parts.value(terms)
        if rows > 1:  # a skipped row has terms of 0, which would spoil the means
            self.terms.add(terms)
        return parts, items

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, **options: Any
    ) -> Any:
        found = model(**inputs, **options)
        loss = self.parts.part if model.training else self.information
        information = loss(
            found["means"], found["stds"], inputs["attention_mask"], found["clean"], found["noisy"]
        )
        total = found["loss"] + self.alpha * information
        return (total, {"loss": total}) if return_outputs else total


class LogTerms(transformers.TrainerCallback):
    """Logs the means of the terms, detached, over the steps since it did so last."""

    def __init__(self, trainer: NoiseTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_log:  # by the logging_steps of the arguments
            self.trainer.log(self.trainer.terms.read())
            control.should_log = True  # which that has taken back: the loss is still to be logged


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    """Padded to one length, which the parts of a step share."""
    ids = torch.stack([nn.functional.pad(row, (0, LONGEST - len(row))) for row in rows])
    there = ids != 0
    return {
        "input_ids": ids,
        "attention_mask": there.long(),
        "labels": ids.masked_fill(~there, -100),
    }


def train(folder: str = "runs/hf_trainer", alpha: float = 1e-3, **options: Any) -> NoiseTrainer:
    """`options` of `transformers.TrainingArguments`."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=FEATURES,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "num_train_epochs": 3,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
    }
    trainer = NoiseTrainer(
        NoisyModel(transformers.LlamaForCausalLM(config)),
        transformers.TrainingArguments(folder, **{**defaults, **options}),
        collate,
        sentences(33),  # the last step has one row
        sentences(9, seed=1),
        alpha=alpha,
    )
    trainer.add_callback(LogTerms(trainer))
    trainer.train()
    return trainer


if __name__ == "__main__":
    train()
