"""What the kernels of the moments move and compute in the backward pass, see `_traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Arguments = dict[str, Any]
Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops


class Active(NamedTuple):
    """Contributing (row, position) pairs of a launch, and positions where there is any."""

    samples: float
    components: float
    either: float
    positions: float


ActivePasses = list[Active]
"""Of each pass of a launch."""

# Operations per element, as in the source. v = sigma^2 + eps takes 2, 1 / v 1, and sigma / v times
# a pull 2.
PULL_Y, PULL_OWN, PULL_C, PULL_STDS, PULL_DIAGONAL = 3, 3 + 2 + 2, 3 + 3 + 4, 5 + 4, 8


def passes(programs: int, a: Arguments) -> list[tuple[int, Arguments]]:
    """Of each pass of a launch its programs and its arguments, under the names of the first."""
    common = {name: value for name, value in a.items() if not name.startswith("other_")}
    other = {name[6:]: value for name, value in a.items() if name.startswith("other_")}
    found = [(a["programs"], common)]
    if "start" in other:
        of_pass = ("sample_", "component_", "d_", "partner", "met_by_", "start", "rows")
        shared = {name: v for name, v in common.items() if not name.startswith(of_pass)}
        found.append((programs - a["programs"], shared | other))
    return found


def expected(a: Arguments, density: float) -> ActivePasses:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    found = []
    for _, of_pass in passes(0, a):
        pairs = density * of_pass["rows"] * a["S"]
        samples, components = (pairs * (f"{r}_mask" in of_pass) for r in ("sample", "component"))
        found.append(Active(samples, components, pairs, a["S"]))
    return found


def counted(a: Arguments) -> ActivePasses:
    """From the data of the launch, once the launches before it have run."""
    found = []
    for _, of_pass in passes(0, a):
        start = 0 if a["EXCLUDE_DIAGONAL"] else of_pass["start"]
        roles: list[Tensor] = []
        for role, partners in (("sample", 1), ("component", 0)):
            if f"{role}_counts" in of_pass:
                mask = of_pass[f"{role}_mask"][start : start + of_pass["rows"]] != 0
                roles.append(mask & (of_pass[f"{role}_counts"][partners] > 0))
        if roles:
            either = roles[0] | roles[-1]
            samples = int(roles[0].sum()) * ("sample_counts" in of_pass)
            components = int(roles[-1].sum()) * ("component_counts" in of_pass)
            of_either = int(either.sum()), int(either.any(0).sum())
            found.append(Active(samples, components, *of_either))
        else:  # of `gradient_of_pairs_kernel`
            found.append(Active(0, 0, 0, 0))
    return found


def _gradient_of_pairs(programs: int, a: Arguments, active: ActivePasses) -> Elements:
    """Where no column is lost: a look at a plane of each state."""
    names = ("sample_state",) if a["EXCLUDE_DIAGONAL"] else ("sample_state", "component_state")
    read: dict[str, float] = {}
    for prefix, (count, of_pass) in zip(("", "other_"), passes(programs, a), strict=False):
        look = count // a["tiles"] * a["E"]
        read |= {prefix + name: look for name in names if name in of_pass}
    return read, {}, 0


def _gradient(programs: int, a: Arguments, active: ActivePasses) -> Elements:
    read: dict[str, float] = {}
    written: dict[str, float] = {}
    flops = 0.0
    shared = ("y", "x", "mu", "stds", "of_total", "of_terms")
    for prefix, (count, of_pass), of_active in zip(
        ("", "other_"), passes(programs, a), active, strict=False
    ):
        more, stored, operations = _of_pass(count, of_pass, of_active)
        more = {name if name in shared else prefix + name: n for name, n in more.items()}
        read, written = added(read, more), written | {prefix + n: v for n, v in stored.items()}
        flops += operations
    return read, written, flops


def _of_pass(programs: int, a: Arguments, active: Active) -> Elements:
    E, splits = a["E"], programs // (a["tiles"] * a["S"])
    flags = a["tiles"] * a["rows"] * a["S"]
    shifts = splits * active.positions * E  # and the same for each part of a state
    samples, components = active.samples * E, active.components * E
    has_samples, has_components = ("sample_counts" in a), ("component_counts" in a)
    pull_y = has_samples and "d_y" in a
    pull_own = has_samples and "sample_eps" in a and "d_stds" in a
    pull_c = has_components and ("d_x" in a or "d_mu" in a)
    pull_stds = has_components and "d_stds" in a
    of_components = pull_c or pull_stds
    diagonal = a["EXCLUDE_DIAGONAL"] and (pull_y or of_components)
    read: dict[str, float] = {}
    if has_samples:
        read |= {"sample_mask": flags, "sample_counts": programs * (1 + (pull_y or diagonal))}
    if has_components:
        read |= {"component_mask": flags, "component_eps": programs}
        read["component_counts"] = programs * (1 + of_components + (of_components or diagonal))
    if pull_y:
        read["sample_state"] = 2 * shifts
    if pull_own:
        read["sample_eps"] = programs
    upstreams = programs * (pull_y or pull_own), programs * of_components
    for role, of_role in zip(("sample", "component"), upstreams, strict=True):
        if f"{role}_upstream" in a:
            read[f"{role}_upstream"] = 3 * of_role
        elif of_role:
            read["of_total"] = read.get("of_total", 0) + a["has_total"] * of_role
            read["of_terms"] = read.get("of_terms", 0) + 5 * a["has_terms"] * of_role
    if of_components:
        read["component_state"] = shifts * (1 + pull_stds)
    if pull_y or diagonal:
        read = added(read, {"x": shifts, "mu": shifts, "y": samples})
    if of_components or diagonal:
        read = added(read, dict.fromkeys(("x", "mu"), components + shifts))
    if of_components and not a["EXCLUDE_DIAGONAL"]:
        read = added(read, {"y": shifts})
    if pull_own or of_components or diagonal:
        read["stds"] = active.either * E if pull_own else components
    size = a["rows"] * a["S"] * E
    written: dict[str, float] = {
        name: size for name in ("d_y", "d_x", "d_mu", "d_stds") if name in a
    }
    flops = samples * (PULL_Y * pull_y + PULL_OWN * pull_own)
    flops += components * (PULL_C * of_components + PULL_STDS * pull_stds)
    return read, written, flops + active.either * E * PULL_DIAGONAL * diagonal


def added(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """By name."""
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "gradient_kernel": _gradient,
    "gradient_of_pairs_kernel": _gradient_of_pairs,
}
