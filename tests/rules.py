"""How close is close: tolerances that follow from the arithmetic, not from what passes.

``scales`` adds up the magnitudes of all terms of the value and of each gradient element: whatever
the order of a sum, its rounding error is a small multiple of ``eps * sum |terms|``.
For logsumexp the weights depend on the energies, and an energy wrong by d changes them by a factor
1 + d; that first-order effect is part of the scale.
"""

import math

import torch
from cases import FLOATING, directions, leaves, value_and_gradients
from oracle import (
    LOG_2PI,
    TOTAL,
    accumulation_dtype,
    broadcast_energies,
    loop_energies,
    mutual_information,
    pair_weights,
    roles,
)

FLOAT64_RELATIVE = 1e-11


def _direction_scales(samples, components, estimator, factor, skip_diagonal):
    y, (x, mu) = samples.centre[0][:, None], components.centre
    w = pair_weights(samples, components).to(torch.float64)
    if skip_diagonal:
        w = w * (~torch.eye(len(y), dtype=torch.bool))[..., None]
    vl, vi = components.stds**2 + components.eps, samples.stds**2 + samples.eps
    diff = (y - x[None] - mu[None]).abs()
    magnitude = (diff**2 / vl[None] + vl.log().abs() + vi.log().abs()[:, None] + 2 * LOG_2PI) / 2
    magnitude = torch.einsum("ilse,ils->il", magnitude, w)
    n, m = magnitude.shape
    others = m - skip_diagonal
    coef = torch.full_like(magnitude, factor / (n * others))
    if estimator == "logsumexp":
        energies = broadcast_energies(samples, components)
        total = energies.q + energies.g - energies.k
        if skip_diagonal:
            total = total.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf)
        r = torch.softmax(-total, 1)
        coef = factor / n * r * (1 + magnitude + (r * magnitude).sum(1, keepdim=True))
        value = factor / n * (1 + (r * magnitude).sum())
    else:
        value = (coef * magnitude).sum()
    terms = coef[..., None, None] * w[..., None]
    centre = terms * diff / vl[None]
    component = (terms * (1 + diff**2 / vl[None])).sum(0) * components.stds.abs() / vl
    sample = terms.sum(1) * samples.stds.abs() / vi
    return value, centre.sum(1), centre.sum(0), component, sample


def scales(inputs, estimator, pairing, combine, reduction, safety_factor, eps_dtype):
    """sum |terms| of the mutual information and of its gradients by (means, stds, clean, noisy)."""
    wide = [t.cpu().double() if t.is_floating_point() and t.dim() == 3 else t.cpu() for t in inputs]
    value, grads = 0.0, [torch.zeros_like(wide[i]) for i in FLOATING]
    cuts = directions(pairing, len(wide[0]))
    both_roles = roles(wide, pairing, combine, safety_factor, eps_dtype)
    for (i, j), (samples, components) in zip(cuts, both_roles, strict=True):
        factor = (len(samples.stds) if reduction == "sum" else 1) / len(cuts)
        loo = pairing == "leave_one_out"
        v, y, x, sl, si = _direction_scales(samples, components, estimator, factor, loo)
        value = value + v
        grads[0][j] += x
        grads[1][j] += sl
        grads[1][i] += si
        grads[2][j] += x
        grads[3][i] += y
    return value, grads


def underflows(inputs, estimator, pairing, combine, reduction, safety_factor=100.0):
    """Whether the largest responsibility among the terms of some gradient is so small that these
    terms may be denormal: the rule is of rounding, which is not relative to such numbers."""
    if estimator == "jensen":
        return False
    acc = accumulation_dtype(*[inputs[i] for i in FLOATING])
    least = math.log(torch.finfo(acc).tiny / torch.finfo(acc).eps)
    wide = [t.cpu().double() if t.dim() == 3 else t.cpu() for t in inputs]
    for samples, components in roles(wide, pairing, combine, safety_factor, acc):
        q, g, k = broadcast_energies(samples, components)
        none = torch.zeros_like(q, dtype=torch.bool)
        if pairing == "leave_one_out":
            none = torch.eye(len(q), dtype=torch.bool)
        log_r = torch.log_softmax((k - q - g).masked_fill(none, -torch.inf), 1)
        log_r = log_r[..., None].masked_fill(pair_weights(samples, components) == 0, -torch.inf)
        for most in (log_r.amax(0), log_r.amax(1)):
            if ((most < least) & (most > -torch.inf)).any():
                return True
    return False


def assert_rule10(function, inputs, options=None, entry=TOTAL, denormal=0.0):
    """err(function) <= 2 err(eager broadcast, same dtype) + 8 eps sum |terms|, value and gradients.

    In float64, where the loop itself rounds, the bound is ``FLOAT64_RELATIVE * sum |terms|``.
    `denormal` comes on top for gradients, and only for inputs that have `underflows`."""
    value, grads = value_and_gradients(function, inputs)
    assert_by_rule10(value, grads, inputs, options, entry, denormal)


def assert_by_rule10(value, grads, inputs, options=None, entry=TOTAL, denormal=0.0):
    """The same for results that are there; compared on the host. A value of None is not looked at,
    a gradient of None is an error."""
    options = {
        "estimator": "jensen",
        "pairing": "sub_batch",
        "combine": True,
        "reduction": "sum",
        "safety_factor": 100.0,
        **(options or {}),
    }
    inputs = [t.cpu() for t in inputs]
    acc = accumulation_dtype(*[inputs[i] for i in FLOATING])

    def formula(energies, dtype):
        def run(tensors):
            wide = [t.to(dtype) if t.dim() == 3 else t for t in tensors]
            return mutual_information(wide, eps_dtype=acc, energies=energies, **options)[entry]

        return run

    exact = loop_energies if len(inputs[0]) <= 16 else broadcast_energies
    true_value, true_grads = value_and_gradients(
        formula(exact, torch.float64), inputs, dtype=torch.float64
    )
    naive_value, naive_grads = value_and_gradients(formula(broadcast_energies, acc), inputs)
    value_scale, grad_scales = scales(inputs, eps_dtype=acc, **options)

    def check(what, ours, naive, true, scale, more=0.0):
        ours = ours.cpu()
        if acc == torch.float64 and ours.dtype == torch.float64:
            bound = FLOAT64_RELATIVE * scale
        else:
            naive_error = (naive.double() - true).abs().max()
            bound = 2 * naive_error + 8 * torch.finfo(ours.dtype).eps * scale
        error = (ours.double() - true).abs()
        excess = (error - bound - more).max().item()
        assert excess <= 0, (
            f"{what}: error {error.max().item():.3e} exceeds the bound by {excess:.3e}"
        )

    if value is not None:
        assert value.dtype == acc
        check("value", value, naive_value, true_value, value_scale)
    names = ("means", "stds", "clean", "noisy")
    wanted = [t for t in leaves(inputs) if t.requires_grad]
    for name, leaf, *rest in zip(
        names, wanted, grads, naive_grads, true_grads, grad_scales, strict=True
    ):
        ours, naive, true, scale = rest
        if true is None:  # e.g. no gradient reaches the input at all
            true, naive = torch.zeros_like(scale), torch.zeros_like(leaf)
        assert ours is not None, name
        assert ours.dtype == leaf.dtype, name
        check(name, ours, naive, true, scale, denormal)
