"""The two estimators from the kernels of this backend."""

from .._estimators import Estimators

from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance

_estimators = Estimators(_variance, _moments, _pairs, _logsumexp)
jensen, jensen_backward = _estimators.jensen, _estimators.jensen_backward
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward
