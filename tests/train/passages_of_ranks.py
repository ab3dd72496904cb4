"""The objective "passages" on given passages and noise; as a program of a rank it saves what the
first of them finds: ``torchrun passages_of_ranks.py FILE``."""

import sys
from types import SimpleNamespace

import torch
from fused_mi.train.config import ESTIMATORS, PAIRINGS, TrainConfig
from fused_mi.train.noise import NoiseLayer
from fused_mi.train.objective import Draw, information
from fused_mi.train.text import Passages

BATCH, LENGTH, FEATURES = 6, 4, 5
CONFIGS = [
    TrainConfig(objective="passages", estimator=e, pairing=p, device="cpu")
    for e in ESTIMATORS
    for p in PAIRINGS
]


def layer_of():
    """With gradients that differ from 0 everywhere, in float64."""
    torch.manual_seed(0)
    layer = NoiseLayer(FEATURES, 0.1, 1.0, 1.0).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def scored(layer, config, rows):
    """Nats of some rows of the batch, with gradients in the layer."""
    gen = torch.Generator().manual_seed(1)
    shape = BATCH, LENGTH, FEATURES
    x, noise = (torch.randn(shape, generator=gen, dtype=torch.float64)[rows] for _ in range(2))
    lengths = torch.randint(1, LENGTH + 1, (BATCH, 1), generator=gen)
    mask = (torch.arange(LENGTH) < lengths)[rows]
    mu, sigma = layer.parameters_of(x)
    draw = Draw(Passages(mask.long(), mask, mask), x, x + mu + sigma * noise, mu, sigma)
    nothing = SimpleNamespace()  # no model and no words: the passages alone are scored
    nats = information(draw, layer, nothing, nothing, config, gen)
    nats.backward()
    return nats.detach()


def gradients(layer):
    return torch.cat([p.grad.flatten() for p in layer.parameters()])


if __name__ == "__main__":
    from accelerate import Accelerator
    from fused_mi.train import ranks

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rows = ranks.rows_of_all(torch.arange(BATCH)[accelerator.process_index :: 2], ranks.group())
    here = rows.chunk(2)[accelerator.process_index]
    found = []
    for config in CONFIGS:
        layer = layer_of()
        nats = scored(layer, config, here)
        ranks.average_gradients(accelerator, layer.parameters())
        found.append((ranks.rows_of_all(nats[None], ranks.group()), gradients(layer)))
    if accelerator.is_main_process:
        torch.save((rows, found), sys.argv[1])
    accelerator.end_training()
