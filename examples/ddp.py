"""A noise layer trained on several ranks: the same curve for any number of them.

    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 2 examples/ddp.py --fsdp
    python examples/ddp.py --micro 4

The noise of a row depends on the step and on its number in the batch, so that the batch is the same
however it is split.
"""

import argparse
import contextlib
import os

import fused_mi
import torch
import torch.distributed as dist
from torch import nn


class Noise(nn.Module):
    """Shifts and scales that depend on the embedding."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.shift, self.scale = nn.Linear(features, features), nn.Linear(features, features)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        means = 0.1 * self.shift(x)
        stds = nn.functional.softplus(self.scale(x) - 1) + 0.01
        return means, stds, x + means + stds * noise


def rows_of(step: int, rows: range, positions: int, features: int) -> tuple[torch.Tensor, ...]:
    """Embeddings, noise and mask of these rows of the batch of a step."""
    shape = positions, features
    parts = []
    for row in rows:
        gen = torch.Generator().manual_seed(1_000_003 * step + row)
        embeddings, noise = (torch.randn(shape, generator=gen) for _ in range(2))
        parts.append((embeddings, noise, torch.rand(positions, generator=gen) < 0.8))
    if not parts:
        empty = torch.zeros(0, *shape)
        return empty, empty, torch.zeros(0, positions, dtype=torch.bool)
    embeddings, noise, mask = (torch.stack(column) for column in zip(*parts, strict=True))
    return embeddings, noise, mask


def train(options: argparse.Namespace) -> list[float]:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model: nn.Module = Noise(options.features)
    if options.fsdp:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    elif world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = fused_mi.MutualInformationLoss(
        pairing="leave_one_out", reduction="mean", constant="subtract", group=dist.group.WORLD
    )
    mine = range(options.batch * rank // world, options.batch * (rank + 1) // world)
    curve = []
    for step in range(options.steps):
        x, noise, mask = rows_of(step, mine, options.positions, options.features)
        cuts = max(options.micro, 1)
        batches = list(zip(x.chunk(cuts), noise.chunk(cuts), mask.chunk(cuts), strict=True))
        # DDP averages over ranks: a mean over all rows is this share of a sum over those here.
        share = world / options.batch
        if not options.micro:
            means, stds, noisy = model(x, noise)
            information = loss(means, stds, mask, x, noisy)
            task = (noisy - x).square().mean((1, 2)).sum() * share
            (task + options.alpha * information).backward()
        else:
            information = micro_step(model, loss, batches, options.alpha, share, len(mine))
        optimizer.step()
        optimizer.zero_grad()
        curve.append(information.item())
        if rank == 0:
            print(f"step {step}: {curve[-1]:.4f} nats", flush=True)
    return curve


def micro_step(
    model: nn.Module,
    loss: fused_mi.MutualInformationLoss,
    batches: list[tuple[torch.Tensor, ...]],
    alpha: float,
    share: float,
    rows: int,
) -> torch.Tensor:
    """One micro-batch in memory at a time."""
    step = loss.micro_batches(rows)
    with torch.no_grad():
        for x, noise, mask in batches:
            step.observe(model(x, noise)[1], mask)
        for x, noise, mask in batches:
            means, stds, noisy = model(x, noise)
            step.add(means, stds, mask, x, noisy)
    for i, (x, noise, mask) in enumerate(batches):
        last = i + 1 == len(batches)
        wait = getattr(model, "no_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if last else wait():
            means, stds, noisy = model(x, noise)
            task = (noisy - x).square().mean((1, 2)).sum() * share
            (task + alpha * step.part(means, stds, mask, x, noisy)).backward()
    return step.value()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 in place of DDP")
    parser.add_argument("--micro", type=int, default=0, help="micro-batches of each step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=24, help="rows of all ranks together")
    parser.add_argument("--positions", type=int, default=8)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=1e-3)
    options = parser.parse_args()
    if "RANK" in os.environ:  # by torchrun
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    train(options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
