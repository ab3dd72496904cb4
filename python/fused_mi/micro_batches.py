"""The Jensen loss of a batch that is never whole in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _calls
from ._mixture import Inputs, Rows, Scoring
from .losses import Losses, enter, less_half, skipped
from .ranks import Group, group_of
from .ranks._agreement import agree
from .ranks._peers import Peers
from .ranks._step import Share, Step

if TYPE_CHECKING:
    from .modules import MutualInformationLoss


class MicroBatches:
    """One step of a `MutualInformationLoss` over micro-batches; made by its `micro_batches`.

    The loss of a whole batch, whose rows go through the model a few at a time: twice without a
    graph, to say what they have, and once with it.

        step = loss.micro_batches(rows)                        # of this rank, in all micro-batches
        with torch.no_grad():
            for batch in batches:
                step.observe(stds, mask)                       # stabilisers, numbers of rows
            for batch in batches:
                step.add(means, stds, mask, clean, noisy)      # moments
        value = step.value()                                   # of the whole batch
        for batch in batches:
            step.part(means, stds, mask, clean, noisy).backward()

    The parts of a rank add up to the value, and so do their gradients: they are not to be divided
    by the number of micro-batches. The three loops have the same micro-batches in the same order,
    with the same noise. What is kept between them does not depend on the number of rows: O(S E)
    numbers, for "leave_one_out" as many for each micro-batch.
    """

    def __init__(self, loss: MutualInformationLoss, rows: int) -> None:
        if loss.estimator != "jensen":
            raise ValueError(
                'micro_batches: expected estimator="jensen", got "logsumexp", whose pairs need all '
                "rows: take its gradients of the embeddings first, then those of the model"
            )
        if loss.reduction == "none":
            raise ValueError('micro_batches: expected reduction "sum" or "mean", got "none"')
        self._loss, self._rows = loss, rows
        self._where = group_of(loss.group) or Group("", "", 1.0, (), False)
        self._step: Step | None = None
        self._windows: list[Rows] = []
        self._added = self._taken = 0
        self._finished = False

    def observe(self, stds_tensor: Tensor, noise_mask: Tensor) -> None:
        """The first loop: `stds_tensor` (b, S, E) and `noise_mask` (b, S) of the next rows.

        Raises:
            TypeError, ValueError: as the loss; or more rows than were said.
        """
        if self._added:
            raise RuntimeError("micro_batches: expected every observe before the first add")
        inputs, scoring = self._checked(
            stds_tensor, stds_tensor, stds_tensor, stds_tensor, noise_mask
        )
        if not self._windows:
            self._begin(inputs, scoring)
        start = self._windows[-1][1] if self._windows else 0
        window = start, start + len(stds_tensor)
        if window[1] > self._rows:
            raise ValueError(f"micro_batches: expected {self._rows} rows, got {window[1]} or more")
        self._windows.append(window)
        if self._step is not None:
            self._step.observe(window, inputs, scoring.sample_mask)

    @torch.no_grad()
    def add(
        self,
        means_tensor: Tensor,
        stds_tensor: Tensor,
        noise_mask: Tensor,
        clean_input_embeddings: Tensor,
        noisy_input_embeddings: Tensor,
    ) -> None:
        """The second loop, the arguments of the loss for the next micro-batch."""
        inputs, mask, number = self._next(
            self._added,
            *(means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings),
            noise_mask,
        )
        if self._step is not None:
            self._step.add(number, self._windows[number], inputs, mask)
        self._added += 1

    @torch.no_grad()
    def value(self, losses: Losses | None = None) -> Tensor:
        """The loss of the whole batch of all ranks, in nats, without a graph; its terms go into
        `losses`."""
        step = self._finished_step()
        if step is None:
            return skipped(self._skipped, "jensen", losses)
        total, terms = step.total_and_terms()
        return self._result(total, terms, 1.0, losses)

    def part(
        self,
        means_tensor: Tensor,
        stds_tensor: Tensor,
        noise_mask: Tensor,
        clean_input_embeddings: Tensor,
        noisy_input_embeddings: Tensor,
        losses: Losses | None = None,
    ) -> Tensor:
        """The third loop: the part of the next micro-batch, with its graph."""
        step = self._finished_step()
        inputs, mask, number = self._next(
            self._taken,
            *(means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings),
            noise_mask,
        )
        self._taken += 1
        if step is None:
            return skipped(inputs, "jensen", losses)
        window = self._windows[number]
        share = (window[1] - window[0]) / self._rows if self._rows else 1.0
        meeting = step.meeting(number, window, inputs, mask)
        total, terms = Share.apply(step, number, meeting, share, *inputs)
        return self._result(total, terms, share, losses)

    def _result(self, total: Tensor, terms: Tensor, share: float, losses: Losses | None) -> Tensor:
        if losses is not None:
            enter(losses, terms, True)
        if self._loss.constant == "keep":
            return total
        assert self._step is not None
        return less_half(self._step.half * share, total, losses)

    def _finished_step(self) -> Step | None:
        """None where there are too few rows to count."""
        if not self._windows or self._added < len(self._windows):
            raise RuntimeError(
                f"micro_batches: expected {len(self._windows) or 'all'} micro-batches to be added, "
                f"got {self._added}"
            )
        if self._windows[-1][1] != self._rows:
            raise ValueError(
                f"micro_batches: expected {self._rows} rows, got {self._windows[-1][1]}"
            )
        if not self._finished and self._step is not None:
            self._step.finish()
            self._finished = True
        return self._step

    def _next(
        self, number: int, mu: Tensor, stds: Tensor, x: Tensor, y: Tensor, mask: Tensor
    ) -> tuple[Inputs, Tensor, int]:
        inputs, scoring = self._checked(mu, stds, x, y, mask)
        if number >= len(self._windows):
            raise RuntimeError(f"micro_batches: expected to observe micro-batch {number} first")
        start, stop = self._windows[number]
        if len(y) != stop - start:
            raise ValueError(
                f"micro_batches: expected {stop - start} rows in micro-batch {number}, got {len(y)}"
            )
        return inputs, scoring.sample_mask, number

    def _begin(self, inputs: Inputs, scoring: Scoring) -> None:
        """Asks how many rows all ranks have."""
        rows, shards = Peers(self._where.rows), Peers(self._where.shards)
        whole = inputs[0].new_empty(()).expand(self._rows, *inputs[0].shape[1:])
        options = ("micro_batches", self._loss.constant, self._where.averaged)
        _, sizes = agree(rows, shards, lambda: ((whole,) * 4, scoring), options)
        batch = sum(n for n, _ in sizes)
        if batch < 2 and self._loss.small_batch == "skip":
            self._skipped = inputs
            return
        _calls.rows_of_information(batch, self._loss.pairing)
        self._step = Step(scoring, self._where, sizes, inputs[0].shape[2])

    def _checked(
        self, mu: Tensor, stds: Tensor, x: Tensor, y: Tensor, mask: Tensor
    ) -> tuple[Inputs, Scoring]:
        loss = self._loss
        return _calls.information(
            *(mu, stds, x, y, mask, loss.combine_noise_masks, None, loss.safety_factor),
            *(loss.estimator, loss.reduction, loss.pairing, loss.constant, loss.eps),
            loss.small_batch,
        )
