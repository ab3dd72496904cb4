"""What a launch moves and computes, as a formula; and the least that any implementation moves.

Bytes are those that the kernels ask for, exact where the counts of active positions are; repeated
reads of flags, counts and eps by many programs come from the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fused_mi._mixture import Mixture, Rows
from torch import Tensor

from . import _forward_traffic, _leave_one_out_traffic, _pairs_traffic
from ._forward_traffic import ActiveRoles
from ._launch import Launch
from ._pairs_traffic import ActivePairs


class Active(NamedTuple):
    """Contributing (row, position) pairs of a launch, and positions where there is any."""

    samples: float
    components: float
    either: float
    positions: float


class Traffic(NamedTuple):
    """Of one launch or of several."""

    read: dict[str, float]  # bytes, by argument
    written: dict[str, float]
    flops: float  # a division or a logarithm counts as one; selections and indices as none

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(self.read.values()) + sum(self.written.values())


_Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops

# Operations per element, as in the source. v = sigma^2 + eps takes 2, 1 / v 1, and sigma / v times
# a pull 2.
_PULL_Y, _PULL_OWN, _PULL_C, _PULL_STDS, _PULL_DIAGONAL = 3, 3 + 2 + 2, 3 + 3 + 4, 5 + 4, 8


_PARTS = (_forward_traffic, _leave_one_out_traffic, _pairs_traffic)


def traffic(launch: Launch, active: Active | ActiveRoles | ActivePairs) -> Traffic:
    """Of one launch.

    Args:
        active: see `expected` and `counted`.
    """
    arguments = launch.named()
    read, written, flops = _KERNELS[launch.kernel.__name__](launch.programs, arguments, active)

    def in_bytes(elements: dict[str, float]) -> dict[str, float]:
        return {name: n * arguments[name].element_size() for name, n in elements.items()}

    return Traffic(in_bytes(read), in_bytes(written), flops)


def total(
    launches: Iterable[Launch], count: Callable[[Launch], Active | ActiveRoles | ActivePairs]
) -> dict[str, Traffic]:
    """Of all launches, by kernel: record forward, backward or both, see `_launch.recorded`."""
    found: dict[str, Traffic] = {}
    for launch in launches:
        read, written, flops = traffic(launch, count(launch))
        before = found.get(launch.kernel.__name__, Traffic({}, {}, 0))
        found[launch.kernel.__name__] = Traffic(
            _sum(before.read, read), _sum(before.written, written), before.flops + flops
        )
    return found


def expected(launch: Launch, density: float = 1.0) -> Active | ActiveRoles | ActivePairs:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    a = launch.named()
    for part in _PARTS:
        if launch.kernel.__name__ in part.KERNELS:
            found: ActiveRoles | ActivePairs = part.expected(a, density)
            return found
    rows = a.get("rows", 0)
    if launch.programs > a.get("programs", launch.programs):  # of two roles
        rows += a["other_rows"]
    pairs = density * rows * a["S"] if "S" in a else 0
    samples, components = a.get("SAMPLES", True), a.get("COMPONENTS", True)
    return Active(samples * pairs, components * pairs, pairs, a.get("S", 0))


def counted(launch: Launch) -> Active | ActiveRoles | ActivePairs:
    """From the data of the launch, once the launches before it have run."""
    a = launch.named()
    for part in _PARTS:
        if launch.kernel.__name__ in part.KERNELS:
            found: ActiveRoles | ActivePairs = part.counted(a)
            return found
    if "mask" in a:
        active = a["mask"][a["start"] : a["start"] + a["rows"]].sum()
        if launch.programs > a["programs"]:  # of two roles
            active += a["other_mask"][a["other_start"] : a["other_start"] + a["other_rows"]].sum()
        return Active(0, 0, int(active), 0)
    roles = [a.get(f"{role}_active") for role in ("sample", "component")]
    given = [active != 0 for active in roles if active is not None]
    if not given or "ROWS" not in a:
        return Active(0, 0, 0, 0)
    either = given[0] | given[-1]
    samples, components = (0 if active is None else int((active != 0).sum()) for active in roles)
    return Active(samples, components, int(either.sum()), int(either.any(0).sum()))


def floor(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
    density: float = 1.0,
) -> dict[str, float]:
    """Least bytes of loss and gradients, where the batch does not fit into a cache.

    In tensors of half a batch, for "sub_batch": eps reads 2 (the stds of both roles), forward
    reads 5 (y, x, mu, both stds), backward reads 5 and writes 2 for each wanted gradient, which has
    the whole batch, zeros included. "symmetric" and "leave_one_out" read 2, 8 and 8.
    """
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    own = samples if mixtures[0].sample_eps is not None else []

    def rows_of(tensor: Tensor, ranges: Sequence[Rows]) -> float:
        rows = len({row for start, stop in ranges for row in range(start, stop)})
        return density * rows * tensor[0].numel() * tensor.element_size()

    of_stds = rows_of(stds, [*components, *own])
    inputs = rows_of(y, samples) + rows_of(x, components) + rows_of(mu, components) + of_stds
    gradients = (t for t, needed in zip((y, x, mu, stds), wanted, strict=True) if needed)
    return {
        "eps reads": of_stds,
        "forward reads": inputs,
        "backward reads": inputs,
        "gradient writes": sum(t.numel() * t.element_size() for t in gradients),
    }


def _least(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    elements = active.either * a["E"]
    two = programs > a["programs"]
    read = {"stds": elements, "mask": a["tiles"] * a["rows"] * a["S"]}
    if two:
        read["other_mask"] = a["tiles"] * a["other_rows"] * a["S"]
    return read, {"least": programs}, 2 * elements


def _stabiliser(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    return {"least": a["total"]}, {"eps": programs}, a["total"]


def _positions(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    samples, components = a["N"] * a["S"], a["M"] * a["S"]
    times = 3 if a["EXCLUDE_DIAGONAL"] else 2  # to count, to decide, and as the own partner
    read = {"sample_mask": times * samples, "component_mask": times * components}
    written = {"sample_active": samples, "component_active": components, "counts": 4 * a["S"]}
    written["irregular"] = programs
    return read, written, 0


def _sums_of_pairs(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    """Where no column is lost: a look at a plane of the state, and zeros."""
    return {"state": programs // a["tiles"] * a["E"]}, {"partial_sums": 3 * programs}, 0


def _gradient_of_pairs(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    """The same, without the zeros."""
    look = programs // a["tiles"] * a["E"]
    names = ("sample_state",) if a["EXCLUDE_DIAGONAL"] else ("sample_state", "component_state")
    return {name: look for name in names if name in a}, {}, 0


def _reduce(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    sums = 3 * programs
    return {"partial_sums": sums * a["programs"]}, {"sums": sums}, sums * a["programs"]


def _jensen_terms(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    mixtures, roles = a["MIXTURES"], ("component_eps", "sample_eps")
    eps = [name for role in roles for name in (role, f"other_{role}") if name in a]
    read = {"sums": 3 * mixtures, **dict.fromkeys(eps, 1)}
    return read, {"state": a["HEADER"], "total": 1, "terms": 6}, 3 * mixtures + 4


def _jensen_upstream(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    read = {name: n for name, n in (("of_total", 1.0), ("of_terms", 5.0)) if name in a}
    return read, {"upstream": 3 * a["MIXTURES"]}, 10


def _gradient(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    E, splits = a["E"], programs // (a["tiles"] * a["S"])
    flags = a["tiles"] * a["rows"] * a["S"]
    shifts = splits * active.positions * E  # and the same for each part of a state
    samples, components = active.samples * E, active.components * E
    pull_y = a["SAMPLES"] and "d_y" in a
    pull_own = a["SAMPLES"] and a["OWN_STDS"] and "d_stds" in a
    pull_c = a["COMPONENTS"] and ("d_x" in a or "d_mu" in a)
    pull_stds = a["COMPONENTS"] and "d_stds" in a
    of_components = pull_c or pull_stds
    diagonal = a["EXCLUDE_DIAGONAL"] and (pull_y or of_components)
    read: dict[str, float] = {}
    if a["SAMPLES"]:
        read |= {"sample_active": flags, "sample_counts": programs * (1 + (pull_y or diagonal))}
    if a["COMPONENTS"]:
        read |= {"component_active": flags, "component_eps": programs}
        read["component_counts"] = programs * (1 + of_components + (of_components or diagonal))
    if pull_y:
        read["sample_state"] = 2 * shifts
    if pull_own:
        read["sample_eps"] = programs
    if pull_y or pull_own:
        read["sample_upstream"] = programs * (pull_y + pull_own)
    if of_components:
        read["component_upstream"] = programs * (1 + pull_stds)
        read["component_state"] = shifts * (1 + pull_stds)
    if pull_y or diagonal:
        read = _sum(read, {"x": shifts, "mu": shifts, "y": samples})
    if of_components or diagonal:
        read = _sum(read, dict.fromkeys(("x", "mu"), components + shifts))
    if of_components and not a["EXCLUDE_DIAGONAL"]:
        read = _sum(read, {"y": shifts})
    if pull_own or of_components or diagonal:
        read["stds"] = active.either * E if pull_own else components
    size = a["rows"] * a["S"] * E
    written: dict[str, float] = {
        name: size for name in ("d_y", "d_x", "d_mu", "d_stds") if name in a
    }
    flops = samples * (_PULL_Y * pull_y + _PULL_OWN * pull_own)
    flops += components * (_PULL_C * of_components + _PULL_STDS * pull_stds)
    return read, written, flops + active.either * E * _PULL_DIAGONAL * diagonal


_KERNELS: dict[str, Callable[[int, dict[str, Any], Any], _Elements]] = {
    "_least_kernel": _least,
    "_stabiliser_kernel": _stabiliser,
    "_positions_kernel": _positions,
    "sums_of_pairs_kernel": _sums_of_pairs,
    "reduce_kernel": _reduce,
    "jensen_terms_kernel": _jensen_terms,
    "jensen_upstream_kernel": _jensen_upstream,
    "gradient_kernel": _gradient,
    "gradient_of_pairs_kernel": _gradient_of_pairs,
    **_forward_traffic.KERNELS,
    **_leave_one_out_traffic.KERNELS,
    **_pairs_traffic.KERNELS,
}


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}
