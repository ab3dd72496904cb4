"""The log-sum-exp of many pairs of short rows, whose energies are never in memory: launches.

Forward one pass over all pairs; backward the energies of a block of pairs are found again, and what
they weigh in the gradients is kept until these have read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fused_mi._building_blocks import Gradients, Own
from fused_mi._mixture import Inputs, Mixture, Rows
from torch import Tensor

from ._configs import ceil_div
from ._launch import launch
from ._online_forward import NUMBERS, online_finish_kernel, online_kernel
from ._online_gradients import (
    Sums,
    Written,
    components_gradient,
    own_stds_gradient,
    samples_gradient,
    weigh,
)
from ._online_launch import Labels, Pairs
from ._pairs_configs import ONLINE_FINISH, careful_programs, online_block, online_splits
from ._pairs_logs import dtype_of
from ._positions import positions
from .pairs import launches


def online(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    own: Own | None,
    log_weights: Tensor | None,
    rows: Tensor,
) -> None:
    """Writes what `reference.logsumexp.logsumexp` returns of the energies into `rows` (D, 5, N)."""
    for mixture, state in zip(mixtures, rows, strict=True):
        where = positions(mixture)
        _forward(Pairs.of(inputs, mixture, where, Labels(own, log_weights)), state)


def _forward(pairs: Pairs, state: Tensor) -> None:
    N, M, device = pairs.mixture.samples, pairs.mixture.components, state.device
    tile = pairs.tile(dtype_of(pairs.inputs))
    tiles_m = ceil_div(M, tile.COMPONENTS)
    splits, per_split = online_splits(ceil_div(N, tile.SAMPLES), tiles_m, device)
    parts = torch.empty((splits, NUMBERS.value, N), dtype=torch.float64, device=device)
    for careful, acc in launches(pairs.inputs):
        tiles_n = ceil_div(N, pairs.tile(acc).SAMPLES)
        programs = tiles_n * splits
        launch(
            online_kernel,
            careful_programs(programs, device) if careful else programs,
            *pairs.arguments(),
            parts,
            tiles_n,
            tiles_m,
            per_split,
            splits,
            **pairs.constants(careful, acc),
        )
    launch(
        online_finish_kernel,
        ceil_div(N, ONLINE_FINISH["BLOCK"]),
        parts,
        state,
        *pairs.arguments()[-2:-1],
        N,
        M,
        splits,
        HAS_K=pairs.has_k,
        **ONLINE_FINISH,
    )


def online_backward(
    upstream: Tensor,
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    own: Own | None,
    log_weights: Tensor | None,
    rows: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of y, x, mu, stds and, where there are any, log weights, some of them wider than
    what they are of.

    Args:
        upstream: (D, 5, N or 1), of the terms of each sample.
        rows: (D, 5, N), as `online` has written them.
    """
    to = _empty(inputs, mixtures, log_weights, wanted)
    labels, upstream = Labels(own, log_weights), upstream.contiguous()
    where = [positions(mixture) for mixture in mixtures]
    # One flag of all: where one is out of range, all gradients are found again.
    where = [w._replace(irregular=where[0].irregular) for w in where]
    every = [Pairs.of(inputs, m, w, labels) for m, w in zip(mixtures, where, strict=True)]
    for careful, acc in launches(inputs):
        of_own = [
            _of_mixture(pairs, upstream[d], rows[d], to, careful, acc)
            for d, pairs in enumerate(every)
        ]
        for pairs, sums in zip(every, of_own, strict=True):
            if sums is not None:
                add = pairs.mixture.sample_rows in [m.component_rows for m in mixtures]
                own_stds_gradient(pairs, sums, to.stds, add, careful, acc)
    return [*to] if log_weights is not None else [*to[:4]]


def _empty(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    log_weights: Tensor | None,
    wanted: Sequence[bool],
) -> Written:
    """What is written; in T where it is written in several steps; 0 where nothing writes."""
    samples = [m.sample_rows for m in mixtures]
    components = [m.component_rows for m in mixtures]
    rows, columns = online_block(mixtures[0].samples, mixtures[0].components)
    by_components = mixtures[0].samples > rows
    own = [] if mixtures[0].sample_eps is None else [r for r in samples if r not in components]
    both = mixtures[0].sample_eps is not None and len(own) < len(samples)
    several = mixtures[0].components > columns, *(by_components,) * 2, by_components or both
    roles = samples, components, components, [*components, *own]
    found: list[Tensor | None] = []
    for t, needed, often, of_role in zip(inputs, wanted[:4], several, roles, strict=True):
        new = torch.empty if sum(b - a for a, b in of_role) == len(t) else torch.zeros
        dtype = torch.float32 if often else t.dtype
        found.append(new(t.shape, dtype=dtype, device=t.device) if needed else None)
    weights = None if log_weights is None or not wanted[4] else torch.empty_like(log_weights)
    y, x, mu, stds = found
    return Written(y, x, mu, stds, weights)


def _of_mixture(
    pairs: Pairs, upstream: Tensor, state: Tensor, to: Written, careful: bool, acc: torch.dtype
) -> Tensor | None:
    """Gradients of one mixture, block by block; of its samples' own stds only what their logs pull
    (N, S), where they are wanted."""
    N, M, S = pairs.mixture.samples, pairs.mixture.components, pairs.inputs[0].shape[1]
    of_own = None
    if to.stds is not None and pairs.of_samples is not None:
        of_own = torch.empty((N, S), dtype=torch.float64, device=state.device)
    rows, columns = online_block(N, M)
    for components in _parts(M, columns):
        for samples in _parts(N, rows):
            n = slice(*samples)
            block = pairs.block(samples, components)
            of_each = upstream if upstream.shape[1] == 1 else upstream[:, n]
            weights = weigh(block, of_each, state[:, n], (N, M), to, careful, acc)
            sums = Sums(block, careful, samples[0] > 0, components[0] > 0)
            if to.y is not None:
                samples_gradient(block, weights, to.y, sums, acc)
            if any(t is not None for t in to[1:4]):
                components_gradient(block, weights, to, sums, acc)
            if of_own is not None:
                sums.over_components(weights.of_k, of_own[n])
            if to.log_weights is not None:
                sums.over_samples(weights.of_k, None, to.log_weights[slice(*components)])
    return of_own


def _parts(size: int, part: int) -> list[Rows]:
    return [(start, min(start + part, size)) for start in range(0, size, part)]
