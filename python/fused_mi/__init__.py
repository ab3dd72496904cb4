"""Mutual information between clean and noisy embeddings, and its parts, as losses for training in PyTorch."""

from ._types import ComponentLossesDict
from ._version import __version__
from .losses import (
    gaussian_entropy_log_loss,
    gaussian_mixture_entropy,
    masked_negative_log_mean,
    mutual_information_sub_batch,
    pairwise_square_mahalanobis_distance,
    square_mahalanobis_distance,
)
from .modules import GaussianMixtureEntropy, MutualInformationLoss

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
