"""Few samples against many components: those of earlier steps, in a memory bank.

    python examples/memory_bank.py

Where only a few rows fit into a step, the mixture that they are scored against may have more: the
components of the steps before, detached. The layer has changed since, so that they are a little
old: a bank is for few steps, and for layers that change slowly.
"""

import math
from typing import Any

import fused_mi
import torch
from tiny import LONGEST, NoiseLayer, Reader, lost, sentences
from torch import Tensor, nn


class MemoryBank:
    """The last `size` components: clean embeddings, means and stds (M, S, E), and masks (M, S)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.components: tuple[Tensor, ...] = ()

    def add(self, *components: Tensor) -> None:
        new = [t.detach() for t in components]
        both = zip(self.components, new, strict=True) if self.components else ((t,) for t in new)
        self.components = tuple(torch.cat(pair)[-self.size :] for pair in both)


def information(
    noisy: Tensor,
    stds: Tensor,
    mask: Tensor,
    bank: MemoryBank,
    combined: bool = True,
    **options: Any,
) -> Tensor:
    """Nats per sample, of (N, S, E) against the components of the bank, without d/2.

    It is h(y) - h(y | x), both means over the N samples; with `combined` masks, over the positions
    that a sample shares with a component, as `mutual_information_sub_batch` has it under "jensen".
    Under "logsumexp" each pair weighs its own h(y | x): take `combined=False` there.
    """
    clean, means, old_stds, old_mask = bank.components
    entropy = fused_mi.gaussian_mixture_entropy(
        *(clean, noisy, means, old_stds, mask),
        component_mask=old_mask if combined else None,
        **options,
    )
    # The entropy of the noise at each active position, by the share of components that meet it.
    own = (stds[mask].log() + math.log(2 * math.pi * math.e) / 2).sum(-1)
    share = old_mask.to(own.dtype).mean(0).expand(mask.shape)[mask] if combined else 1.0
    return entropy - (own * share).sum() / len(noisy)


def main() -> None:
    torch.manual_seed(0)
    model, layer, bank = Reader(), NoiseLayer(), MemoryBank(256)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    padded = [nn.functional.pad(row, (0, LONGEST - len(row))) for row in sentences(64)]
    for step, ids in enumerate(torch.stack(padded).split(4)):
        mask = ids != 0
        x = model.words(ids)
        means, stds, noisy = layer(x)
        loss = lost(model, x, noisy, mask).mean()
        if bank.components:
            nats = information(noisy, stds, mask, bank)
            loss = loss + 1e-2 * nats
            print(f"step {step}: at most {nats.item():.1f} nats")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bank.add(x, means, stds, mask)


if __name__ == "__main__":
    main()
