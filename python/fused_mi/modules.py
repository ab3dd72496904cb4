"""`nn.Module` forms of the losses: the options are set once, the tensors come with each call."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import _checks
from ._types import Constant, Estimator, Pairing, Reduction, SmallBatch
from .losses import Losses, gaussian_mixture_entropy, mutual_information_sub_batch
from .micro_batches import MicroBatches
from .ranks import ranks_of

_TRUE: Any = object()  # the default of an option with two names: tells whether both were given


class MutualInformationLoss(nn.Module):
    """`mutual_information_sub_batch` with its options set once; see there for shapes, units and
    errors.

    Options have the names, the order and the defaults of the function. Its first one, True by
    default, may be given as `combine_noise_masks` too, which is the name of the attribute; both at
    once are a TypeError. A group stays with a deep copy; to pickle a loss that has one is a
    TypeError.
    """

    def __init__(
        self,
        combine_noise_masks_for_mutual_information_sub_batches: bool = _TRUE,
        safety_factor: float = 100.0,
        *,
        estimator: Estimator = "jensen",
        reduction: Reduction = "sum",
        pairing: Pairing = "sub_batch",
        constant: Constant = "keep",
        eps: float | None = None,
        small_batch: SmallBatch = "raise",
        group: Any = None,
        combine_noise_masks: bool = _TRUE,
    ) -> None:
        super().__init__()
        names = {
            "combine_noise_masks_for_mutual_information_sub_batches": (
                combine_noise_masks_for_mutual_information_sub_batches
            ),
            "combine_noise_masks": combine_noise_masks,
        }
        given = [(name, value) for name, value in names.items() if value is not _TRUE]
        if len(given) > 1:
            raise TypeError(f"combine_noise_masks: expected one of {' and '.join(names)}, got both")
        combine = _checks.flag(*given[0]) if given else True
        safety_factor = _checks.factor(safety_factor)
        _checks.option("estimator", estimator, Estimator)
        _checks.option("reduction", reduction, Reduction)
        _checks.option("pairing", pairing, Pairing)
        _checks.option("constant", constant, Constant)
        _checks.option("small_batch", small_batch, SmallBatch)
        self.combine_noise_masks = combine
        self.safety_factor = safety_factor
        self.eps = _checks.fixed(eps)
        self.estimator: Estimator = estimator
        self.reduction: Reduction = reduction
        self.pairing: Pairing = pairing
        self.constant: Constant = constant
        self.small_batch: SmallBatch = small_batch
        self.group = ranks_of(group)

    def forward(
        self,
        means_tensor: Tensor,
        stds_tensor: Tensor,
        noise_mask: Tensor,
        clean_input_embeddings: Tensor,
        noisy_input_embeddings: Tensor,
        losses: Losses | None = None,
    ) -> Tensor:
        return mutual_information_sub_batch(
            means_tensor,
            stds_tensor,
            noise_mask,
            clean_input_embeddings,
            noisy_input_embeddings,
            self.combine_noise_masks,
            losses,
            self.safety_factor,
            estimator=self.estimator,
            reduction=self.reduction,
            pairing=self.pairing,
            constant=self.constant,
            eps=self.eps,
            small_batch=self.small_batch,
            group=self.group,
        )

    def micro_batches(self, rows: int) -> MicroBatches:
        """A step over micro-batches that have `rows` rows together, on this rank.

        Raises:
            ValueError: the estimator is not "jensen", or the reduction is "none".
        """
        return MicroBatches(self, rows)

    def extra_repr(self) -> str:
        return (
            f"combine_noise_masks={self.combine_noise_masks}, safety_factor={self.safety_factor}, "
            f"estimator={self.estimator!r}, reduction={self.reduction!r}, "
            f"pairing={self.pairing!r}, constant={self.constant!r}, eps={self.eps}, "
            f"small_batch={self.small_batch!r}, group={self.group}"
        )


class GaussianMixtureEntropy(nn.Module):
    """`gaussian_mixture_entropy` with its options set once; see there for shapes, units and
    errors."""

    def __init__(
        self,
        safety_factor: float = 100.0,
        *,
        estimator: Estimator = "jensen",
        reduction: Reduction = "mean",
        eps: float | None = None,
        group: Any = None,
    ) -> None:
        super().__init__()
        safety_factor = _checks.factor(safety_factor)
        _checks.option("estimator", estimator, Estimator)
        _checks.option("reduction", reduction, Reduction)
        self.safety_factor = safety_factor
        self.eps = _checks.fixed(eps)
        self.estimator: Estimator = estimator
        self.reduction: Reduction = reduction
        self.group = ranks_of(group)

    def forward(
        self,
        clean_embeddings: Tensor,
        transformed_embeddings: Tensor,
        means: Tensor,
        stds: Tensor,
        mask: Tensor,
        losses: Losses | None = None,
        *,
        component_mask: Tensor | None = None,
        component_log_weights: Tensor | None = None,
    ) -> Tensor:
        return gaussian_mixture_entropy(
            clean_embeddings,
            transformed_embeddings,
            means,
            stds,
            mask,
            losses,
            self.safety_factor,
            component_mask=component_mask,
            component_log_weights=component_log_weights,
            estimator=self.estimator,
            reduction=self.reduction,
            eps=self.eps,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return (
            f"safety_factor={self.safety_factor}, estimator={self.estimator!r}, "
            f"reduction={self.reduction!r}, eps={self.eps}, group={self.group}"
        )
