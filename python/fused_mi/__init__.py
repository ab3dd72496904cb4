"""Mutual-information losses for training noise layers in PyTorch, and the terms they consist of."""

from ._types import ComponentLossesDict
from ._version import __version__
from ._warmup import warmup
from .batch_bounds import infonce, l1out
from .contrastive import CLUB, club
from .distances import pairwise_square_mahalanobis_distance, square_mahalanobis_distance
from .losses import gaussian_mixture_entropy, mutual_information_sub_batch
from .modules import GaussianMixtureEntropy, MutualInformationLoss
from .ops._backends import Backend, Choice, Finding, backends, explain, use_backend
from .pairwise_bounds import kolchinsky_tracey
from .ranks import Ranks
from .standard_errors import standard_error
from .std_losses import gaussian_entropy_log_loss, masked_negative_log_mean
from .tokens import token_information

__all__ = [
    "CLUB",
    "Backend",
    "Choice",
    "ComponentLossesDict",
    "Finding",
    "GaussianMixtureEntropy",
    "MutualInformationLoss",
    "Ranks",
    "__version__",
    "backends",
    "club",
    "explain",
    "gaussian_entropy_log_loss",
    "gaussian_mixture_entropy",
    "infonce",
    "kolchinsky_tracey",
    "l1out",
    "masked_negative_log_mean",
    "mutual_information_sub_batch",
    "pairwise_square_mahalanobis_distance",
    "square_mahalanobis_distance",
    "standard_error",
    "token_information",
    "use_backend",
    "warmup",
]
