"""Mutual-information losses for training noise layers in PyTorch, and the terms they consist of."""

from ._types import ComponentLossesDict
from ._version import __version__
from .losses import (
    gaussian_mixture_entropy,
    mutual_information_sub_batch,
    pairwise_square_mahalanobis_distance,
    square_mahalanobis_distance,
)
from .modules import GaussianMixtureEntropy, MutualInformationLoss
from .std_losses import gaussian_entropy_log_loss, masked_negative_log_mean

__all__ = [
    "ComponentLossesDict",
    "GaussianMixtureEntropy",
    "MutualInformationLoss",
    "__version__",
    "gaussian_entropy_log_loss",
    "gaussian_mixture_entropy",
    "masked_negative_log_mean",
    "mutual_information_sub_batch",
    "pairwise_square_mahalanobis_distance",
    "square_mahalanobis_distance",
]
