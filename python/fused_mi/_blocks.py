"""All pairs by blocks of samples, where they are too many to be held at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._mixture import Mixture, Rows


class Block(NamedTuple):
    """Some samples of a mixture and all of its components."""

    of_rows: Rows  # of its samples
    mixtures: list[tuple[Rows, Mixture]]  # of some components each, and which

    @property
    def samples(self) -> int:
        return self.of_rows[1] - self.of_rows[0]


def blocks(mixtures: Sequence[Mixture], pairs_at_once: int) -> Iterator[tuple[int, Block]]:
    """Blocks of samples of each mixture: a row of energies is all that a sample's part needs."""
    for d, mixture in enumerate(mixtures):
        exclude, components = mixture.exclude_diagonal, mixture.component_rows
        if exclude:
            # A block holds only a part of the diagonal, so here `logsumexp` alone leaves it out;
            # what `exclude_diagonal` does for positions without another partner, the masks do.
            sample_mask, component_mask = mixture.contributing()
            mixture = mixture._replace(
                sample_mask=sample_mask, component_mask=component_mask, exclude_diagonal=False
            )
        start, stop = mixture.sample_rows
        step = max(1, pairs_at_once // mixture.components)
        for row in range(start, stop, step):
            rows = (row, min(row + step, stop))
            parts = [
                (
                    (columns[0] - components[0], columns[1] - components[0]),
                    mixture._replace(sample_rows=rows, component_rows=columns),
                )
                for columns in _columns(rows, mixture)
            ]
            yield d, Block((row - start, rows[1] - start), parts)


def _columns(rows: Rows, mixture: Mixture) -> list[Rows]:
    """Components in parts that are `rows` or share none with them, as the kernels want it."""
    start, stop = mixture.component_rows
    one_batch = mixture.sample_eps is not None  # else samples are rows of other tensors
    if not one_batch or rows[1] <= start or stop <= rows[0]:
        return [mixture.component_rows]
    parts = (start, rows[0]), rows, (rows[1], stop)
    return [part for part in parts if part[0] < part[1]]
