"""The kernels of the pairs, for `kernels_check`: registers, spills, and what their inner loops do.

Two regimes: 32 x 32 pairs, which the memory limits, and 256 x 256, which arithmetic limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from _ahead_of_time import FMA_PIPE, Binary
from _part import Part
from _targets import Row, specialised
from fused_mi._building_blocks import Own
from fused_mi._mixture import Mixture
from fused_mi.triton_kernels._launch import Launch, recorded
from fused_mi.triton_kernels.logsumexp import logsumexp, logsumexp_backward, means
from fused_mi.triton_kernels.pairs import pairs, pairs_backward

SIZES = (32, 256)  # N = M
S, E = 4, (4096, 1000)  # features, see UNEVEN in `kernels_check`
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")  # of other GPUs only the budget is of interest
PAIRINGS = ("sub_batch", "leave_one_out")  # a row in one role, and in both
KERNELS = {
    "distances_kernel": 2,
    "samples_gradient_kernel": 3,
    "components_gradient_kernel": 4,
    "log_determinants_kernel": 0,
    "pair_logs_kernel": 0,
    "sum_weights_kernel": 0,
    "add_splits_kernel": 0,
    "logsumexp_state_kernel": 0,
    "logsumexp_means_kernel": 0,
    "logsumexp_gradient_kernel": 0,
}
"""Multiply-adds, multiplications or additions of each pair and feature that the formula needs."""

# Least warps of an SM that have registers. Arithmetic in registers hides its own latency of 4
# cycles; the warps are there for barriers and loads: of two programs one computes while the other
# waits. 16 are two programs of 8. Float64 has half the units, and needs half of the warps. Where
# the memory limits and what is next is on its way in registers, 12 were faster on an H100 than 16.
LIMITS = {"float32": 16, "float64": 8}
AHEAD = 12
# Of the instructions of the inner loop, those that the formula needs: an upper bound of the share
# of the peak, at one instruction per cycle and scheduler. The target is 40% on an H100.
LEAST_USEFUL = {"distances_kernel": 0.5}
# What moves energies moves two of them at once, 24 bytes of each pair.
WIDE = {"logsumexp_state_kernel": ("load",), "logsumexp_gradient_kernel": ("load", "store")}
# Bytes, outside of the inner loop: packed arithmetic pairs up registers there, and a few values
# wait in local memory for the end of a chunk of 1024 features.
MOST_SPILLED, FEW_SPILLED = {"sm_100": 64}, 32
# Bytes of a kernel that has its own loop, in float64, for rows out of range.
MOST_SPILLED_COLD = {"log_determinants_kernel": 16}

COLUMNS = ("inner loop", "FMA pipe", "useful", "LDS / FMA")
LEGEND = """of the inner loop: instructions, share of the FMA pipe, share that the formula needs (an
upper bound of the share of the peak; packed instructions count twice, so that many of them are more
than 100%); loads from shared memory per FMA"""


def launches(size: int, pairing: str, features: int, dtype: torch.dtype) -> list[Launch]:
    """All launches of the energies, their loss and the gradients, without data."""
    rows = size if pairing == "leave_one_out" else 2 * size
    shape = rows, S, features
    y, x, mu, stds = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(4))
    mask = torch.empty((rows, S), dtype=torch.bool, device="meta")
    wide = torch.promote_types(dtype, torch.float32)
    eps = torch.empty(2, dtype=wide, device="meta")
    ranges = ((0, size), (rows - size, rows))
    mixture = Mixture(mask, mask, eps[0], eps[1], *ranges, pairing == "leave_one_out")
    with recorded() as found:
        energies = pairs(y, x, mu, stds, [mixture])
        own = Own() if mixture.exclude_diagonal else None
        state = logsumexp(energies, own)
        terms = means(state, size)
        of_energies = logsumexp_backward(terms[..., None], energies, state, own)
        pairs_backward(of_energies, y, x, mu, stds, None, [mixture], [True] * 4)
    return [launch for launch in found if launch.kernel.__name__ in KERNELS]


def rows(targets: list[str]) -> list[Row]:
    cases = {
        f"{size} x {size}{', both roles' * (pairing == 'leave_one_out')}"
        f"{', E uneven' * (features != E[0])}": partial(launches, size, pairing, features)
        for features in E
        for pairing in PAIRINGS
        for size in SIZES
    }
    return specialised([target for target in targets if target in TARGETS], cases)


def pairs_of_thread(row: Row, binary: Binary) -> float:
    """Pairs and features of a tile, for each thread."""
    constants = row.constants
    rows = ("SAMPLES", "COMPONENTS") if "SAMPLES" in constants else ("ROWS", "SUMMED")
    elements = constants["FEATURES"] / (32 * binary.warps)
    for name in rows:
        elements *= constants[name]
    return elements


def shares(row: Row, binary: Binary, per_pair: int) -> tuple[float, float]:
    """Of the instructions of the inner loop, those of the FMA pipe, and those that the formula
    needs."""
    elements = per_pair * pairs_of_thread(row, binary)
    arithmetic = sum(binary.inner[name] * n for name, n in FMA_PIPE.items())
    pipe, instructions = sum(binary.inner[name] for name in FMA_PIPE), binary.inner.total()
    return pipe / instructions, max(1, round(arithmetic / elements)) * elements / instructions


def useful(row: Row, binary: Binary) -> float | None:
    """Of all instructions of the inner loop, the share that the formula needs."""
    per_pair = KERNELS[row.kernel]
    if not binary.inner or not per_pair or "component_eps" in row.constants:
        return None
    return shares(row, binary, per_pair)[1]


def least_warps(row: Row) -> int:
    if row.in_float64:
        return LIMITS["float64"]
    constants = row.constants
    return AHEAD if constants.get("AHEAD") and constants["VECTOR"] > 1 else LIMITS["float32"]


def most_spilled(row: Row) -> int:
    return max(MOST_SPILLED.get(row.target, FEW_SPILLED), MOST_SPILLED_COLD.get(row.kernel, 0))


def problems(row: Row, binary: Binary) -> Iterator[str]:
    if binary.inner["LDL"] or binary.inner["STL"]:
        yield "local memory in the inner loop"
    for kind in WIDE.get(row.kernel, ()):
        pairs_of_thread = row.constants["ROWS"] * row.constants["COLUMNS"] / (32 * binary.warps)
        if binary.accesses[kind, 128] < 24 * pairs_of_thread / 16:
            yield f"a {kind} of less than 128 bits"
    share, least = useful(row, binary), LEAST_USEFUL.get(row.kernel, 0.0)
    if share is not None and not row.in_float64 and share < least:
        yield f"less than {least:.0%} useful"


def numbers(row: Row, binary: Binary) -> list[str]:
    return [""] * 4 if useful(row, binary) is None else cells(row, binary, KERNELS[row.kernel])


def cells(row: Row, binary: Binary, per_pair: int) -> list[str]:
    """See `LEGEND`."""
    pipe, share = shares(row, binary, per_pair)
    lds = binary.inner["LDS"] / sum(binary.inner[name] for name in FMA_PIPE)
    return [str(binary.inner.total()), f"{pipe:.0%}", f"{share:.0%}", f"{lds:.2f}"]


PART = Part(rows, least_warps, most_spilled, numbers, problems, COLUMNS, LEGEND)
