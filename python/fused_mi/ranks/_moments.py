"""Ranks tell each other moments: O(S E) numbers, whatever the batch size.

Each rank merges one slice of positions and features, of all ranks, in rank order; so the bits do
not depend on who asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Parts
from ..ops._backends import building_blocks
from ..reference.parts import PLANES
from ._layout import Layout
from ._peers import Peers, cuts, in_order

Bound = tuple[int, int]
"""The columns of one slice."""


def met_moments(
    rows: Peers,
    layout: Layout,
    parts: Parts,
    local: Tensor,
    apart: bool,
    check: bool,
    to: Tensor,
) -> Tensor | None:
    """What the rows of this rank meet.

    Args:
        parts: of the rows of this rank.
        local: (D, 3) sums of pairs that both are here, where these are left out of the moments.
        apart: whether the rows of a rank do not meet themselves by way of the moments.
        check: look whether the dtype of the planes has room for all of it, which waits for the
            device.
        to: (D, 6, S, E) float64, for the planes of the partners; 0 where no row here needs them.

    Returns:
        The sums (D, 3) of q, g and k over all pairs, the same on all ranks; None, on all ranks,
        where the dtype has no room.
    """
    D, _, S, E = parts.planes.shape
    bounds = cuts(S * E, rows.size)
    said = _said(layout, parts, bounds, E)
    here = bounds[rows.rank]
    lengths = [_length(layout, rank, here, D, E) for rank in range(rows.size)]
    packets = _send(rows, said, lengths, parts.planes)
    planes, counts = _opened(layout, packets, here, D, E)
    blocks = building_blocks(planes)
    merged, sums, room = blocks.parts.merge(planes, counts, max(E, 1), here[0], apart)
    of_q = torch.nn.functional.pad(sums[:, None], (0, 2))
    every = rows.gather(torch.cat(((parts.sums + local + of_q).flatten(), room.to(local)[None])))
    if check and planes.dtype != torch.float64 and not bool((every[:, -1] > 0).all().item()):
        return None
    replies = [
        _reply(layout, rank, merged[:, min(rank, merged.shape[1] - 1)]) for rank in range(rows.size)
    ]
    wanted = [_reply_length(layout, rows.rank, bound, D) for bound in bounds]
    answers = _send(rows, replies, wanted, planes)
    _assemble(layout, answers, bounds, to)
    return in_order(every[:, :-1]).view(D, 3)


def _span(bound: Bound, E: int) -> tuple[int, int]:
    """The positions of a slice of the columns."""
    a, b = bound
    return (a // E, (b - 1) // E + 1) if b > a else (0, 0)


def _said(layout: Layout, parts: Parts, bounds: Sequence[Bound], E: int) -> list[list[Tensor]]:
    """What this rank has to say to each rank, of its slice: of each mixture, and of the roles that
    rows here have. Counts travel as the bits of integers of the same width."""
    planes = parts.planes.flatten(2)
    integer = torch.int32 if planes.dtype == torch.float32 else torch.int64
    counts = parts.counts.to(integer).view(planes.dtype)
    said = []
    for bound in bounds:
        columns, positions = slice(*bound), slice(*_span(bound, E))
        to_rank = []
        for d in range(len(planes)):
            samples, components = layout.has(d, layout.rank)
            to_rank += [planes[d, :3, columns]] if samples else []
            to_rank += [planes[d, 3:, columns]] if components else []
            to_rank += [counts[d, positions]] if samples else []
        said.append(to_rank)
    return said


def _send(
    rows: Peers, said: Sequence[Sequence[Tensor]], lengths: Sequence[int], like: Tensor
) -> list[Tensor]:
    """To each rank what is said to it, from each `lengths` elements."""
    sent = [sum(t.numel() for t in to_rank) for to_rank in said]
    vector = like.new_empty(sum(sent))
    at = 0
    for t in itertools.chain.from_iterable(said):
        vector[at : at + t.numel()].view(t.shape).copy_(t)
        at += t.numel()
    return rows.exchange_joined(vector, sent, lengths)


def _length(layout: Layout, rank: int, bound: Bound, D: int, E: int) -> int:
    """Of what a rank says of a slice."""
    width, (first, last) = bound[1] - bound[0], _span(bound, E)
    roles = [layout.has(d, rank) for d in range(D)]
    return sum(i * (3 * width + last - first) + j * 3 * width for i, j in roles)


def _opened(
    layout: Layout, packets: Sequence[Tensor], bound: Bound, D: int, E: int
) -> tuple[Tensor, Tensor]:
    """Planes (D, ranks, 6, n) and counts (D, ranks, positions) of a slice, 0 where a rank has no
    such rows."""
    width, (first, last) = bound[1] - bound[0], _span(bound, E)
    planes = packets[0].new_empty((D, len(packets), PLANES, width))
    counts = torch.zeros(
        (D, len(packets), last - first), dtype=torch.int64, device=packets[0].device
    )
    integer = torch.int32 if planes.dtype == torch.float32 else torch.int64
    for rank, packet in enumerate(packets):
        for d in range(D):
            samples, components = layout.has(d, rank)
            for has, to in ((samples, planes[d, rank, :3]), (components, planes[d, rank, 3:])):
                if has:
                    head, packet = packet.split([3 * width, len(packet) - 3 * width])
                    to.copy_(head.view(3, width))
                else:
                    to.zero_()
            if samples:
                of_counts, packet = packet.split([last - first, len(packet) - (last - first)])
                # The bits may lie at any offset: a copy is aligned.
                counts[d, rank] = of_counts.clone().view(integer)
    return planes, counts


def _reply(layout: Layout, rank: int, met: Tensor) -> list[Tensor]:
    """To components the moments of the samples, to samples those of the components; `met` (D, 6,
    n)."""
    said = []
    for d, of_mixture in enumerate(met):
        samples, components = layout.has(d, rank)
        said += [of_mixture[:3]] if components else []
        said += [of_mixture[3:]] if samples else []
    return said


def _reply_length(layout: Layout, rank: int, bound: Bound, D: int) -> int:
    width = bound[1] - bound[0]
    return sum(3 * width * sum(layout.has(d, rank)) for d in range(D))


def _assemble(
    layout: Layout, answers: Sequence[Tensor], bounds: Sequence[Bound], to: Tensor
) -> None:
    """The planes from the slices of all ranks."""
    planes = to.flatten(2)
    for answer, bound in zip(answers, bounds, strict=True):
        width = bound[1] - bound[0]
        for d, of_mixture in enumerate(planes):
            samples, components = layout.has(d, layout.rank)
            for wanted, first in ((components, 0), (samples, 3)):
                columns = of_mixture[first : first + 3, slice(*bound)]
                if wanted:
                    found, answer = answer.split([3 * width, len(answer) - 3 * width])
                    columns.copy_(found.view(3, width))
                else:
                    columns.zero_()
