"""`explain(..., check=True)` names the arguments that look wrong, and nothing in others."""

import math

import fused_mi
import pytest
import torch
from cases import FLOATING, MASK, mi_inputs

MU, STDS, _, X, Y = range(5)
NAMES = (
    "means_tensor",
    "stds_tensor",
    "noise_mask",
    "clean_input_embeddings",
    "noisy_input_embeddings",
)


def findings(inputs, **options):
    everything = fused_mi.explain(*inputs, check=True, **options)
    choices = fused_mi.explain(*inputs)
    found = everything[len(choices) :]
    assert everything[: len(choices)] == choices
    assert all(isinstance(choice, fused_mi.Choice) for choice in choices)
    assert all(isinstance(finding, fused_mi.Finding) for finding in found)
    return found


def good(dtype=torch.float32, seed=0):
    """Eight rows of 5 positions, the last of them padding; means of either sign."""
    inputs = mi_inputs(8, 5, 40, dtype, seed=seed, device="cpu")
    inputs[MASK][:, 4] = False
    return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_wrong(dtype, seed):
    inputs = good(dtype, seed)
    for i in FLOATING:  # padding may have anything
        inputs[i][:, 4] = math.nan
    assert findings(inputs) == []
    assert findings(inputs, eps=1e-6) == []
    inputs[MASK] = inputs[MASK].long()
    assert findings(inputs) == []


def test_nothing_is_wrong_with_an_entropy_or_one_position():
    mu, stds, mask, x, y = good()
    other = good(seed=1)
    assert findings([t.nan_to_num(0) for t in (x, other[Y], mu, stds)] + [other[MASK]]) == []
    assert findings([t[:, 0] for t in (mu, stds, mask, x, y)]) == []


def replaced(index, value):
    def change(inputs):
        inputs[index] = value(*inputs)

    return change


def written(index, value, *where):
    def change(inputs):
        inputs[index][where] = value

    return change


def swapped(i, j):
    def change(inputs):
        inputs[i], inputs[j] = inputs[j], inputs[i]

    return change


def positive_means(inputs):
    inputs[Y] += inputs[MU].abs() - inputs[MU]
    inputs[MU] = inputs[MU].abs()


def means_as_stds(inputs):
    positive_means(inputs)
    swapped(MU, STDS)(inputs)


def negative_as_swapped(inputs):
    inputs[Y] += inputs[STDS]
    inputs[MU] = inputs[MU] + inputs[STDS]
    inputs[STDS] = torch.randn_like(inputs[STDS])
    inputs[MU] = inputs[MU].abs()


def far_from_zero(inputs):
    for i in (X, Y):
        inputs[i] = (inputs[i] + 300).bfloat16()


def same_noise(inputs):
    inputs[Y] = inputs[X] + inputs[MU] + inputs[STDS] * torch.randn_like(inputs[X][:1])


def one_mask(*positions):
    def change(inputs):
        inputs[MASK] = torch.zeros_like(inputs[MASK])
        for row, position in enumerate(positions):
            inputs[MASK][row, position] = True

    return change


def copies(inputs):
    for i in (MASK, X):
        inputs[i][5] = inputs[i][2]
    inputs[Y] = inputs[X] + inputs[MU] + inputs[STDS] * torch.randn_like(inputs[X])


