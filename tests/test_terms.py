"""The entries of `losses`: tensors of their own, of this call alone."""

import fused_mi
import pytest
import torch
from cases import leaves, mi, mi_inputs
from marks import combine, estimator

pytestmark = pytest.mark.every_backend

TOTAL, ENTROPY, STD_LOG = (
    "mutual_information_loss",
    "gaussian_mixture_entropy_loss",
    "std_log_loss",
)
ASSIGNMENT = "gaussian_mixture_assignment_loss"


@estimator
def test_an_edit_in_place_changes_one_tensor(estimator):
    losses = {}
    value = mi(leaves(mi_inputs()), losses=losses, estimator=estimator)
    before = {name: term.item() for name, term in losses.items()}
    value += 1
    losses[STD_LOG] *= 2
    assert value.item() == pytest.approx(before[TOTAL] + 1)
    assert {n: t.item() for n, t in losses.items()} == {**before, STD_LOG: 2 * before[STD_LOG]}
    (value + losses[STD_LOG]).backward()


@estimator
@combine
def test_a_spoiled_std_of_a_sample_spoils_what_depends_on_it(estimator, combine):
    """NaN in the samples' own stds alone is in k, and for "jensen" in nothing else."""
    inputs = mi_inputs()
    inputs[1][1, 0, 0] = torch.nan
    losses = {}
    mi(inputs, combine, losses, estimator=estimator)
    assert losses[TOTAL].isnan() and losses[STD_LOG].isnan()
    if estimator == "jensen":
        parts = [t for name, t in losses.items() if name not in (TOTAL, STD_LOG)]
        assert len(parts) == 3 and all(part.isfinite() for part in parts)


def test_a_mapping_used_again_forgets_the_other_estimator():
    losses = {"mine": 1}
    mi(mi_inputs(), losses=losses, estimator="logsumexp")
    assert ASSIGNMENT in losses
    mi(mi_inputs(), losses=losses)
    assert ASSIGNMENT not in losses
    means, stds, mask, clean, noisy = mi_inputs()
    for each in ("logsumexp", "jensen"):
        fused_mi.gaussian_mixture_entropy(clean, noisy, means, stds, mask, losses, estimator=each)
        assert (ASSIGNMENT in losses) == (each == "logsumexp")
    assert losses["mine"] == 1


@estimator
def test_entries_add_up(estimator):
    losses = {}
    value = mi(mi_inputs(), losses=losses, estimator=estimator)
    parts = sum(t for name, t in losses.items() if name not in (TOTAL, ENTROPY, STD_LOG))
    torch.testing.assert_close(losses[ENTROPY], parts)
    torch.testing.assert_close(losses[ENTROPY] + losses[STD_LOG], value)
    assert losses[TOTAL].item() == value.item()
