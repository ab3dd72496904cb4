"""Names shared by the losses and the modules."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor

Estimator = Literal["jensen", "logsumexp"]
Reduction = Literal["mean", "sum", "none"]
Constant = Literal["keep", "subtract"]
Pairing = Literal["sub_batch", "symmetric", "leave_one_out"]
SmallBatch = Literal["raise", "skip"]
Bound = Literal["upper", "lower"]


class ComponentLossesDict(TypedDict, total=False):
    """What a loss writes into its `losses` argument: tensors of the shape of the loss, in nats,
    each differentiable on its own.

    The entropy is the sum of the first two (three for `estimator="logsumexp"`); the mutual
    information is the entropy plus `std_log_loss`.
    """

    gaussian_mixture_mahalanobis_distance_loss: Tensor
    gaussian_mixture_log_constants_and_determinant_loss: Tensor
    gaussian_mixture_assignment_loss: Tensor
    gaussian_mixture_entropy_loss: Tensor
    std_log_loss: Tensor
    mutual_information_loss: Tensor