SUSPICIOUS = {
    "nan": (written(MU, math.nan, 1, 0, 3), "means_tensor", "1 of", "noise_mask"),
    "inf": (written(Y, math.inf, 1, 0), "noisy_input_embeddings", "40 of", "come from"),
    "negative": (written(STDS, -0.3, 0, 0, 1), "stds_tensor", "negative, least -0.3", "exp()"),
    "swapped by sign": (negative_as_swapped, "stds_tensor", "and no mean is", "swapped"),
    "swapped by size": (means_as_stds, "means_tensor", "root mean square", "swapped"),
    "embeddings swapped": (swapped(X, Y), "clean_input_embeddings", "root mean", "swapped"),
    "variances": (replaced(STDS, lambda mu, s, *_: s**2), "stds_tensor", "not 1", "variances"),
    "logs": (replaced(STDS, lambda mu, s, *_: s.log()), "stds_tensor", "not 1", "are logs"),
    "logs of variances": (
        replaced(STDS, lambda mu, s, *_: 2 * s.log()),
        "stds_tensor",
        "not 1",
        "logs of variances",
    ),
    "means not added": (
        replaced(Y, lambda mu, s, m, x, y: y - mu),
        "noisy_input_embeddings",
        "not 1",
        "not added",
    ),
    "no noise": (
        replaced(Y, lambda mu, s, m, x, y: x + mu),
        "noisy_input_embeddings",
        "e-0",
        "evaluation",
    ),
    "another draw": (
        replaced(Y, lambda mu, s, m, x, y: 3 * torch.randn_like(x)),
        "noisy_input_embeddings",
        "not 1",
        "randn_like",
    ),
    "the same noise": (same_noise, "noisy_input_embeddings", "same noise", "of the shape"),
    "zero": (written(STDS, 0.0, 0, 0, 1), "stds_tensor", "1 of", "least std"),
    "tiny": (written(STDS, 1e-6, 0, 0, 1), "stds_tensor", "the least is 1e-06", "1 / std^2"),
    "resolution": (far_from_zero, "noisy_input_embeddings", "bfloat16 resolves", "wider type"),
    "nobody": (one_mask(), "noise_mask", "no position is active", "0"),
    "nobody shared": (one_mask(0, 1, 2), "noise_mask", "active in two rows", "align"),
    "an empty row": (
        written(MASK, False, 3),
        "noise_mask",
        "1 of 8 rows have no",
        "leave them out",
    ),
    "added to scores": (
        replaced(MASK, lambda mu, s, m, *_: torch.where(m, 0, -math.inf)),
        "noise_mask",
        "negative values",
        "True",
    ),
    "weights": (
        replaced(MASK, lambda mu, s, m, *_: m * 0.5),
        "noise_mask",
        "other than 0 and 1",
        "counts as 1",
    ),
    "copies": (copies, "clean_input_embeddings", "1 of 8 rows are copies", "leave copies out"),
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_it_names(case):
    change, name, problem, advice = SUSPICIOUS[case]
    inputs = good()
    # So that one change is all there is to find: spreads that differ, means that matter.
    inputs[STDS] *= 0.3
    inputs[MU] *= 2
    inputs[Y] = inputs[X] + inputs[MU] + inputs[STDS] * torch.randn_like(inputs[X])
    change(inputs)
    found = findings(inputs)
    assert any(f.argument == name and problem in f.problem and advice in f.advice for f in found), (
        found
    )
    assert all(f.argument in NAMES for f in found)


def test_stds_below_a_stabiliser_that_is_given():
    found = findings(good(), eps=1.0)
    assert [f.argument for f in found] == ["stds_tensor"]
    assert "below the root of eps = 1" in found[0].problem


def test_noisy_embeddings_without_gradients():
    inputs = good()
    inputs[MU].requires_grad_()
    assert [f.argument for f in findings(inputs)] == ["noisy_input_embeddings"]
    with torch.no_grad():
        assert findings(inputs) == []
    inputs[Y].requires_grad_()
    assert findings(inputs) == []


def test_samples_of_an_entropy_from_the_same_batch():
    mu, stds, mask, x, y = good()
    found = findings([x, y, mu, stds, mask])
    assert [f.argument for f in found] == ["transformed_embeddings"]
    assert "another batch" in found[0].advice


def test_what_cannot_be_checked():
    inputs = good()
    with pytest.raises(TypeError, match="expected the first five arguments"):
        fused_mi.explain(inputs[0], check=True)
    with pytest.raises(ValueError, match="stds_tensor: expected shape"):
        fused_mi.explain(inputs[0], inputs[1][:3], *inputs[2:], check=True)
    with pytest.raises(TypeError, match="check: expected True or False"):
        fused_mi.explain(*inputs, check="yes")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="eps: expected a finite number"):
        fused_mi.explain(*inputs, check=True, eps=-1.0)


def test_it_changes_nothing():
    inputs = good()
    before = [t.clone() for t in inputs]
    findings(inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_stds_count_by_their_squares():
    """What is documented of negative ones: the value of their sizes, and the gradient mirrored."""
    inputs = good(torch.float64)
    found = []
    for sign in (1, -1):
        stds = (sign * inputs[STDS]).requires_grad_()
        value = fused_mi.mutual_information_sub_batch(inputs[MU], stds, *inputs[MASK:])
        found.append((value.detach(), *torch.autograd.grad(value, stds)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], -found[1][1])
    assert fused_mi.gaussian_entropy_log_loss(-inputs[STDS]).isnan()
