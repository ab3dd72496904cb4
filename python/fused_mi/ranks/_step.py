"""One step over micro-batches: what they tell, what other ranks are asked, what each gets back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Gradients, Parts
from .._mixture import Inputs, Rows, Scoring
from .._precision import accumulation_dtype
from .._terms import terms_of_means, upstream_of_energies
from ..ops._backends import building_blocks
from ..reference.parts import fitting, narrowed
from . import Group
from ._layout import Layout, Sizes, divisor_of
from ._meeting import Meeting, Ranges, Seen, half_of
from ._moments import met_moments
from ._peers import Peers
from ._refuse import refuse_second_derivative


class _Unit(NamedTuple):
    """One micro-batch, or several whose rows need not be told apart."""

    parts: Parts  # in the working dtype
    local: Tensor  # (D, 3) sums of the pairs of its own rows, where these are apart
    state: Tensor | None  # of those


class Step:
    """The moments of one step, told micro-batch by micro-batch; see `MicroBatches`."""

    def __init__(self, scoring: Scoring, where: Group, sizes: Sizes, features: int) -> None:
        self.scoring, self.where, self.features = scoring, where, features
        self.rows, self.shards = Peers(where.rows), Peers(where.shards)
        self.layout = Layout.of(self.rows.rank, sizes, scoring.pairing)
        self.apart = scoring.pairing == "leave_one_out"
        self.seen: list[Seen] = []
        self.of_all: Seen | None = None
        self.units: list[_Unit] = []
        self.T = torch.float32

    def ranges(self, window: Rows) -> Ranges:
        """Of a window of this rank's rows, counted from its first."""
        first, last = window

        def inside(rows: Rows) -> Rows:
            start = min(max(rows[0], first), last)
            return start - first, max(start, min(rows[1], last)) - first

        return [(inside(i), inside(j)) for i, j in self.layout.local(self.layout.rank)]

    def observe(self, window: Rows, inputs: Inputs, mask: Tensor) -> None:
        self.seen.append(Seen.of(self.ranges(window), inputs, self._scoring(mask)))

    def meeting(self, number: int, window: Rows, inputs: Inputs, mask: Tensor) -> Meeting:
        """What the rows of a micro-batch need to know; asks all ranks, once."""
        if self.of_all is None:
            here = self.seen[0]
            for more in self.seen[1:]:
                here = here.joined(more)
            self.here, self.of_all = here, here.of_all(self.rows, self.shards)
        scoring = self._scoring(mask)
        return Meeting.of(self.ranges(window), inputs, scoring, self.seen[number], self.of_all)

    def add(self, number: int, window: Rows, inputs: Inputs, mask: Tensor) -> None:
        meeting = self.meeting(number, window, inputs, mask)
        self.meeting_of_one = meeting
        self.T = accumulation_dtype(*inputs)
        blocks = building_blocks(inputs[0])
        found = blocks.parts.parts(*inputs, meeting.mixtures, meeting.partners, torch.float64)
        local, state = torch.zeros_like(found.sums), None
        if self.apart:
            local, state = blocks.moments.moments(*inputs, meeting.mixtures)
        unit = _Unit(found, local, state)
        if self.apart or not self.units:
            self.units.append(unit)
        else:  # the rows of all of them meet the same ones
            self.units[0] = _Unit(*self._joined([self.units[0], unit]), None)

    def finish(self) -> None:
        """Asks all ranks for their moments."""
        of_rank, local = self._joined(self.units)
        self.planes = torch.empty_like(of_rank.planes)
        # Alone nothing is sent, and no digits need be lost.
        for dtype in (self.T, torch.float64) if self.rows.size > 1 else (torch.float64,):
            told = of_rank._replace(planes=narrowed(of_rank.planes, dtype))
            sums = met_moments(self.rows, self.layout, told, local, self.apart, True, self.planes)
            if sums is not None:
                break
        assert sums is not None
        if not self.apart:
            self.planes = fitting(self.planes, self.T)
        self.divisor = divisor_of(self.layout, self.scoring)
        self.means = self.shards.sum(sums).sum(0) / self.divisor
        self.half = half_of(self.meeting_of_one, self.features, self.divisor, self.shards)

    def total_and_terms(self, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Of the whole batch, times `share`."""
        like = self.means.new_empty(0, dtype=self.T)
        return terms_of_means(self.means * share, (like,) * 4)

    def planes_of(self, number: int) -> Tensor:
        """(D, 6, S, E) of what the rows of a micro-batch meet elsewhere."""
        if not self.apart:
            return self.planes
        assert self.of_all is not None
        if not self.planes.numel():
            return self.planes
        D, _, S, E = self.planes.shape
        others = [u.parts for i, u in enumerate(self.units) if i != number]
        # Where a component here is active, all active samples of other ranks contribute.
        of_ranks = self.of_all.counts[:, 0] - self.here.counts[:, 0]
        planes = torch.stack([self.planes, *(p.planes for p in others)], 1)
        counts = torch.stack([of_ranks.long(), *(p.counts.long() for p in others)], 1)
        blocks = building_blocks(planes)
        met, _, _ = blocks.parts.merge(planes.flatten(3), counts, E, 0, False)
        return fitting(met.view(D, -1, S, E), self.T)

    def pairs_here(self, number: int) -> Tensor | None:
        """What the pairs of the rows of one micro-batch keep."""
        return self.units[number].state if self.apart else None

    def _joined(self, units: Sequence[_Unit]) -> tuple[Parts, Tensor]:
        """Of the union of their rows; and the sums of pairs between them, where they are apart."""
        assert self.of_all is not None
        local = torch.stack([u.local for u in units]).sum(0)
        if len(units) == 1 or not units[0].parts.planes.numel():
            return units[0].parts, local
        shape = units[0].parts.planes.shape
        planes = torch.stack([u.parts.planes for u in units], 1).flatten(3)
        counts = torch.stack([u.parts.counts for u in units], 1)
        E, blocks = shape[3], building_blocks(planes)
        met = self.of_all.counts[:, 0]
        if self.apart:  # only what is elsewhere meets all units
            met = met - self.here.counts[:, 0]
        whole, of_q = blocks.parts.unite(planes, counts, met, E)
        if self.apart:
            _, between, _ = blocks.parts.merge(planes, counts.long(), E, 0, True)
            of_q = of_q + between
        total = torch.stack([u.parts.sums for u in units]).sum(0)
        total[:, 0] += of_q
        components = torch.stack([u.parts.components for u in units]).sum(0)
        return Parts(whole.view(shape), counts.sum(1), components, total), local

    def _scoring(self, mask: Tensor) -> Scoring:
        combined = self.scoring.component_mask is not None
        return self.scoring._replace(sample_mask=mask, component_mask=mask if combined else None)


class Share(torch.autograd.Function):
    """The share of a micro-batch in the value, and the gradients of its rows."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, number: int, meeting: Meeting, share: float, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.step, ctx.number, ctx.meeting = step, number, meeting
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return step.total_and_terms(share)

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_terms: Tensor | None) -> Any:
        refuse_second_derivative()
        step, meeting, wanted = ctx.step, ctx.meeting, ctx.needs_input_grad[4:]
        y, x, mu, stds = ctx.saved_tensors
        of_means = upstream_of_energies((of_total, of_terms), torch.float64) * step.where.averaged
        of_sums = (of_means / step.divisor).expand(len(meeting.mixtures), 3)
        planes, state = step.planes_of(ctx.number), step.pairs_here(ctx.number)
        blocks = building_blocks(y)
        found: Gradients = blocks.parts.pull(
            of_sums, y, x, mu, stds, meeting.mixtures, meeting.partners, planes, wanted
        )
        if state is not None:
            more = blocks.moments.moments_backward(
                of_sums, y, x, mu, stds, state, meeting.mixtures, wanted
            )
            found = [
                None if a is None or b is None else a + b.to(a.dtype)
                for a, b in zip(found, more, strict=True)
            ]
        return None, None, None, None, *found
