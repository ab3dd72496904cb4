"""Ranks tell each other moments: O(S E) numbers, whatever the batch size.

Each rank merges one slice of positions and features, of all ranks, in rank order; so the bits do
not depend on who asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Parts
from ..reference.parts import PLANES, Merged, cross, merged
from ._layout import Layout
from ._peers import Peers, cuts, in_order

_LEAST_WEIGHT = 2.0**-100
"""A weight 1 / v that is less has lost digits in float32, or soon has."""


def met_moments(
    rows: Peers, layout: Layout, parts: Parts, local: Tensor, apart: bool, check: bool
) -> tuple[Tensor, Tensor] | None:
    """What the rows of this rank meet.

    Args:
        parts: of the rows of this rank.
        local: (D, 3) sums of pairs that both are here, where these are left out of the moments.
        apart: whether the rows of a rank do not meet themselves by way of the moments.
        check: look whether the dtype of the planes has room for all of it, which waits for the
            device.

    Returns:
        The planes (D, 6, S, E) of the partners, and the sums (D, 3) of q, g and k over all pairs,
        the same on all ranks; None, on all ranks, where the dtype has no room.
    """
    D, _, S, E = parts.planes.shape
    dtype, wide = parts.planes.dtype, local.dtype
    bounds = cuts(S * E, rows.size)
    sent = [_packet(layout, rows.rank, parts, bound, E) for bound in bounds]
    here = bounds[rows.rank]
    lengths = [_length(layout, rank, here, D, E) for rank in range(rows.size)]
    packets = rows.exchange(sent, lengths)
    planes, counts = _opened(layout, packets, here, D, E, wide)
    found, sums = _merge(planes, counts, layout.rank, apart, dtype)
    sums = torch.stack((sums, *(torch.zeros_like(sums),) * 2), 1)
    room = (
        parts.planes.isfinite().all()
        & torch.stack([m.planes for m in _all(found)]).to(dtype).isfinite().all()
    )
    room &= _heavy_enough(parts)
    told = torch.cat(((parts.sums + local + sums).flatten(), room.to(wide)[None]))
    every = rows.gather(told)
    if check and dtype != torch.float64 and not bool((every[:, -1] > 0).all().item()):
        return None
    replies = [
        _reply(layout, rank, [of_rank[min(rank, len(of_rank) - 1)] for of_rank in found], dtype)
        for rank in range(rows.size)
    ]
    wanted = [_reply_length(layout, rows.rank, bound, D) for bound in bounds]
    answers = rows.exchange(replies, wanted)
    return _assembled(layout, answers, bounds, D, S, E).to(wide), in_order(every[:, :-1]).view(D, 3)


def _all(found: Sequence[Sequence[Merged]]) -> list[Merged]:
    return [m for of_mixture in found for m in of_mixture]


def _heavy_enough(parts: Parts) -> Tensor:
    """Whether no weight has left the range of its dtype."""
    weights = parts.planes[:, 5]
    light = (weights < _LEAST_WEIGHT) & (parts.components[..., None] > 0)
    return ~light.any()


def _merge(
    planes: Tensor, counts: Tensor, rank: int, apart: bool, dtype: torch.dtype
) -> tuple[list[list[Merged]], Tensor]:
    """Of each mixture what the rows of each rank meet, or of all ranks the same; and (D,) its part
    of q.

    `planes` (D, ranks, 6, n), `counts` (D, ranks, n).
    """
    everybody = range(planes.shape[1])
    found, sums = [], []
    for of_planes, of_counts in zip(planes, counts, strict=True):
        if apart:
            met = [
                merged(of_planes, of_counts, [r for r in everybody if r != k], dtype)
                for k in everybody
            ]
            of_q = [
                cross(of_rank, count, others).sum()
                for of_rank, count, others in zip(of_planes, of_counts, met, strict=True)
            ]
        else:
            met = [merged(of_planes, of_counts, everybody, dtype)]
            of_q = [cross(met[0].planes, met[0].counts, met[0]).sum()]
        found.append(met)
        sums.append(in_order(torch.stack(of_q)))
    return found, torch.stack(sums)


def _span(bound: tuple[int, int], E: int) -> tuple[int, int]:
    """The positions of a slice of the columns."""
    a, b = bound
    return (a // E, (b - 1) // E + 1) if b > a else (0, 0)


def _packet(layout: Layout, rank: int, parts: Parts, bound: tuple[int, int], E: int) -> Tensor:
    """What this rank has to say of a slice: of each mixture, and of the roles that its rows have
    there. Counts travel as the bits of integers of the same width."""
    planes = parts.planes.flatten(2)[..., slice(*bound)]
    integer = torch.int32 if planes.dtype == torch.float32 else torch.int64
    counts = parts.counts[:, slice(*_span(bound, E))].to(integer).contiguous().view(planes.dtype)
    said = [planes.new_empty(0)]
    for d in range(len(planes)):
        samples, components = layout.has(d, rank)
        if samples:
            said += [planes[d, :3].flatten(), counts[d]]
        if components:
            said.append(planes[d, 3:].flatten())
    return torch.cat(said)


def _length(layout: Layout, rank: int, bound: tuple[int, int], D: int, E: int) -> int:
    """Of what a rank says of a slice."""
    width, (first, last) = bound[1] - bound[0], _span(bound, E)
    roles = [layout.has(d, rank) for d in range(D)]
    return sum(i * (3 * width + last - first) + j * 3 * width for i, j in roles)


def _opened(
    layout: Layout,
    packets: Sequence[Tensor],
    bound: tuple[int, int],
    D: int,
    E: int,
    wide: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Planes (D, ranks, 6, n) in the dtype `wide` and counts (D, ranks, n) of a slice, 0 where a
    rank has no such rows."""
    width, (first, last) = bound[1] - bound[0], _span(bound, E)
    device, ranks = packets[0].device, len(packets)
    planes = torch.zeros((D, ranks, PLANES, width), dtype=wide, device=device)
    counts = torch.zeros((D, ranks, width), dtype=torch.int64, device=device)
    position = torch.arange(*bound, device=device) // max(E, 1) - first
    for rank, packet in enumerate(packets):
        integer = torch.int32 if packet.dtype == torch.float32 else torch.int64
        for d in range(D):
            samples, components = layout.has(d, rank)
            if samples:
                of_samples, of_counts, packet = packet.split(
                    [3 * width, last - first, len(packet) - 3 * width - (last - first)]
                )
                planes[d, rank, :3] = of_samples.view(3, width)
                # The bits may lie at any offset: a copy is aligned.
                counts[d, rank] = of_counts.clone().view(integer)[position]
            if components:
                of_components, packet = packet.split([3 * width, len(packet) - 3 * width])
                planes[d, rank, 3:] = of_components.view(3, width)
    return planes, counts


