"""All launches of one direction of a Jensen loss together: what they move beside the floor, and
what their instructions take beside the memory, at the batch sizes where either is worst."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from _ahead_of_time import Binary, Specialisation, specialisations
from _budget import GPUS, OF_PAIRS, STRAIGHT, PerByte, kinds, main_loops
from _targets import ALL, LIMITED, TARGETS
from fused_mi._mixture import Inputs, Scoring, mixtures_of
from fused_mi.triton_kernels import _traffic
from fused_mi.triton_kernels._launch import Launch, recorded
from fused_mi.triton_kernels.estimators import jensen, jensen_backward

SHAPES = ((8, 512, 4096), (4096, 32, 384))
PAIRINGS = ("sub_batch", "symmetric", "leave_one_out")
DTYPES = (torch.float32, torch.bfloat16)
CHECKED = ("sm_89", "sm_90")
LIMIT, MOST_BYTES, MOST_FP64 = 0.8, 1.15, 0.5
"""Of the memory's time on sm_90; of the floor's bytes, in 16 bits for a small batch 0.1 more; on
sm_89 of the memory's time, for float64 alone."""
SMALL = 8
OPEN = 0.95, 2.15
"""What launches of "leave_one_out" of a small batch keep of the first two, until they reach them:
beside 8 rows a column has a state of four float32, and partners are read again, from the cache."""


class Direction(NamedTuple):
    """The launches of a forward or backward pass on one target."""

    target: str
    shape: tuple[int, int, int]
    pairing: str
    dtype: torch.dtype
    name: str
    launches: list[tuple[Launch, Specialisation]]
    floor: float  # bytes


def directions(targets: Iterable[str]) -> Iterator[Direction]:
    """Without data."""
    for target in targets:
        for shape in SHAPES if target in CHECKED else ():
            for pairing in PAIRINGS:
                for dtype in DTYPES:
                    for name, launches, floor in _with_floors(shape, pairing, dtype):
                        with_binaries = [
                            (launch, *specialisations([launch], TARGETS[target][0]))
                            for launch in launches
                        ]
                        yield Direction(target, shape, pairing, dtype, name, with_binaries, floor)


def passes(
    shape: tuple[int, int, int], pairing: str, dtype: torch.dtype
) -> tuple[Inputs, Scoring, list[Launch], list[Launch]]:
    """All launches of a loss, forward and backward, without data."""
    y, x, mu, stds = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(4))
    inputs = y, x, mu, stds
    mask = torch.empty(shape[:2], dtype=torch.bool, device="meta")
    scoring = Scoring(
        mask, mask, pairing=pairing, own_stds=True, reduction="sum", safety_factor=100.0
    )
    with recorded() as forward:
        total, terms, state = jensen(inputs, scoring)
    with recorded() as backward:
        jensen_backward((total, terms), inputs, scoring, state, [True] * 4)
    return inputs, scoring, forward, backward


def _with_floors(
    shape: tuple[int, int, int], pairing: str, dtype: torch.dtype
) -> Iterator[tuple[str, list[Launch], float]]:
    inputs, scoring, forward, backward = passes(shape, pairing, dtype)
    eps = inputs[3].new_empty((), dtype=torch.float32)
    mixtures = mixtures_of(scoring, inputs, lambda _, roles, *__: [eps] * len(roles))
    floor = _traffic.floor(*inputs, mixtures, [True] * 4)
    yield "forward", forward, floor["eps reads"] + floor["forward reads"]
    yield "backward", backward, floor["backward reads"] + floor["gradient writes"]


class Whole(NamedTuple):
    """Sums over the launches of a direction."""

    bytes: float
    instructions: PerByte  # of a lane, for each byte

    @classmethod
    def of(cls, direction: Direction, binary: Callable[[Specialisation], Binary]) -> Whole:
        """Each thread runs what is outside of loops, and a main loop as often as the bytes of the
        launch say; other loops are those of rare cases and of ends."""
        moved, lanes = 0.0, [0.0] * 4
        for launch, specialisation in direction.launches:
            found = binary(specialisation)
            threads = launch.programs * 32 * found.warps
            if "other_start" in launch.named():  # a program takes one of two passes
                threads /= 2
            bytes_ = _traffic.traffic(launch, _traffic.expected(launch)).bytes
            rare = specialisation.kernel in (*OF_PAIRS, *STRAIGHT)
            loops = [] if rare else list(main_loops(found))
            rates = [max(of, default=0.0) for of in zip(*map(PerByte.of, loops), strict=True)]
            for i, number in enumerate(kinds(found.outside)):
                lanes[i] += threads * number + (rates[i] * bytes_ if rates else 0)
            moved += bytes_
        return cls(moved, PerByte(*(n / moved for n in lanes)))


COLUMNS: tuple[str, ...] = ("batch", "target", "inputs", "pairing", "pass", "launches")
COLUMNS += ("of the floor", "per byte", "share", "verdict")
LEGEND = """all launches of a pass: bytes beside the least that any implementation moves; all
instructions, FP32, FP64 and MUFU of a lane for each byte; what takes longest of them as a share of
the memory's time"""


def cells(direction: Direction, whole: Whole) -> tuple[list[str], bool]:
    """A line of the table, and whether it is within the limits."""
    d, gpu = direction, GPUS[direction.target]
    wrong: list[str] = []
    known: list[str] = []
    times, share = whole.bytes / d.floor, whole.instructions.share(gpu)
    small = d.shape[0] == SMALL
    may_be_open = small and d.pairing == "leave_one_out"
    most = MOST_BYTES + 0.1 * (d.dtype.itemsize == 2 and small)
    found = (share, LIMIT, "the memory's time"), (times, most, "the floor's bytes")
    for (value, limit, of), opened in zip(found, OPEN, strict=True):
        if d.target == LIMITED and value > limit:
            (known if may_be_open and value <= opened else wrong).append(
                f"more than {limit:.2f} of {of}"
            )
    if d.target == "sm_89" and whole.instructions.fp64 / gpu.lanes(gpu.fp64) > MOST_FP64:
        wrong.append(f"FP64 takes more than {MOST_FP64} of the memory's time")
    verdict = "; ".join(wrong) or (f"open: {'; '.join(known)}" if known else "ok")
    shape = "x".join(map(str, d.shape))
    line = [shape, d.target, ALL[d.dtype], d.pairing, d.name, str(len(d.launches))]
    line += [f"{times:.2f}", str(whole.instructions), f"{share:.2f}", verdict]
    return line, not wrong
