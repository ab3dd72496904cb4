"""Checks of the estimator that needs every pair: the loss as a whole, and its energies at sizes
where only a sample of the gradients can be compared."""

import torch
from cases import FLOATING, MASK, PAIRINGS
from fused_mi._mixture import Mixture
from fused_mi.reference import pairs as reference
from fused_mi.triton_kernels.pairs import pairs, pairs_backward
from pair_rules import scales

from ._loss import LAYOUTS, Shape, evaluate, large_inputs, small_inputs
from ._rule10 import Outcome, worst
from .values import BF16, DTYPES, F32, F64, SIZES, Check, Checks, by_rule10, name_of

_LOGSUMEXP = "logsumexp"
_LARGEST = 1 << 22  # pairs times positions times features that the host compares
_SAMPLE = 16  # positions, and features, of large inputs


def logsumexp(device: str) -> Checks:
    """Pairings, dtypes, layouts, sizes, masks and offsets by the rule of the tests."""
    for shape in ((6, 4, 3), (48, 5, 200), (140, 2, 33)):
        for pairing in PAIRINGS:
            for combine in (True, False):
                name = f"{pairing}, combine {combine}"
                yield _check(name, shape, device, pairing=pairing, combine=combine)
    for name, dtypes in DTYPES.items():
        for pairing in PAIRINGS:
            yield _check(f"{name}, {pairing}", (6, 2, 20), device, dtypes, pairing=pairing)
    for layout in LAYOUTS:
        yield _check(layout, (6, 4, 6), device, layout=layout)
    for shape, pairing in SIZES:
        if shape[0] ** 2 * shape[1] * shape[2] <= _LARGEST:
            yield _check(pairing, shape, device, pairing=pairing)
    for density in (0.05, 0.3):
        yield _check(f"density {density}", (64, 9, 13), device, density=density)
    for pairing in PAIRINGS:
        yield _check(f"offset 5e5, {pairing}", (8, 3, 5), device, pairing=pairing, offset=5e5)


def logsumexp_extremes(device: str) -> Checks:
    """Nothing active, NaN where no pair looks, variances out of the range of float32."""
    shape = (6, 4, 5)
    for pairing in PAIRINGS:

        def nothing_active(pairing=pairing):
            inputs = small_inputs(shape, device)
            inputs[MASK].zero_()
            found = evaluate(inputs, pairing=pairing, estimator=_LOGSUMEXP)
            assert found.value == 0, f"value {found.value}"
            assert all((g == 0).all() for g in found.gradients), "a gradient is not 0"

        def nan_where_no_pair_looks(pairing=pairing):
            clean = small_inputs(shape, device)
            clean[MASK][:, 2] = False
            clean[MASK][0, 2] = True  # active, but no partner shares it
            poisoned = [t.clone() for t in clean]
            unused = ~clean[MASK]
            unused[0, 2] = True
            for i in FLOATING:
                poisoned[i][unused] = torch.nan
            options = {"pairing": pairing, "estimator": _LOGSUMEXP}
            a, b = (evaluate(inputs, **options) for inputs in (clean, poisoned))
            assert a.finite, "not finite without NaN"
            assert a.same_bits(b), "NaN at positions without weight changed the result"

        yield Check(f"no position active, {pairing}", 120, nothing_active)
        yield Check(f"NaN under the mask, {pairing}", 120, nan_where_no_pair_looks)

    for size in (1e-20, 1e-15, 1e15, 1e19):

        def scaled(size=size):
            """The loss is that of the inputs before they were scaled."""
            inputs = small_inputs(shape, device)
            for i in FLOATING:
                inputs[i] *= size
            return _operator(inputs, torch.tensor(1e-5 * size**2, dtype=F64, device=device).float())

        yield Check(f"inputs times {size:.0e}", 120, scaled)


