"""Who meets whom in the batch of all ranks: stabilisers, and how many partners a row has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Partners
from .._mixture import Inputs, Mixture, Role, Rows, Scoring, mixtures_of
from ..ops._backends import building_blocks
from ..reference.variance import or_one, stabiliser_of
from ._layout import Layout
from ._peers import Peers

Ranges = list[tuple[Rows, Rows]]
"""Samples and components of each mixture."""


class Seen(NamedTuple):
    """What rows tell before anything else."""

    least: Tensor  # the least variance of each role, infinity where there is none
    counts: Tensor  # (D, 2, S) int32: active samples and components

    @classmethod
    def of(cls, rows: Ranges, inputs: Inputs, scoring: Scoring) -> Seen:
        """Of these ranges of the inputs."""
        found: list[Tensor] = []

        def variance(
            stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, _: float
        ) -> list[None]:
            found.extend(building_blocks(stds).variance.least(stds, roles, dtype))
            return [None] * len(roles)

        mixtures = mixtures_of(scoring, inputs, variance, rows)
        counts = [torch.stack([_active(m, role) for role in (0, 1)]) for m in mixtures]
        return cls(torch.stack(found), torch.stack(counts))

    def joined(self, others: Seen) -> Seen:
        """Of more rows."""
        return Seen(torch.minimum(self.least, others.least), self.counts + others.counts)

    def of_all(self, rows: Peers, shards: Peers) -> Seen:
        """Of all ranks; counts are those of the positions that are here."""
        return Seen(shards.least(rows.least(self.least)), rows.count(self.counts))


class Meeting(NamedTuple):
    """Rows that are here, and what they need to know of all others."""

    mixtures: list[Mixture]  # ranges of rows here, which may be empty; stabilisers of all
    partners: list[Partners]  # leave_one_out: those elsewhere
    positions: Tensor  # (): where pairs weigh, summed over all pairs; 0 where it is kept

    @classmethod
    def of(
        cls, rows: Ranges, inputs: Inputs, scoring: Scoring, here: Seen, of_all: Seen
    ) -> Meeting:
        """Of these ranges of the inputs, of which `here` tells."""

        def variance(*_: object) -> list[Tensor]:
            return list(stabiliser_of(or_one(of_all.least), scoring.safety_factor).unbind())

        mixtures = mixtures_of(scoring, inputs, variance, rows)
        apart = scoring.pairing == "leave_one_out"
        samples, components = of_all.counts.double().unbind(1)
        positions = (samples * (components - int(apart))).sum()
        elsewhere = of_all.counts - here.counts if apart else of_all.counts
        return cls(mixtures, [Partners(*pair.flip(0)) for pair in elsewhere], positions)

    @classmethod
    def of_ranks(
        cls, layout: Layout, rows: Peers, shards: Peers, inputs: Inputs, scoring: Scoring
    ) -> Meeting:
        """Asks all ranks."""
        ranges = layout.local(layout.rank)
        here = Seen.of(ranges, inputs, scoring)
        return cls.of(ranges, inputs, scoring, here, here.of_all(rows, shards))

    @classmethod
    def kept(cls, layout: Layout, inputs: Inputs, scoring: Scoring, kept: Tensor) -> Meeting:
        """From what `keep` has written."""
        bare = mixtures_of(
            scoring, inputs, lambda _, roles, *__: [None] * len(roles), layout.local(layout.rank)
        )
        eps, counts = kept[: 2 * len(bare)], kept[2 * len(bare) :].view(len(bare), 2, -1)
        mixtures = [
            m._replace(
                component_eps=eps[2 * d], sample_eps=eps[2 * d + 1] if scoring.own_stds else None
            )
            for d, m in enumerate(bare)
        ]
        return cls(mixtures, [Partners(*of_mixture) for of_mixture in counts], kept.new_zeros(()))

    def keep(self) -> Tensor:
        """Stabilisers and partners (2 D + 2 D S,), in the working dtype of `PARTS`."""
        eps = [e for m in self.mixtures for e in (m.component_eps, m.sample_eps)]
        of_mixtures = [torch.zeros_like(eps[0]) if e is None else e for e in eps]  # type: ignore
        counts = [count for partners in self.partners for count in partners]
        return torch.cat([t.flatten().double() for t in map(torch.stack, (of_mixtures, counts))])


def half_of(meeting: Meeting, features: int, divisor: int, shards: Peers) -> Tensor:
    """d/2 (), d the features that weigh in a pair."""
    return shards.sum(meeting.positions * features / (2 * divisor))


def _active(m: Mixture, role: int) -> Tensor:
    """(S,) int32: samples or components of the mixture that are active."""
    mask, rows = ((m.sample_mask, m.sample_rows), (m.component_mask, m.component_rows))[role]
    return mask[slice(*rows)].sum(0, dtype=torch.int32)
