"""Random numbers named by their use: a resumed run needs no saved generator state."""

from __future__ import annotations

import hashlib

import torch


def generator(device: str | torch.device, *names: object) -> torch.Generator:
    """A generator fixed by its names, e.g. ``generator("cpu", seed, "noise", step)``."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    # One bit is dropped because torch seeds are signed 64-bit numbers.
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
