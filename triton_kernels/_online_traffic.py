"""What the kernels of the online log-sum-exp move and compute, see `_pairs_traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import _pairs_traffic
from ._pairs_traffic import COMPONENT, DENSITY, DISTANCE, PULL_DENSITY, SAMPLE, Arguments, Elements


class ActiveOnline(NamedTuple):
    """Of one launch, summed over all positions."""

    samples: float  # rows that are loaded as samples, once for each tile that loads them
    components: float  # the same as components
    pairs: float
    tiles: float  # tiles that work
    rows: float  # samples that contribute, for each tile of components whether it works or not
    columns: float  # components that contribute, for each tile of samples


def expected(a: Arguments, density: float) -> ActiveOnline:
    """For independent masks of that density and tiles that all work."""
    if "sample_active" not in a:
        return ActiveOnline(0, 0, 0, 0, 0, 0)
    found = _pairs_traffic.expected(a, density)
    rows, columns = found.samples, found.components
    return ActiveOnline(rows, columns, found.pairs, found.tiles, rows, columns)


def counted(a: Arguments) -> ActiveOnline:
    """From the data of the launch."""
    if "sample_active" not in a:
        return ActiveOnline(0, 0, 0, 0, 0, 0)
    found, (n, m) = _pairs_traffic.counted(a), _tiles(a)
    rows, columns = (int((a[f"{role}_active"] != 0).sum()) for role in ("sample", "component"))
    return ActiveOnline(
        found.samples, found.components, found.pairs, found.tiles, rows * m, columns * n
    )


def _tiles(a: Arguments) -> tuple[int, int]:
    return a["tiles_n"], a["tiles_m"]


def _energies(a: Arguments, active: ActiveOnline) -> Elements:
    """Of all tiles of a launch."""
    E, (tiles_n, tiles_m) = a["E"], _tiles(a)
    times = -(-E // a["CHUNK"]) + 1  # flags are read once more for what needs no features
    read = {
        "component_eps": tiles_n * tiles_m,
        "sample_active": tiles_m * a["N"] * a["S"] * times,
        "component_active": tiles_n * a["M"] * a["S"] * times,
        "shift": active.tiles * E,
        "y": active.samples * E,
        "x": active.components * E,
        "stds": active.components * E,
        "of_components": active.columns,
    }
    if "mu" in a:
        read["mu"] = active.components * E
    if "of_samples" in a:
        read["of_samples"] = active.rows
    if "log_weights" in a:
        read["log_weights"] = tiles_n * a["M"]
    if "origins" in a:
        read["origins"] = tiles_m * a["N"]
    flops = DISTANCE * active.pairs + SAMPLE * active.samples + COMPONENT * active.components
    return read, {}, flops * E


def _online(programs: int, a: Arguments, active: ActiveOnline) -> Elements:
    """What is known of a sample is read and written for each tile but read for the first one."""
    if a["CAREFUL"]:
        return {"irregular": programs}, {}, 0
    read, _, flops = _energies(a, active)
    has_k = "of_samples" in a or "log_weights" in a
    numbers = 4 + has_k + ("origins" in a)
    written = {"parts": numbers * a["N"] * a["tiles_m"]}
    read["parts"] = numbers * a["N"] * (a["tiles_m"] - a["splits"])
    return read, written, flops + DENSITY * a["N"] * a["M"]


def _finish(programs: int, a: Arguments, active: ActiveOnline) -> Elements:
    numbers = 5 + a["HAS_K"] + ("origins" in a)  # the largest density twice
    read = {"parts": numbers * a["splits"] * a["N"]}
    if "origins" in a:
        read["origins"] = a["N"]
    return read, {"state": 5 * a["N"]}, numbers * a["splits"] * a["N"]


def _weigh(programs: int, a: Arguments, active: ActiveOnline) -> Elements:
    if a["CAREFUL"]:
        return {"irregular": programs}, {}, 0
    read, _, flops = _energies(a, active)
    tiles_n, tiles_m = _tiles(a)
    rows = tiles_m * a["N"]
    read |= {"state": 4 * rows, "upstream": 5 * (rows if a["EACH"] else programs)}
    padded = tiles_n * a["SAMPLES"] * tiles_m * a["COMPONENTS"]
    names = [n for n in ("by_sample", "by_component", "of_g", "of_k") if n in a]
    written: dict[str, float] = dict.fromkeys(names, padded)
    return read, written, flops + PULL_DENSITY * a["N"] * a["M"]


def _add_gradients(programs: int, a: Arguments, active: ActiveOnline) -> Elements:
    if a["CAREFUL"]:
        return {"irregular": programs}, {}, 0
    read = {"parts": a["splits"] * a["size"]}
    if a["add"]:
        read["gradient"] = a["size"]
    return read, {"gradient": a["size"]}, a["splits"] * a["size"]


KERNELS: dict[str, Callable[[int, Arguments, ActiveOnline], Elements]] = {
    "online_kernel": _online,
    "online_finish_kernel": _finish,
    "weigh_kernel": _weigh,
    "add_gradients_kernel": _add_gradients,
}