def pairs_large(device: str) -> Checks:
    """The sizes that are timed, many tiles, and more than 2^31 elements."""
    for shape, dtype in (
        ((512, 16, 768), F32),
        ((330, 40, 1000), BF16),
        ((64, 512, 4096), F32),
        # Offsets of rows past 2^31 elements; then those of a position as well.
        ((64, 4096, 8208), BF16),
        ((4, 67072, 8208), BF16),
    ):
        elements = shape[0] * shape[1] * shape[2]

        def sampled(shape=shape, dtype=dtype):
            return _operator(large_inputs(shape, device, dtype), torch.tensor(1e-4, device=device))

        past = ", more than 2^31 elements" if elements > 2**31 else ""
        yield Check(f"{shape}, {name_of(dtype)}{past}", elements, sampled)


GROUPS = (logsumexp, logsumexp_extremes, pairs_large)


def _check(name: str, shape: Shape, device: str, *dtypes, **options) -> Check:
    return by_rule10(name, shape, device, *dtypes, estimator=_LOGSUMEXP, **options)


def _operator(inputs: list[torch.Tensor], eps: torch.Tensor) -> Outcome:
    """Energies, against the plain implementation in float64 on the device; and gradients of a
    random upstream gradient at some positions and features, against float64 on the host."""
    means, stds, mask, clean, noisy = inputs
    N, (B, S, E) = len(mask) // 2, clean.shape
    mixture = Mixture(mask, mask, eps, 2 * eps, (0, N), (N, B))
    tensors = noisy, clean, means, stds
    found = pairs(*tensors, [mixture])[0]
    want = torch.zeros_like(found)
    for s in range(0, S, 1 << 9):  # in float64, but never all of them
        part = slice(s, s + (1 << 9))
        want += reference.pairs(*(t[:, part].double() for t in tensors), [_at(mixture, part)])[0]
    q, want_q = found[0], want[0]
    logs = 8 * torch.finfo(F32).eps * (want[1:].abs() + 2 * S * E)
    outcomes = [
        _worst_element("q", q - want_q, 8 * torch.finfo(F32).eps * want_q),
        _worst_element("g and k", found[1:] - want[1:], logs),
    ]
    upstream = torch.randn(1, 3, N, B - N, dtype=F64, device=eps.device)
    gradients = pairs_backward(upstream, *tensors, None, [mixture], [True] * 4)
    positions, features = _spread(S, N * (B - N)), _spread(E, N * (B - N))

    def cut(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t[:, s].cpu() for s in positions.tolist()], 1)[..., features]

    sample = [cut(t).double() for t in tensors]
    masks = mask[:, positions.to(mask.device)].cpu()
    on_host = Mixture(masks, masks, eps.cpu(), 2 * eps.cpu(), (0, N), (N, B))
    true = reference.pairs_backward(upstream.cpu(), *sample, None, [on_host], [True] * 4)
    _, terms = scales(sample, on_host, upstream[0].cpu())
    for name, gradient, exact, size in zip(
        ("noisy", "clean", "means", "stds"), gradients, true, terms, strict=True
    ):
        bound = 8 * torch.finfo(F32).eps * size
        bound = bound + torch.finfo(gradient.dtype).eps * exact.abs()
        outcomes.append(
            _worst_element(f"gradient of {name}", cut(gradient).double() - exact, bound)
        )
    return worst(outcomes)


def _at(mixture: Mixture, part: slice) -> Mixture:
    mask = mixture.sample_mask[:, part]
    return mixture._replace(sample_mask=mask, component_mask=mask)


def _spread(size: int, pairs_of_rows: int) -> torch.Tensor:
    count = max(2, min(_SAMPLE, size, int((_LARGEST / pairs_of_rows) ** 0.5)))
    return torch.linspace(0, size - 1, count, dtype=F64).round().long().unique()


def _worst_element(what: str, difference: torch.Tensor, bound: torch.Tensor) -> Outcome:
    error = difference.abs()
    at = torch.where(error == 0, 0, error / bound).nan_to_num(nan=torch.inf).argmax()
    return Outcome(what, error.flatten()[at].item(), bound.flatten()[at].item())
