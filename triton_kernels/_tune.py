"""Opt-in choice of a tile by measurement, kept on disk; otherwise what `_configs` says holds."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from triton.testing import do_bench

from ._configs import MomentsTile, Tile

VARIABLE = "FUSED_MI_AUTOTUNE"
_DIRECTORY = "FUSED_MI_CACHE_DIR"
T = TypeVar("T", Tile, MomentsTile)


def best(
    key: tuple[object, ...],
    candidates: Sequence[T],
    run: Callable[[T], object],
    device: torch.device,
) -> T:
    """The first candidate, or with `FUSED_MI_AUTOTUNE=1` the fastest one to `run`.

    Args:
        key: what the choice depends on; the device and the versions are added.
    """
    if os.environ.get(VARIABLE, "0") in ("", "0") or device.type == "cpu":  # the interpreter
        return candidates[0]
    name = json.dumps([*key, _machine(device)])
    known = _load(cache_file())
    if name not in known:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]  # nothing may be timed inside a capture
        times = [
            do_bench(functools.partial(run, tile), return_mode="median") for tile in candidates
        ]
        known[name] = list(candidates[times.index(min(times))])
        _save(known)
    return type(candidates[0])(*known[name])


def cache_file() -> Path:
    """Where measured choices are kept."""
    base = os.environ.get(_DIRECTORY)
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fused_mi")
    return Path(base) / "tiles.json"


def _machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


@functools.cache
def _load(path: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _save(known: dict[str, list[int]]) -> None:
    """Replace the file in one step; a directory that cannot be written costs only a new search."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known, file)
        os.replace(file.name, path)
    except OSError:
        pass
