"""The short cuts of plain torch on a CPU: taken where digits and range allow it, and right."""

import pytest
import torch
from cases import ESTIMATORS, PAIRINGS, mi, mi_inputs
from fused_mi import use_backend
from fused_mi.reference import expanded, lean, pairs
from rules import assert_rule10

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


@pytest.fixture(autouse=True)
def _backend():
    with use_backend("reference"):
        yield


@pytest.fixture
def exactly(monkeypatch):
    """How often the energies, and their gradient, of a block were those of true differences."""
    counts = {"energies": 0, "gradient": 0}

    def counted(name):
        function = getattr(pairs.Direction, name)

        def run(*arguments):
            counts[name] += 1
            return function(*arguments)

        return run

    for name in counts:
        monkeypatch.setattr(pairs.Direction, name, counted(name))
    return counts


def _far_component(t):
    means, stds, mask, clean, noisy = (value.clone() for value in t)
    clean[-1, :, 0] += 1e6
    return [means, stds, mask, clean, noisy]


def _far_sample(t):
    means, stds, mask, clean, noisy = (value.clone() for value in t)
    noisy[0, :, 0] += 1e6
    return [means, stds, mask, clean, noisy]


def _noise_of(size):
    """Little of it: samples lie on their rows' centres but for that."""

    def change(t):
        means, stds, mask, clean, noisy = (value.clone() for value in t)
        noisy[..., 1] = (clean + means)[..., 1].roll(1, 0) + size
        stds[..., 1] = size
        return [means, stds, mask, clean, noisy]

    return change


CHANGES = [
    (lambda t: t, 0),
    (lambda t: [t[0], t[1], t[2], t[3] + 5e5, t[4] + 5e5], 0),  # a shift takes it
    (_far_component, 1),
    (_far_sample, 1),
    (_noise_of(2.0**-12), 0),
    (_noise_of(2.0**-17), 1),
]
change = pytest.mark.parametrize(
    ("change", "true_differences"),
    CHANGES,
    ids=["ordinary", "offset", "a far component", "a far sample", "little noise", "less"],
)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("pairing", PAIRINGS)
@change
def test_squares_are_expanded_where_float64_has_the_digits(
    change, true_differences, pairing, dtype, exactly
):
    inputs = change(mi_inputs(b=6, s=3, e=5, seed=1, dtype=dtype))
    options = {"estimator": "logsumexp", "pairing": pairing}
    taken = {}

    def loss(t):
        exactly.update(energies=0, gradient=0)
        value = mi(t, **options)
        value.register_hook(lambda _: taken.update(exactly, gradient=0))
        return value

    assert_rule10(loss, inputs, options)
    assert min(taken["energies"], 1) == true_differences
    assert min(exactly["gradient"], 1) == true_differences


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_float64_wants_more_digits(pairing, exactly):
    inputs = mi_inputs(b=6, s=3, e=5, seed=1, dtype=F64)
    options = {"estimator": "logsumexp", "pairing": pairing}
    assert_rule10(lambda t: mi(t, **options), inputs, options)
    assert exactly == {"energies": 0, "gradient": 0}
    inputs[1] = inputs[1] / 64
    assert_rule10(lambda t: mi(t, **options), inputs, options)
    assert exactly["energies"] > 0
    assert exactly["gradient"] > 0


def test_an_upstream_gradient_that_is_not_finite_reaches_no_position_that_is_not_shared(exactly):
    means, stds, mask, clean, noisy = mi_inputs(b=4, s=3, e=5, seed=1)
    mask[:] = True
    mask[1, 2] = mask[3, 2] = False
    inputs = [t.requires_grad_(t.is_floating_point()) for t in (means, stds, mask, clean, noisy)]
    (mi(inputs, estimator="logsumexp") * torch.inf).backward()
    assert exactly["gradient"] > 0
    for i in (0, 1, 3, 4):
        assert not inputs[i].grad[1, 2].any()
        assert not inputs[i].grad[3, 2].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_careful_takes_no_short_cut(estimator, pairing, monkeypatch):
    def refused(*_):
        raise AssertionError("a short cut")

    inputs = mi_inputs(b=6, s=3, e=5, seed=1)
    options = {"estimator": estimator, "pairing": pairing}
    for short_cut in (lean, expanded):
        monkeypatch.setattr(short_cut, "_Direction", refused)
    monkeypatch.setenv("FUSED_MI_CAREFUL", "1")
    assert_rule10(lambda t: mi(t, **options), inputs, options)
    monkeypatch.delenv("FUSED_MI_CAREFUL")
    if (estimator, pairing) != ("jensen", "leave_one_out"):
        with pytest.raises(AssertionError, match="a short cut"):
            mi(inputs, **options)
