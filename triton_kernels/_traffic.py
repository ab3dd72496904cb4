"""What a launch moves and computes, as a formula; and the least that any implementation moves.

Bytes are those that the kernels ask for, exact where the counts of active positions are; repeated
reads of flags, counts and eps by many programs come from the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fused_mi._mixture import Mixture, Rows
from torch import Tensor

from . import (
    _backward_traffic,
    _forward_traffic,
    _leave_one_out_traffic,
    _one_group_traffic,
    _online_traffic,
    _pairs_traffic,
    _parts_traffic,
)
from ._backward_traffic import Active, ActivePasses, added
from ._forward_traffic import ActiveRoles
from ._launch import Launch
from ._online_traffic import ActiveOnline
from ._pairs_traffic import ActivePairs
from ._parts_traffic import AllActive


class Traffic(NamedTuple):
    """Of one launch or of several."""

    read: dict[str, float]  # bytes, by argument
    written: dict[str, float]
    flops: float  # a division or a logarithm counts as one; selections and indices as none

    @property
    def bytes(self) -> float:
        """Read and written."""
        return sum(self.read.values()) + sum(self.written.values())


AnyActive = Active | ActivePasses | ActiveRoles | ActivePairs | ActiveOnline | AllActive

_Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops


_PARTS = (
    _forward_traffic,
    _backward_traffic,
    _leave_one_out_traffic,
    _one_group_traffic,
    _online_traffic,
    _pairs_traffic,
    _parts_traffic,
)


def traffic(launch: Launch, active: AnyActive) -> Traffic:
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
    launches: Iterable[Launch],
    count: Callable[[Launch], AnyActive],
) -> dict[str, Traffic]:
    """Of all launches, by kernel: record forward, backward or both, see `_launch.recorded`."""
    found: dict[str, Traffic] = {}
    for launch in launches:
        read, written, flops = traffic(launch, count(launch))
        before = found.get(launch.kernel.__name__, Traffic({}, {}, 0))
        found[launch.kernel.__name__] = Traffic(
            added(before.read, read), added(before.written, written), before.flops + flops
        )
    return found


def expected(launch: Launch, density: float = 1.0) -> AnyActive:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    a = launch.named()
    for part in _PARTS:
        if launch.kernel.__name__ in part.KERNELS:
            found: AnyActive = part.expected(a, density)
            return found
    if "of_eps" in a and "N" in a:
        return _active_of_roles(a, density)
    rows = a.get("rows", 0)
    if "other_rows" in a and launch.programs > a["programs"]:  # of two roles
        rows += a["other_rows"]
    pairs = density * rows * a["S"] if "S" in a else 0
    return Active(0, 0, pairs, 0)


def counted(launch: Launch) -> AnyActive:
    """From the data of the launch, once the launches before it have run."""
    a = launch.named()
    for part in _PARTS:
        if launch.kernel.__name__ in part.KERNELS:
            found: AnyActive = part.counted(a)
            return found
    if "of_eps" in a and "N" in a:
        return _active_of_roles(a, None)
    if "mask" in a:
        active = a["mask"][a["start"] : a["start"] + a["rows"]].sum()
        if launch.programs > a["programs"]:  # of two roles
            active += a["other_mask"][a["other_start"] : a["other_start"] + a["other_rows"]].sum()
        return Active(0, 0, int(active), 0)
    return Active(0, 0, 0, 0)


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
    return {"least": programs * a["programs"]}, {"eps": programs}, programs * a["programs"]


def _positions(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    samples, components = a["N"] * a["S"], a["M"] * a["S"]
    counting, deciding = a["counting"], a["deciding"]
    times = counting + deciding
    read = {"sample_mask": times * samples, "component_mask": times * components}
    written: dict[str, float] = {}
    if (splits := a["splits"]) > 1:
        written["parts"] = counting * splits * 7 * a["S"]
        read["parts"] = (1 - counting) * splits * splits * 7 * a["S"]
    if deciding:
        written |= {"sample_active": samples, "component_active": components}
        written |= {"counts": 4 * a["S"], "irregular": 1}
    return read, written, 0


def _sums_of_pairs(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    """Where no column is lost: a look at a plane of each state, and the sums of others."""
    mixtures = programs // a["programs"]
    read = {"state": programs // a["tiles"] * a["E"], "component_eps": programs}
    read["partial_sums"] = 3 * mixtures * a["partials"]
    if mixtures == 2:
        read["other_component_eps"] = a["programs"]
    return read, {"sums": 3 * programs}, 3 * mixtures * a["partials"]


def _prepare(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    mixtures, N, M = a["MIXTURES"], a["N"], a["M"]
    roles = a["of_eps"] // a["programs"]
    counted = (programs - a["of_eps"]) // (a["splits"] * -(-a["S"] // a["BLOCK_S"]))
    as_components, as_samples = (M, N)[:mixtures], (N, M)[:mixtures]
    rows = [*as_components, *as_samples]
    flags = [a["tiles"] * (i < roles) + (i < counted) for i in range(2 * mixtures)]
    of_each = [n * a["S"] * times for n, times in zip(rows, flags, strict=True)]
    elements = active.either * a["E"]
    read = {"stds": elements, "component_mask": sum(of_each[:mixtures])}
    read["sample_mask"] = sum(of_each[mixtures:])
    written = {"least": a["of_eps"], "parts": 2 * counted * a["splits"] * a["S"]}
    return read, written, 2 * elements


def _settle(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    counts = 4 * a["MIXTURES"] * a["S"]
    read = {"least": a["of_eps"] * a["programs"], "parts": a["splits"] * counts}
    return read, {"eps": a["of_eps"], "counts": counts}, a["of_eps"] * a["programs"]


def _active_of_roles(a: dict[str, Any], density: float | None) -> Active:
    """Active (row, position) pairs of the roles that have stabilisers; None: from the masks."""
    ranges = (a["component_start"], a["M"]), (a["sample_start"], a["N"])
    D, found = a["MIXTURES"], 0.0
    for role in range(a["of_eps"] // a["programs"]):
        start, rows = ranges[role in (1, 2)]
        mask = a["sample_mask" if role >= D else "component_mask"]
        part = mask[start : start + rows]
        found += density * rows * a["S"] if density is not None else int(part.sum())
    return Active(0, 0, found, 0)


def _reduce(programs: int, a: dict[str, Any], active: Active) -> _Elements:
    sums = 3 * a["MIXTURES"]
    read = {"partial_sums": sums * a["programs"]}
    written: dict[str, float] = {"sums": sums}
    if "total" in a:
        roles = ("component_eps", "sample_eps")
        eps = [name for role in roles for name in (role, f"other_{role}") if name in a]
        read |= dict.fromkeys(eps, 1)
        written |= {"header": a["HEADER"], "total": 1, "terms": 6}
    return read, written, sums * a["programs"] + 4


_KERNELS: dict[str, Callable[[int, dict[str, Any], Any], _Elements]] = {
    "_least_kernel": _least,
    "_stabiliser_kernel": _stabiliser,
    "_positions_kernel": _positions,
    "prepare_kernel": _prepare,
    "settle_kernel": _settle,
    "sums_of_pairs_kernel": _sums_of_pairs,
    "reduce_kernel": _reduce,
    **_forward_traffic.KERNELS,
    **_backward_traffic.KERNELS,
    **_leave_one_out_traffic.KERNELS,
    **_one_group_traffic.KERNELS,
    **_online_traffic.KERNELS,
    **_pairs_traffic.KERNELS,
    **_parts_traffic.KERNELS,
}
