"""Options that many tests take, as marks; `covering` chooses from their combinations."""

import itertools

import pytest
import torch
from cases import ESTIMATORS, PAIRINGS, REDUCTIONS

COMBINE = (True, False)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
pairing = pytest.mark.parametrize("pairing", PAIRINGS)
combine = pytest.mark.parametrize("combine", COMBINE)


def dtypes(*values):
    return pytest.mark.parametrize("dtype", values, ids=str)


every_dtype = dtypes(*DTYPES)


def options(**values):
    """A dictionary for each combination, which the public function takes."""
    products = itertools.product(*values.values())
    dictionaries = [dict(zip(values, chosen, strict=True)) for chosen in products]
    return pytest.mark.parametrize("options", dictionaries, ids=_name)


def _name(options):
    return "-".join(map(str, options.values()))


every_mode = options(estimator=ESTIMATORS, pairing=PAIRINGS)
every_mode_and_mask = options(estimator=ESTIMATORS, pairing=PAIRINGS, combine=COMBINE)
every_option = options(
    estimator=ESTIMATORS, pairing=PAIRINGS, combine=COMBINE, reduction=REDUCTIONS
)
