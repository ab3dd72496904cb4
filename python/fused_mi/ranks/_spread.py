"""Two ways to spread the pairs over the ranks, see `_logsumexp`; either way ends in the operators
of one process."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._estimators import PAIRS_AT_ONCE, ROWS, Estimators, weigh
from .._mixture import AnyInputs, Inputs, Mixture, Rows
from .._precision import accumulation_dtype
from ..ops._backends import building_blocks
from ._pairs import Pairs
from ._peers import cuts, in_order
from ._travel import overlap


class ByFeatures:
    """Every rank has all rows, of its share of the positions, or of the features where there are
    fewer positions than ranks."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        layout = pairs.layout
        samples, components = _distinct(layout.samples), _distinct(layout.components)
        of_stds = components
        if pairs.mixtures[0].sample_eps is not None:
            of_stds = _distinct([*layout.samples, *layout.components])
        self.used = samples, components, components, of_stds  # rows of y, x, mu and stds
        self.roles = 0, 1, 1, 1  # whose rows these are

    def forward(self, inputs: Inputs) -> Tensor:
        """What is known of the samples of this rank's block, (D, 5, n), see
        `reference.logsumexp.logsumexp`."""
        pairs, (_, S, E) = self.pairs, inputs[0].shape
        ranks = pairs.rows.size
        self.by_position = ranks <= S
        self.bounds = cuts(S if self.by_position else E, ranks)
        self.blocks = building_blocks(inputs[0])
        y, x, mu, stds = (
            self._spread(t, used, role)
            for t, used, role in zip(inputs, self.used, self.roles, strict=True)
        )
        self.wide = y, x, mu, stds
        self.shapes = [t.shape for t in inputs]
        self.mixtures = self._here()
        D = len(self.mixtures)
        N, M = pairs.layout.samples_of_mixture, pairs.layout.components_of_mixture
        if self.wide[0].shape[1] * self.wide[0].shape[2]:
            energies = self.blocks.pairs.pairs(*self.wide, self.mixtures)
        else:
            energies = torch.zeros((D, 3, N, M), dtype=torch.float64, device=inputs[0].device)
        start, stop = pairs.block
        sent = [energies[:, :, a:b].reshape(-1) for a, b in pairs.blocks]
        got = pairs.rows.exchange(sent, [D * 3 * (stop - start) * M] * ranks)
        of_block = in_order(torch.stack(got)).view(D, 3, stop - start, M)
        self.energies = pairs.shards.sum(of_block)
        weigh(self.energies, pairs.weighted(inputs))
        if stop == start:
            return energies.new_zeros((D, ROWS, 0))
        return self.blocks.logsumexp.logsumexp(self.energies, pairs.own)

    def backward(self, upstream: Tensor, rows: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Of the inputs, of the rows that this rank has."""
        pairs = self.pairs
        pull = torch.zeros_like(self.energies)
        if pull.numel():
            pull = self.blocks.logsumexp.logsumexp_backward(
                upstream.contiguous(), self.energies, rows.contiguous(), pairs.own
            )
        D, _, _, M = pull.shape
        lengths = [D * 3 * (b - a) * M for a, b in pairs.blocks]
        got = pairs.rows.exchange([pull.reshape(-1)] * pairs.rows.size, lengths)
        of_all = torch.cat([part.view(D, 3, -1, M) for part in got], 2)
        once = [wanted[0], wanted[1] or wanted[2], False, wanted[3]]  # that of mu is that of x
        if self.wide[0].shape[1] * self.wide[0].shape[2]:
            found = self.blocks.pairs.pairs_backward(of_all, *self.wide, None, self.mixtures, once)
        else:
            found = _zeros(self.wide, once)
        home = [
            None if g is None else self._gather(g, used, role, shape)
            for g, used, role, shape in zip(found, self.used, self.roles, self.shapes, strict=True)
        ]
        of_inputs = [home[0], home[1], home[1], home[3]]
        if len(wanted) > 4:
            of_inputs.append(pairs.of_weights_here(pull[0, 2].sum(0)) if wanted[4] else None)
        return of_inputs

    def _here(self) -> list[Mixture]:
        """Masks of the positions of this rank."""
        if not self.by_position:
            return self.pairs.mixtures
        here = slice(*self.bounds[self.pairs.rows.rank])
        return [
            m._replace(sample_mask=m.sample_mask[:, here], component_mask=m.component_mask[:, here])
            for m in self.pairs.mixtures
        ]

    def _cut(self, t: Tensor, rank: int) -> Tensor:
        here = slice(*self.bounds[rank])
        return t[:, here] if self.by_position else t[:, :, here]

    def _spread(self, t: Tensor, used: Sequence[Rows], role: int) -> Tensor:
        """All rows of this rank's share; those that no role reads are not there."""
        pairs, layout = self.pairs, self.pairs.layout
        ranks = range(pairs.rows.size)
        owned = [layout.rows(rank, role) for rank in ranks]
        own = owned[pairs.rows.rank]
        mine = _overlaps(own, used)
        sent = [
            torch.cat(
                [t.new_empty(0)]
                + [self._cut(t[a - own[0] : b - own[0]], rank).reshape(-1) for a, b in mine]
            )
            for rank in ranks
        ]
        shape = self._cut(t[:0], pairs.rows.rank).shape[1:]
        per_row = math.prod(shape)
        theirs = [_overlaps(of_rank, used) for of_rank in owned]
        found = pairs.rows.exchange(sent, [_count(rows) * per_row for rows in theirs])
        full = t.new_zeros((owned[-1][1], *shape))
        for part, rows in zip(found, theirs, strict=True):
            for a, b in rows:
                head, part = part.split([(b - a) * per_row, len(part) - (b - a) * per_row])
                full[a:b] = head.view(b - a, *shape)
        return full

    def _gather(self, g: Tensor, used: Sequence[Rows], role: int, shape: Sequence[int]) -> Tensor:
        """The gradients of this rank's rows, from those of all shares."""
        pairs, layout = self.pairs, self.pairs.layout
        owned = [layout.rows(rank, role) for rank in range(pairs.rows.size)]
        own = owned[pairs.rows.rank]
        sent = [
            torch.cat([g.new_empty(0)] + [g[a:b].reshape(-1) for a, b in _overlaps(rows, used)])
            for rows in owned
        ]
        full = g.new_zeros(tuple(shape))
        mine = _overlaps(own, used)
        shares = [self._cut(full[:0], rank).shape[1:] for rank in range(pairs.rows.size)]
        lengths = [_count(mine) * math.prod(share) for share in shares]
        found = pairs.rows.exchange(sent, lengths)
        for rank, (part, share) in enumerate(zip(found, shares, strict=True)):
            for a, b in mine:
                size = (b - a) * math.prod(share)
                head, part = part.split([size, len(part) - size])
                self._cut(full[a - own[0] : b - own[0]], rank).copy_(head.view(b - a, *share))
        return full


class BySamples:
    """Every rank has its block of the samples, and all components."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def forward(self, inputs: Inputs) -> Tensor:
        """As `ByFeatures.forward`."""
        pairs, T = self.pairs, accumulation_dtype(*inputs)
        self.estimators = Estimators(building_blocks(inputs[0]))
        self.blocks = building_blocks(inputs[0])
        self.inputs: list[AnyInputs] = []
        self.mixtures: list[Mixture] = []
        self.energies: list[Tensor | None] = []
        n, found = pairs.block[1] - pairs.block[0], []
        # Parts of the gradients of components meet later: in T.
        y, x, mu, stds = (t.to(T) for t in inputs)
        for d, whole in enumerate(pairs.mixtures):
            of_samples, of_components = self._need(d)
            M = whole.components
            samples, components = pairs.travel(0), pairs.travel(1)
            of_y = samples.fetch(y, of_samples)
            others = [components.fetch(t, of_components) for t in (x, mu, stds)]
            first = 0
            if whole.sample_eps is not None:  # their stds lie before those of the components
                first = n
                own = components.fetch(stds, of_samples)
                before = own.new_zeros(own.shape)
                others = [
                    torch.cat((t, of_t))
                    for t, of_t in zip((before, before, own), others, strict=True)
                ]
            rows = slice(*of_samples[pairs.rows.rank]), slice(*whole.component_rows)
            masks = whole.sample_mask[rows[0]], whole.component_mask[rows[1]]
            if first:
                masks = masks[0], torch.cat((torch.zeros_like(masks[0]), masks[1]))
            mixture = whole._replace(
                sample_mask=masks[0],
                component_mask=masks[1],
                sample_rows=(0, n),
                component_rows=(first, first + M),
            )
            here = pairs.weighted((of_y, others[0], others[1], others[2]))
            of_mixture, energies = self._of_mixture(here, mixture, n, M)
            self.inputs.append(here)
            self.mixtures.append(mixture)
            self.energies.append(energies)
            found.append(of_mixture)
        return torch.cat(found)

    def _of_mixture(
        self, here: AnyInputs, mixture: Mixture, n: int, M: int
    ) -> tuple[Tensor, Tensor | None]:
        """(1, 5, n), and the energies (1, 3, n, M) where they are kept."""
        shared = self.pairs.shards.size > 1
        rows = torch.zeros((1, ROWS, n), dtype=torch.float64, device=here[0].device)
        energies = None
        if shared or n * M <= PAIRS_AT_ONCE:
            energies = rows.new_zeros((1, 3, n, M))
        empty = n == 0 or here[0].shape[1] * here[0].shape[2] == 0
        if shared:
            assert energies is not None
            if not empty:
                self.blocks.pairs.pairs(*here[:4], [mixture], energies)
            energies = self.pairs.shards.sum(energies)
            if n:
                rows = self.blocks.logsumexp.logsumexp(energies, self.pairs.own)
        elif not empty:
            self.estimators.rows_of(here, [mixture], self.pairs.own, rows, energies)
        return rows, energies

    def backward(self, upstream: Tensor, rows: Tensor, wanted: Sequence[bool]) -> Gradients:
        """As `ByFeatures.backward`."""
        pairs = self.pairs
        total: Gradients = [None] * 4
        of_weights: Gradients = []
        once = [wanted[0], wanted[1] or wanted[2], False, *wanted[3:]]
        for d, (here, mixture, energies) in enumerate(
            zip(self.inputs, self.mixtures, self.energies, strict=True)
        ):
            n, first = mixture.samples, mixture.component_rows[0]
            if n and here[0].shape[1] * here[0].shape[2]:
                found = self.estimators.gradients_of_rows(
                    upstream[d : d + 1],
                    here,
                    [mixture],
                    pairs.own,
                    rows[d : d + 1],
                    energies,
                    once,
                )
            else:
                found = _zeros(here, once)
            of_samples, of_components = self._need(d)
            of_y, of_x, _, of_stds, *of_all = found
            of_weights = [None if g is None else pairs.of_weights_here(g) for g in of_all]
            home: Gradients = [None] * 4
            samples, components = pairs.travel(0), pairs.travel(1)
            if of_y is not None:
                home[0] = samples.give_back(of_y, of_samples)
            if of_x is not None:
                home[1] = components.give_back(of_x[first:], of_components)
            if of_stds is not None:
                of_both = components.give_back(of_stds[first:], of_components)
                if mixture.sample_eps is not None:  # on ranks without samples as well
                    of_both = of_both + components.give_back(of_stds[:first], of_samples)
                home[3] = of_both
            total = [
                a if b is None else b if a is None else a + b
                for a, b in zip(total, home, strict=True)
            ]
        return [total[0], total[1], total[1], total[3], *of_weights]

    def _need(self, d: int) -> tuple[list[Rows], list[Rows]]:
        """The samples and components of mixture d that each rank needs, in the batch of all."""
        start = self.pairs.layout.samples[d][0]
        of_samples = [(start + a, start + b) for a, b in self.pairs.blocks]
        return of_samples, [self.pairs.layout.components[d]] * self.pairs.rows.size


def _zeros(like: Sequence[Tensor], wanted: Sequence[bool]) -> Gradients:
    return [torch.zeros_like(t) if needed else None for t, needed in zip(like, wanted, strict=True)]


def _distinct(ranges: Sequence[Rows]) -> list[Rows]:
    return sorted(set(ranges))


def _overlaps(rows: Rows, used: Sequence[Rows]) -> list[Rows]:
    found = [overlap(rows, of_role) for of_role in used]
    return [(a, b) for a, b in found if b > a]


def _count(ranges: Sequence[Rows]) -> int:
    return sum(b - a for a, b in ranges)
