"""A noise layer in front of a frozen model, trained by a loop of one's own.

    python examples/plain_loop.py
    python examples/plain_loop.py --micro 4 --precision bf16
    python examples/plain_loop.py --precision fp16

A batch of the loader is the batch of the loss: its rows are compared with each other. `--micro` is
in how many parts it goes through the model, which changes memory and time, and not the gradient.
"""

import argparse

import fused_mi
import torch
from tiny import Means, NoiseLayer, Reader, collate, lost, sentences
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Training:
    """The noise layer, the model behind it, and one step of both."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.model, self.layer = Reader().to(device), NoiseLayer().to(device)
        self.alpha, self.device, self.dtype = options.alpha, device, PRECISIONS[options.precision]
        self.optimizer = torch.optim.Adam(self.layer.parameters(), lr=1e-2)
        # Only float16 needs it: bfloat16 has the range of float32.
        half = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, options.scale, enabled=half)
        # The last batch of an epoch may be odd, which this pairing takes, or a single row: skipped.
        self.loss = fused_mi.MutualInformationLoss(
            pairing="leave_one_out", reduction="mean", constant="subtract", small_batch="skip"
        )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, ids: Tensor, mask: Tensor, micro: int) -> dict[str, Tensor]:
        """The terms of the loss, and what of the utility was lost."""
        self.optimizer.zero_grad()
        terms = self.in_parts(ids, mask, micro) if micro else self.whole(ids, mask)
        self.scaler.step(self.optimizer)  # not where a gradient is infinite or NaN: that is skipped
        self.scaler.update()
        return terms

    def whole(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Gradients of a batch that goes through the model at once."""
        terms: dict[str, Tensor] = {}
        with self.autocast():
            x = self.model.words(ids)
            means, stds, noisy = self.layer(x)
            information = self.loss(means, stds, mask, x, noisy, terms)
            utility = lost(self.model, x, noisy, mask).mean()
        self.scaler.scale(utility + self.alpha * information).backward()
        return terms | {"utility": utility}

    def in_parts(self, ids: Tensor, mask: Tensor, micro: int) -> dict[str, Tensor]:
        """The same gradients, with the graph of one part in memory at a time."""
        # Every loop has the same noise. It is as large as the embeddings; seeds would do as well.
        noise = torch.randn(*ids.shape, self.model.words.embedding_dim, device=ids.device)
        parts = list(zip(ids.chunk(micro), mask.chunk(micro), noise.chunk(micro), strict=True))
        step = self.loss.micro_batches(len(ids))
        # The noise layer alone runs twice more, not the model behind it.
        with torch.no_grad(), self.autocast():
            for part, there, drawn in parts:
                step.observe(self.layer(self.model.words(part), drawn)[1], there)
            for part, there, drawn in parts:
                x = self.model.words(part)
                means, stds, noisy = self.layer(x, drawn)
                step.add(means, stds, there, x, noisy)
        terms = {"utility": torch.zeros((), device=ids.device)}
        step.value(terms)
        for part, there, drawn in parts:
            with self.autocast():
                x = self.model.words(part)
                means, stds, noisy = self.layer(x, drawn)
                information = step.part(means, stds, there, x, noisy)
                utility = lost(self.model, x, noisy, there).sum() / len(ids)
            # Parts add up to the batch: nothing is divided by their number.
            self.scaler.scale(utility + self.alpha * information).backward()
            terms["utility"] += utility.detach()
        return terms


def train(options: argparse.Namespace) -> list[dict[str, float]]:
    """The means of each epoch."""
    torch.manual_seed(0)
    training = Training(options, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    loader = torch.utils.data.DataLoader(
        sentences(options.sentences), options.batch, shuffle=True, collate_fn=collate
    )
    curve, means = [], Means()
    for epoch in range(options.epochs):
        for ids, mask in loader:
            terms = training.step(ids.to(training.device), mask.to(training.device), options.micro)
            if len(ids) > 1:  # a skipped row has terms of 0, which would spoil the means
                means.add(terms)
        curve.append(means.read())
        nats, utility = curve[-1]["mutual_information_loss"], curve[-1]["utility"]
        print(f"epoch {epoch}: at most {nats:.1f} nats, {utility:.4f} of the utility lost")
    return curve


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--micro", type=int, default=0, help="parts of each batch; 0: whole")
    found.add_argument("--precision", choices=PRECISIONS, default="fp32")
    found.add_argument("--scale", type=float, default=2.0**16, help="of gradients, at first; fp16")
    found.add_argument("--alpha", type=float, default=1e-2, help="weight of the information")
    found.add_argument("--epochs", type=int, default=5)
    found.add_argument("--batch", type=int, default=16)
    found.add_argument("--sentences", type=int, default=65, help="the last batch has one row")
    return found


if __name__ == "__main__":
    train(parser().parse_args())
