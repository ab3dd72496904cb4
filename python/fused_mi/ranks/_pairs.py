"""The pairs of the batch of all ranks, and the share of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Own
from .._mixture import AnyInputs, Inputs, Mixture, Rows, Scoring
from . import Group
from ._layout import Layout, divisor_of
from ._meeting import Meeting, half_of
from ._peers import Peers, cuts
from ._sizes import sizes_of
from ._travel import Travel


class Pairs(NamedTuple):
    """Who meets whom, and which samples this rank takes care of."""

    scoring: Scoring
    layout: Layout
    rows: Peers
    shards: Peers
    mixtures: list[Mixture]  # of all rows, masks where they contribute; D of them
    blocks: list[Rows]  # of the samples of a mixture, one for each rank
    averaged: float
    half: Tensor
    weights: Tensor | None  # (M,) log weights of the components of all ranks, where they have any

    @classmethod
    def of(cls, given: AnyInputs, scoring: Scoring, where: Group) -> Pairs:
        inputs: Inputs = given[:4]
        peers, shards = Peers(where.rows), Peers(where.shards)
        layout = Layout.of(
            peers.rank, sizes_of(peers, inputs[0], inputs[1], where.sizes), scoring.pairing
        )
        meeting = Meeting.of_ranks(layout, peers, shards, inputs, scoring)
        weights = None
        if len(given) > 4:
            weights = peers.gather_rows(given[4], [size for _, size in layout.sizes])
        return cls(
            scoring,
            layout,
            peers,
            shards,
            _of_all_rows(layout, peers, inputs, scoring, meeting.mixtures),
            cuts(layout.samples_of_mixture, peers.size),
            where.averaged,
            half_of(meeting, inputs[0].shape[2], divisor_of(layout, scoring), shards),
            weights,
        )

    @property
    def block(self) -> Rows:
        return self.blocks[self.rows.rank]

    @property
    def own(self) -> Own | None:
        """Of the samples of this rank's block."""
        return Own(first=self.block[0]) if self.scoring.pairing == "leave_one_out" else None

    @property
    def partners(self) -> int:
        return self.layout.components_of_mixture - int(self.own is not None)

    def weighted(self, inputs: Inputs) -> AnyInputs:
        """With the weights of all components, where they have any."""
        return inputs if self.weights is None else (*inputs, self.weights)

    def of_weights_here(self, gradient: Tensor) -> Tensor:
        """That of the weights that are here, from those (M,) of the samples of each block."""
        return self.rows.sum(gradient)[slice(*self.layout.rows(self.rows.rank, 1))]

    def travel(self, role: int) -> Travel:
        """Of the rows that are samples (0) or components (1) of some mixture."""
        ranks = range(self.rows.size)
        return Travel(self.rows, [self.layout.rows(rank, role) for rank in ranks])


def _of_all_rows(
    layout: Layout, peers: Peers, inputs: Inputs, scoring: Scoring, here: Sequence[Mixture]
) -> list[Mixture]:
    """The mixtures of the batch of all ranks."""
    masks = []
    for role, mask in enumerate((scoring.sample_mask, scoring.components(inputs[1]))):
        travel = Travel(peers, [layout.rows(rank, role) for rank in range(peers.size)])
        everybody = [(0, travel.owned[-1][1])] * peers.size
        masks.append(travel.fetch(mask.to(torch.uint8), everybody).bool())
    # What contributes is selected here: the pairs (i, i) are left out later. No rows have a role
    # twice, so that all mixtures have one mask for each.
    chosen = [torch.zeros_like(mask) for mask in masks]
    found = []
    for m, samples, components in zip(here, layout.samples, layout.components, strict=True):
        whole = m._replace(
            sample_mask=masks[0],
            component_mask=masks[1],
            sample_rows=samples,
            component_rows=components,
        )
        of_roles = zip(chosen, (samples, components), whole.contributing(), strict=True)
        for mask, rows, contributing in of_roles:
            mask[slice(*rows)] = contributing
        found.append(
            whole._replace(sample_mask=chosen[0], component_mask=chosen[1], exclude_diagonal=False)
        )
    return found
