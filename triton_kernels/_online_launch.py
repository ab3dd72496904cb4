"""What the launches of the online log-sum-exp share: a mixture, or a block of its pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

from fused_mi._building_blocks import Own
from fused_mi._mixture import Mixture, Rows
from torch import Tensor

from ._launch import accumulator, unit
from ._pairs_configs import CHUNK, PairsTile, online_tile
from ._pairs_logs import Inputs, logs_of
from ._positions import Positions
from ._shift import shift_of
from .logsumexp import own_arguments
from .pairs import of_mixture


class Labels(NamedTuple):
    """What components and samples have beside their densities."""

    own: Own | None
    log_weights: Tensor | None  # (M,) float64, in place of k


class Pairs(NamedTuple):
    """Samples and components of a mixture, all or some of them."""

    inputs: Inputs
    mixture: Mixture
    where: Positions
    shift: Tensor  # (S, E)
    of_components: Tensor  # (M, S) float64: logs of their determinants
    of_samples: Tensor | None  # (N, S) float64, the same of the samples' own
    labels: Labels
    first: int = 0  # the number of the first component

    @classmethod
    def of(cls, inputs: Inputs, mixture: Mixture, where: Positions, labels: Labels) -> Pairs:
        """All of them."""
        # First: it looks at every variance.
        of_components, of_samples = logs_of(inputs, mixture, where)
        shift = shift_of(inputs[1], inputs[3], mixture, where.component_active)
        return cls(inputs, mixture, where, shift, of_components, of_samples, labels)

    def block(self, samples: Rows, components: Rows) -> Pairs:
        """Some of them, by their numbers."""
        of_n, of_m, m = slice(*samples), slice(*components), self.mixture
        own, weights = self.labels
        if own is not None:
            own = own.of_rows(samples)
        return self._replace(
            mixture=m._replace(
                sample_rows=_moved(samples, m.sample_rows),
                component_rows=_moved(components, m.component_rows),
            ),
            where=self.where._replace(
                sample_active=self.where.sample_active[of_n],
                component_active=self.where.component_active[of_m],
            ),
            of_components=self.of_components[of_m],
            of_samples=None if self.of_samples is None else self.of_samples[of_n],
            labels=Labels(own, None if weights is None else weights[of_m]),
            first=components[0],
        )

    @property
    def has_k(self) -> bool:
        """Whether the samples' own stds or the weights of components are there in its place."""
        return self.of_samples is not None or self.labels.log_weights is not None

    def common(self) -> tuple[Any, ...]:
        """The first arguments of all kernels of pairs."""
        return of_mixture(self.inputs, self.mixture, self.where, self.shift)

    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of a kernel that finds energies."""
        own = own_arguments(self.labels.own, self.first)
        logs = self.of_components, self.of_samples, self.labels.log_weights
        return (*self.common(), *logs, *own)

    def tile(self, acc: Any) -> PairsTile:
        itemsize = min(t.element_size() for t in self.inputs if t is not None)
        return online_tile(self.mixture.samples, self.mixture.components, acc, itemsize)

    def constants(self, careful: bool, acc: Any) -> dict[str, Any]:
        """Of a kernel that finds energies."""
        tile, E = self.tile(acc), self.inputs[0].shape[2]
        return {
            "UNIT": unit(E),
            "EVEN": E % (tile.FEATURES * tile.VECTOR) == 0,
            "CAREFUL": careful,
            "ACC": accumulator(acc),
            "CHUNK": CHUNK,
            **tile._asdict(),
        }


def _moved(rows: Rows, within: Rows) -> Rows:
    return within[0] + rows[0], within[0] + rows[1]
