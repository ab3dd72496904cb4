"""What the kernels of the pairs move and compute, see `_traffic`.

Each tile of samples reads the components anew and each tile of components the samples: beyond the
first time from the L2 cache, as neighbouring programs share them. Where N and M are no more than a
tile, every element is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Arguments = dict[str, Any]
Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops


class ActivePairs(NamedTuple):
    """Of one launch, summed over all positions; a tile that has no active row in a role there does
    not work."""

    samples: float  # rows that are loaded as samples, once for each tile that loads them
    components: float  # the same as components
    either: float  # rows whose standard deviations have a gradient
    pairs: float
    tiles: float  # tiles that work


# Operations per element, as in the source: of a difference and its square; of the gradients.
DISTANCE, _PULL_SAMPLE, _PULL_COMPONENT = 4, 5, 6
SAMPLE, COMPONENT = 1, 2 + 3 + 1  # preparation: the shift; shift and mu, 1 / sqrt(v), c / sqrt(v)
_LOG_DETERMINANT, _SLOPE = 2 + 3 + 1, 3 + 2 + 3
# Of a pair: density, exponential, four sums, three of them weighted, all rescaled; of its gradient.
DENSITY, PULL_DENSITY, _MEANS = 3 + 1 + 4 + 3 + 4, 3 + 2 + 6 + 3 + 6, 10


def expected(a: Arguments, density: float) -> ActivePairs:
    """For independent masks of that density and tiles that all work."""
    if "sample_active" not in a:
        rows = density * (a["rows"] if "rows" in a else a.get("M", 0)) * a.get("S", 0)
        return ActivePairs(0, rows, rows, 0, a.get("S", 0))
    N, M, S = a["N"], a["M"], a["S"]
    tiles_n, tiles_m = _tiles(a)
    samples, components, pairs = density * N * S, density * M * S, density**2 * N * M * S
    return ActivePairs(
        samples * tiles_m, components * tiles_n, components, pairs, tiles_n * tiles_m * S
    )


def _tiles(a: Arguments) -> tuple[int, int]:
    """Of samples and of components."""
    if "COLUMNS" in a:
        return -(-a["N"] // a["ROWS"]), -(-a["M"] // a["COLUMNS"])
    return a.get("tiles_n", 1), a.get("tiles_m", 1)


def counted(a: Arguments) -> ActivePairs:
    """From the data of the launch."""
    if "active" in a:
        active = a["active"] != 0
        return ActivePairs(0, int(active.sum()), 0, 0, int(active.any(0).sum()))
    if "COLUMNS" in a and "sample_active" in a:  # each tile has all positions of its rows
        tiles_n, tiles_m = _tiles(a)
        samples, components = (a[f"{role}_active"].sum() for role in ("sample", "component"))
        return ActivePairs(int(samples) * tiles_m, int(components) * tiles_n, 0, 0, 0)
    roles = [a[name] for name in ("component_active", "own_active") if name in a]
    either = int(torch.stack([role != 0 for role in roles]).any(0).sum()) if roles else 0
    if "sample_active" not in a:
        return ActivePairs(0, 0, either, 0, 0)
    if "SAMPLES" in a:
        n, m = (
            _tiled(a["sample_active"], a["SAMPLES"]),
            _tiled(a["component_active"], a["COMPONENTS"]),
        )
        works = (n[:, None] > 0) & (m > 0)
    elif "d_y" in a:
        n, m = _tiled(a["sample_active"], a["ROWS"]), _tiled(a["component_active"], a["M"])
        works = n[:, None] > 0
    else:
        n, m = _tiled(a["sample_active"], a["N"]), _tiled(a["component_active"], a["ROWS"])
        works = m[None] > 0
    n, m = n[:, None], m[None]
    loaded = int((works * n).sum()), int((works * m).sum())
    return ActivePairs(*loaded, either, int((n * m).sum()), int(works.sum()))


def _tiled(active: Tensor, size: int) -> Tensor:
    """Active rows (tiles, S) of each tile of `size` rows and position."""
    return torch.stack([(tile != 0).sum(0) for tile in active.split(size)])


def _look(programs: int) -> Elements:
    """Of a careful launch in a regular call."""
    return {"irregular": programs}, {}, 0


def _shift(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    elements = a["S"] * a["E"]  # where a position has a row at all
    read = {"active": a["tiles"] * a["rows"] * a["S"], "stds": active.components * a["E"]}
    return read | {"x": active.tiles * a["E"]}, {"shift": elements}, 2 * read["stds"]


def _distances(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    if a["CAREFUL"]:
        return _look(programs)
    E, chunks = a["E"], a["chunks_per_position"]
    splits = programs // (a["tiles_n"] * a["tiles_m"])
    read = {
        "component_eps": programs,
        "sample_active": a["tiles_m"] * a["N"] * a["S"] * chunks,
        "component_active": a["tiles_n"] * a["M"] * a["S"] * chunks,
        "shift": active.tiles * E,
        "y": active.samples * E,
        "x": active.components * E,
        "stds": active.components * E,
    }
    if "mu" in a:
        read["mu"] = active.components * E
    flops = DISTANCE * active.pairs + SAMPLE * active.samples + COMPONENT * active.components
    return read, {"parts": splits * a["N"] * a["M"]}, flops * E


def _add_splits(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    parts = a["splits"] * a["size"]
    return {"parts": parts, "irregular": programs}, {"energies": a["size"]}, parts


def _log_determinants(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    elements = active.components * a["E"]
    read = {"active": programs, "eps": active.components, "stds": elements}
    return read, {"logs": programs}, _LOG_DETERMINANT * elements


def _pair_logs(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    tiles_n, tiles_m = _tiles(a)
    read = {
        "sample_active": tiles_m * a["N"] * a["S"],
        "component_active": tiles_n * a["M"] * a["S"],
        "of_components": active.components,
    }
    if "of_samples" in a:
        read["of_samples"] = active.samples
    pairs = a["N"] * a["M"]
    return read, {"g": pairs, "k": pairs}, len(read) * pairs * a["S"]


def _sum_weights(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    if a["CAREFUL"]:
        return {"irregular": programs}, {}, 0
    blocks, tiles = -(-a["S"] // a["POSITIONS"]), -(-a["kept"] // a["KEPT"])
    read = {"weights": a["kept"] * a["summed"] * blocks}
    if "active" in a:
        read["active"] = a["summed"] * a["S"] * tiles
    sums = a["kept"] * a["S"]
    if a["add"]:
        read["sums"] = sums
    return read, {"sums": sums}, sums * a["summed"]


def _samples_gradient(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    if a["CAREFUL"]:
        return _look(programs)
    E, tiles = a["E"], active.tiles * a["tiles_e"]
    summed = -(-a["M"] // a["SUMMED"]) * a["SUMMED"]
    read = {
        "component_eps": programs,
        "sample_active": a["splits"] * a["tiles_e"] * a["N"] * a["S"],
        "component_active": tiles * a["M"],
        "shift": a["splits"] * active.tiles * E,
        "pull": tiles * summed * a["ROWS"],
        "y": a["splits"] * active.samples * E,
        "x": active.components * E,
        "stds": active.components * E,
    }
    if "mu" in a:
        read["mu"] = active.components * E
    written = a["splits"] * a["N"] * a["S"] * E
    if a["add"]:
        read["d_y"] = written
    flops = _PULL_SAMPLE * active.pairs + SAMPLE * active.samples + COMPONENT * active.components
    return read, {"d_y": written}, flops * E


def _components_gradient(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    if a["CAREFUL"]:
        return _look(programs)
    E, tiles, M = a["E"], active.tiles * a["tiles_e"], a["M"] * a["S"]
    read: dict[str, float] = {}
    flops = 0.0
    if "component_eps" in a:
        summed = -(-a["N"] // a["SUMMED"]) * a["SUMMED"]
        read = {
            "component_active": a["tiles_e"] * M,
            "component_eps": programs,
            "shift": active.tiles * E,
            "sample_active": tiles * a["N"],
            "pull": tiles * summed * a["ROWS"],
            "y": active.samples * E,
            "x": active.components * E,
            "stds": active.components * E,
        }
        if "mu" in a:
            read["mu"] = active.components * E
        flops += _PULL_COMPONENT * active.pairs + SAMPLE * active.samples
        flops += COMPONENT * active.components
    if "d_stds" in a:
        read["stds"] = read.get("stds", 0) + active.either * E  # again, for the slope
        flops += _SLOPE * active.either
        if "component_eps" in a:
            read["of_logs"] = a["tiles_e"] * M
    if "own_eps" in a:
        read |= {"own_active": a["tiles_e"] * M, "own_eps": programs, "of_own": a["tiles_e"] * M}
    names = [name for name in ("d_x", "d_mu", "d_stds") if name in a]
    written: dict[str, float] = dict.fromkeys(names, M * E)
    return (read | written if a["add"] else read), written, flops * E


def _logsumexp_state(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    """Where no row is hopeless: of such rows the energies are read once more."""
    directions = programs // a["tiles"]
    pairs, samples = directions * a["N"] * a["M"], directions * a["N"]
    read = {"energies": 3 * pairs}
    if "origins" in a:
        read["origins"] = samples
    return read, {"state": 5 * samples}, DENSITY * pairs


def _logsumexp_means(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    samples = programs * a["N"]
    return {"state": 5 * samples}, {"terms": 5 * programs}, _MEANS * samples


def _logsumexp_gradient(programs: int, a: Arguments, active: ActivePairs) -> Elements:
    directions = programs // (a["tiles_n"] * a["tiles_m"])
    pairs = directions * a["N"] * a["M"]
    rows = directions * a["N"] * a["tiles_m"]
    of_terms = rows if a["EACH"] else programs
    read = {"upstream": 5 * of_terms, "energies": 3 * pairs, "state": 4 * rows}
    if "origins" in a:
        read["origins"] = rows
    return read, {"gradient": 3 * pairs}, PULL_DENSITY * pairs


KERNELS: dict[str, Callable[[int, Arguments, ActivePairs], Elements]] = {
    "shift_kernel": _shift,
    "distances_kernel": _distances,
    "add_splits_kernel": _add_splits,
    "log_determinants_kernel": _log_determinants,
    "pair_logs_kernel": _pair_logs,
    "sum_weights_kernel": _sum_weights,
    "samples_gradient_kernel": _samples_gradient,
    "components_gradient_kernel": _components_gradient,
    "logsumexp_state_kernel": _logsumexp_state,
    "logsumexp_means_kernel": _logsumexp_means,
    "logsumexp_gradient_kernel": _logsumexp_gradient,
}