def _reply(layout: Layout, rank: int, met: Sequence[Merged], dtype: torch.dtype) -> Tensor:
    """To samples the moments of the components, to components those of the samples."""
    said = [met[0].planes.new_empty(0)]
    for d, of_mixture in enumerate(met):
        samples, components = layout.has(d, rank)
        if components:
            said.append(of_mixture.planes[:3].flatten())
        if samples:
            said.append(of_mixture.planes[3:].flatten())
    return torch.cat(said).to(dtype)


def _reply_length(layout: Layout, rank: int, bound: tuple[int, int], D: int) -> int:
    width = bound[1] - bound[0]
    return sum(3 * width * sum(layout.has(d, rank)) for d in range(D))


def _assembled(
    layout: Layout,
    answers: Sequence[Tensor],
    bounds: Sequence[tuple[int, int]],
    D: int,
    S: int,
    E: int,
) -> Tensor:
    """The planes (D, 6, S, E) from the slices of all ranks, 0 where no row here needs them."""
    planes = answers[0].new_zeros((D, PLANES, S * E))
    for answer, bound in zip(answers, bounds, strict=True):
        width = bound[1] - bound[0]
        for d in range(D):
            samples, components = layout.has(d, layout.rank)
            for wanted, first in ((components, 0), (samples, 3)):
                if wanted:
                    found, answer = answer.split([3 * width, len(answer) - 3 * width])
                    planes[d, first : first + 3, slice(*bound)] = found.view(3, width)
    return planes.view(D, PLANES, S, E)
