"""What the kernels of rows whose partners are elsewhere move and compute, see `_traffic`: where no
column is lost, and no item out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._backward_traffic import PULL_C, PULL_OWN, PULL_STDS, PULL_Y, added, passes
from ._forward_traffic import _MERGE, COMPONENT, OWN_STDS, SAMPLE, flags_of

Arguments = dict[str, Any]
Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops

_SET = 24  # operations for each column of a set that is merged


class ActiveParts(NamedTuple):
    """Contributing (row, position) pairs of a launch, or of a pass of it, over all mixtures."""

    samples: float
    components: float
    stds: float  # in a role that has variances
    of_samples: float  # positions at which there are such samples; of a pass: partners of them
    of_components: float
    whole: tuple[float, float] = (0, 0)  # see `ActiveRoles`


AllActive = list[ActiveParts]
"""Of a launch, or of each pass of `pull_kernel`."""


def expected(a: Arguments, density: float) -> AllActive:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    S = a.get("S", 0)
    if "met_by_samples" in a or "met_by_components" in a:
        found = []
        for _, p in passes(0, a):
            roles = [f"met_by_{role}" in p for role in ("samples", "components")]
            pairs = density * p["rows"] * S
            either = pairs * any(roles)
            samples, components = map(int, roles)
            found.append(
                ActiveParts(
                    pairs * samples, pairs * components, either, S * samples, S * components
                )
            )
        return found
    N, M, D = a.get("N", 0), a.get("M", 0), a.get("MIXTURES", 1)
    samples, components = (density * S * (n + m * (D - 1)) for n, m in ((N, M), (M, N)))
    apart = D == 1 and not a.get("TOGETHER") and a.get("OWN_STDS")
    stds = samples + components if apart else components
    whole = S if density == 1 else 0
    return [ActiveParts(samples, components, stds, S * D, S * D, (whole, whole))]


def counted(a: Arguments) -> AllActive:
    """From the data of the launch, once the launches before it have run."""
    if "met_by_samples" in a or "met_by_components" in a:
        return [_of_pass(p) for _, p in passes(0, a)]
    if "counts" not in a or a["counts"].dim() != 3 or a["counts"].shape[1] != 6:
        return [ActiveParts(0, 0, 0, 0, 0)]
    counts = a["counts"]
    of_samples, of_components = (int((counts[:, role] > 0).sum()) for role in (0, 1))
    if "ROWS" not in a or "OWN_STDS" not in a:
        return [ActiveParts(0, 0, 0, of_samples, of_components)]
    ranges = (a["sample_start"], a["N"]), (a["component_start"], a["M"])
    # Of each range of rows those that contribute as samples, and as components.
    found: list[list[Tensor]] = [[], []]
    for d, of_mixture in enumerate(counts):
        for of, name, met in ((d, "sample_mask", 4), (1 - d, "component_mask", 5)):
            of = 0 if a["TOGETHER"] else of
            start, rows = ranges[of]
            found[of].append(a[name][start : start + rows] & (of_mixture[met] > 0))
    samples = int(counts[:, 0].sum())
    components = int(counts[:, 1].sum())
    if a["TOGETHER"] or len(counts) == 2:
        stds = sum(int(torch.stack(of).any(0).sum()) for of in found if of)
    else:
        stds = components + samples * a["OWN_STDS"]
    whole = [int(torch.stack(of).all(0).all(0).sum()) if of else 0 for of in found]
    of_ranges = whole[0], whole[1]
    return [ActiveParts(samples, components, stds, of_samples, of_components, of_ranges)]


def _of_pass(a: Arguments) -> ActiveParts:
    here: list[Tensor] = []
    numbers, positions = [], []
    for role in ("sample", "component"):
        met = a.get(f"met_by_{role}s")
        if met is None:
            numbers.append(0)
            positions.append(0)
            continue
        mask = a[f"{role}_mask"][a["start"] : a["start"] + a["rows"]]
        here.append(mask & (met > 0))
        numbers.append(int(here[-1].sum()))
        positions.append(int((met > 0).sum()))
    either = int((here[0] | here[-1]).sum())
    return ActiveParts(numbers[0], numbers[1], either, positions[0], positions[1])


def _parts(programs: int, a: Arguments, active: AllActive) -> Elements:
    S, E, splits, D = a["S"], a["E"], a["splits"], a["MIXTURES"]
    (of,) = active
    both = D == 2
    of_first, of_other = (flags_of(a, a[n], of.whole[i]) for i, n in enumerate("NM"))
    read = {"sample_mask": of_first, "component_mask": of_other}
    if a["TOGETHER"]:
        of_other = 0.0
        read["component_mask"] = of_first
    if a["SHARED"]:
        read = {"component_mask": of_first + of_other}
    elif both:
        read = dict.fromkeys(read, of_first + of_other)
    eps = [f"{other}{role}_eps" for other in ("", "other_") for role in ("sample", "component")]
    read |= {name: programs for name in eps if name in a}
    read["counts"] = 6 * programs * D
    read["y"] = (of.samples + splits * of.of_samples) * E
    read |= dict.fromkeys(("x", "mu"), (of.components + splits * of.of_components) * E)
    read["stds"] = of.stds * E
    written: dict[str, float] = {"partial_sums": 3 * programs * D}
    if splits == 1:
        written["planes"] = 6 * S * E * D
    else:
        written["parts"] = 5 * splits * S * E * D
        written["split_samples"] = programs * D
    variances = OWN_STDS * of.samples * a["OWN_STDS"] * (not a["SHARED"])
    flops = SAMPLE * of.samples + variances + COMPONENT * of.components
    return read, written, flops * E


def _finish(programs: int, a: Arguments, active: AllActive) -> Elements:
    (of,) = active
    plane = programs // a["tiles"] * a["E"]
    read = {"y": of.of_samples * a["E"], "counts": 5 * programs, "parts": 5 * a["splits"] * plane}
    read |= dict.fromkeys(("x", "mu"), of.of_components * a["E"])
    read["split_samples"] = programs * a["splits"]
    return read, {"planes": 6 * plane, "partial_sums": 3 * programs}, _MERGE * a["splits"] * plane


def _again(programs: int, a: Arguments, active: AllActive) -> Elements:
    """A look at the means of both roles, and the sums of others."""
    mixtures = programs // a["programs"]
    read = {"planes": 2 * programs // a["tiles"] * a["E"], "component_eps": programs}
    read |= {"counts": 4 * programs, "partial_sums": 3 * mixtures * a["partials"]}
    if mixtures == 2:
        read["other_component_eps"] = a["programs"]
    return read, {"sums": 3 * programs}, 3 * mixtures * a["partials"]


def _meet(programs: int, a: Arguments, active: AllActive) -> Elements:
    D, S = a["MIXTURES"], a["S"]
    names = ("of_samples", "of_components", "of_other_samples", "of_other_components")
    read: dict[str, float] = {name: S for name in names if name in a}
    return read | {"parts": 4 * D * a["splits"] * S}, {"counts": 6 * D * S}, 0


def _merge(programs: int, a: Arguments, active: AllActive) -> Elements:
    columns, sets = programs // a["tiles"] * a["n"], a["sets"]
    others, own = (sets - 1, 1) if a["APART"] else (sets, 0)
    read = {"planes": (6 * others + 3 * own) * columns, "counts": (others + own) * columns}
    if "met" in a:
        read["met"] = columns
    written = {"merged": 6 * columns, "partial_sums": 3 * programs}
    return read, written, _SET * others * columns


def _pull(programs: int, a: Arguments, active: AllActive) -> Elements:
    if a["CAREFUL"]:
        return {"flags": a["items"]}, {}, 0
    read: dict[str, float] = {}
    written: dict[str, float] = {"flags": programs}
    flops = 0.0
    shared = ("y", "x", "mu", "stds")
    for prefix, (items, of_pass), of in zip(
        ("", "other_"), passes(programs, a), active, strict=False
    ):
        more, stored, operations = _pull_of_pass(items, of_pass, of)
        more = {name if name in shared else prefix + name: n for name, n in more.items()}
        read, written = added(read, more), written | {prefix + n: v for n, v in stored.items()}
        flops += operations
    return read, written, flops


def _pull_of_pass(items: int, a: Arguments, of: ActiveParts) -> Elements:
    E, splits = a["E"], items // (a["tiles"] * a["S"])
    flags = a["tiles"] * a["rows"] * a["S"]
    has_samples, has_components = ("met_by_samples" in a), ("met_by_components" in a)
    pull_y = has_samples and "d_y" in a
    pull_own = has_samples and "sample_eps" in a and "d_stds" in a
    pull_c = has_components and ("d_x" in a or "d_mu" in a)
    pull_stds = has_components and "d_stds" in a
    of_components = pull_c or pull_stds
    read: dict[str, float] = {}
    if has_samples:
        read |= {"sample_mask": flags, "met_by_samples": items}
        read["sample_upstream"] = items * (pull_y + pull_own)
    if has_components:
        read |= {"component_mask": flags, "met_by_components": items, "component_eps": items}
        read["component_upstream"] = 2 * items * of_components
    if pull_y:
        read |= {"sample_planes": 3 * splits * of.of_samples * E, "y": of.samples * E}
    if pull_own:
        read["sample_eps"] = items
    if of_components:
        read["component_planes"] = 3 * splits * of.of_components * E
        read |= dict.fromkeys(("x", "mu"), of.components * E)
    if pull_own or of_components:
        read["stds"] = (of.stds if pull_own else of.components) * E
    size = a["rows"] * a["S"] * E
    names: list[str] = ["d_y", "d_x", "d_mu", "d_stds"]
    written: dict[str, float] = {name: size for name in names if name in a}
    flops = of.samples * (PULL_Y * pull_y + PULL_OWN * pull_own)
    flops += of.components * (PULL_C * of_components + PULL_STDS * pull_stds)
    return read, written, flops * E


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "parts_kernel": _parts,
    "parts_finish_kernel": _finish,
    "parts_again_kernel": _again,
    "meet_kernel": _meet,
    "merge_kernel": _merge,
    "pull_kernel": _pull,
}
