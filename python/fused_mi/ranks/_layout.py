"""Which rows of the batch of all ranks are here: rows of ranks follow each other in rank order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._mixture import Rows, Scoring, directions

Sizes = Sequence[tuple[int, int]]
"""Samples and components that each rank has; of one batch the same number twice."""


class Layout(NamedTuple):
    """The mixtures of the batch of all ranks, D of them."""

    rank: int
    sizes: Sizes
    samples: list[Rows]  # of each mixture, in the batch of all ranks
    components: list[Rows]

    @classmethod
    def of(cls, rank: int, sizes: Sizes, pairing: str) -> Layout:
        samples, components = (sum(column) for column in zip(*sizes, strict=True))
        if pairing == "all":
            return cls(rank, sizes, [(0, samples)], [(0, components)])
        parts, pairs = directions(pairing, samples)  # type: ignore[arg-type]
        return cls(rank, sizes, [parts[i] for i, _ in pairs], [parts[j] for _, j in pairs])

    @property
    def samples_of_mixture(self) -> int:
        start, stop = self.samples[0]
        return stop - start

    @property
    def components_of_mixture(self) -> int:
        start, stop = self.components[0]
        return stop - start

    def rows(self, rank: int, role: int) -> Rows:
        """Those of a rank in the batch of all; role 0 samples, 1 components."""
        start = sum(size[role] for size in self.sizes[:rank])
        return start, start + self.sizes[rank][role]

    def local(self, rank: int) -> list[tuple[Rows, Rows]]:
        """Samples and components of each mixture among the rows of a rank, counted from its first;
        ranges may be empty."""
        found = []
        for of_mixture in zip(self.samples, self.components, strict=True):
            of_roles = []
            for role, (start, stop) in enumerate(of_mixture):
                first, last = self.rows(rank, role)
                low = min(max(start, first), last)
                of_roles.append((low - first, max(low, min(stop, last)) - first))
            found.append((of_roles[0], of_roles[1]))
        return found

    def has(self, d: int, rank: int) -> tuple[bool, bool]:
        """Whether a rank has samples, and components, of a mixture."""
        (a, b), (c, e) = self.local(rank)[d]
        return b > a, e > c


def divisor_of(layout: Layout, scoring: Scoring) -> int:
    """Of the sums over all pairs of all ranks."""
    n, m = layout.samples_of_mixture, layout.components_of_mixture
    partners = m - int(scoring.pairing == "leave_one_out")
    d = len(layout.samples)
    return d * partners if scoring.reduction == "sum" else d * n * partners
