"""Checks of values and gradients: one group of checks for each kind of input."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from cases import FLOATING, MASK, PAIRINGS
from oracle import LOG_DETERMINANT, MAHALANOBIS, STD_LOG, TOTAL

from ._loss import FLOAT32, LAYOUTS, Shape, evaluate, laid_out, large_inputs, small_inputs
from ._rule10 import Outcome, rule10

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = {
    "bfloat16": (BF16,) * 4,
    "float16": (F16,) * 4,
    "float64": (F64,) * 4,
    "stds in float32, others in bfloat16": (BF16, F32, BF16, BF16),
    "float16, float32 and bfloat16": (F16, F32, BF16, BF16),
    "noisy in float64, others in float32": (F32, F32, F32, F64),
}
"""Of means, stds, clean and noisy."""

SIZES: list[tuple[Shape, str]] = [
    ((2, 1, 1), "sub_batch"),
    ((2, 3, 1), "leave_one_out"),
    ((3, 2, 5), "leave_one_out"),
    ((4, 2, 3), "symmetric"),
    ((6, 1, 127), "sub_batch"),
    ((6, 3, 129), "symmetric"),
    ((7, 2, 129), "leave_one_out"),
    ((4, 2, 4097), "sub_batch"),
    ((4096, 2, 8), "sub_batch"),
    ((2048, 1, 3), "leave_one_out"),
    ((34, 300, 33), "sub_batch"),
    ((8, 4096, 2), "sub_batch"),
]


class Check(NamedTuple):
    """One row of the report: `function` gives an outcome, or raises, or returns None: passed."""

    name: str
    elements: int  # B * S * E; an interpreter on a CPU takes the small ones only
    function: Callable[[], Outcome | None]


Checks = Iterator[Check]


def pairings(device: str) -> Checks:
    """Every pairing, with masks combined or not; each entry of `losses` alone."""
    for shape in ((6, 4, 3), (48, 5, 200)):
        for pairing in PAIRINGS:
            for combine in (True, False):
                name = f"{pairing}, combine {combine}"
                yield by_rule10(name, shape, device, pairing=pairing, combine=combine)
    for entry in (MAHALANOBIS, LOG_DETERMINANT, STD_LOG):
        yield by_rule10(entry, (6, 4, 3), device, entry=entry)


def dtypes(device: str) -> Checks:
    for name, of_inputs in DTYPES.items():
        for pairing in PAIRINGS:
            yield by_rule10(f"{name}, {pairing}", (6, 2, 20), device, of_inputs, pairing=pairing)


def layouts(device: str) -> Checks:
    for layout in LAYOUTS:
        for pairing in PAIRINGS:
            name = f"{layout}, {pairing}"
            yield by_rule10(name, (6, 4, 6), device, layout=layout, pairing=pairing)
    for layout in LAYOUTS:
        yield by_rule10(f"{layout}, bfloat16", (6, 4, 6), device, (BF16,) * 4, layout=layout)


def sizes(device: str) -> Checks:
    for shape, pairing in SIZES:
        yield by_rule10(pairing, shape, device, pairing=pairing)
    for shape, pairing in SIZES:
        if shape[2] in (1, 127, 129, 4097):
            yield by_rule10(f"bfloat16, {pairing}", shape, device, (BF16,) * 4, pairing=pairing)


def masks(device: str) -> Checks:
    """What no pair uses has no influence: not on a bit of the result, whatever stands there."""
    shape = (6, 4, 5)
    for pairing in PAIRINGS:

        def nothing_active(pairing=pairing):
            inputs = small_inputs(shape, device)
            inputs[MASK].zero_()
            found = evaluate(inputs, pairing=pairing)
            assert found.value == 0, f"value {found.value}"
            assert all((g == 0).all() for g in found.gradients), "a gradient is not 0"

        def one_active(pairing=pairing):
            inputs = small_inputs(shape, device)
            inputs[MASK].zero_()
            inputs[MASK][0, 1] = True
            found = evaluate(inputs, pairing=pairing)
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
            a, b = (evaluate(inputs, pairing=pairing) for inputs in (clean, poisoned))
            assert a.finite, "not finite without NaN"
            assert a.same_bits(b), "NaN at positions without weight changed the result"
            assert all((g[unused] == 0).all() for g in b.gradients), "gradient without weight"

        yield Check(f"no position active, {pairing}", 120, nothing_active)
        yield Check(f"one position active, {pairing}", 120, one_active)
        yield Check(f"NaN under the mask, {pairing}", 120, nan_where_no_pair_looks)
    for density in (0.05, 0.3, 1.0):
        yield by_rule10(f"density {density}", shape, device, density=density)
        yield by_rule10(f"density {density}", (64, 9, 130), device, density=density)


def extremes(device: str) -> Checks:
    """Large offsets keep their digits; what overflows float32 does not become NaN."""
    for offset in (1e3, 5e5):
        for pairing in PAIRINGS:
            name = f"offset {offset:.0e}, {pairing}"
            yield by_rule10(name, (8, 3, 5), device, pairing=pairing, offset=offset)
    for sigma in (1e-20, 1e20, 0.0):
        for pairing in PAIRINGS:

            def no_nan(sigma=sigma, pairing=pairing):
                for rows in (slice(None), slice(None, 3), slice(3, None), slice(None, None, 2)):
                    inputs = small_inputs((6, 3, 4), device)
                    inputs[1][rows] = sigma
                    found = evaluate(inputs, pairing=pairing)
                    assert not found.has_nan, f"NaN with sigma {sigma} in the rows {rows}"

            yield Check(f"sigma {sigma:.0e}, {pairing}", 72, no_nan)

    def zero_from_above():
        found = evaluate(small_inputs((6, 3, 4), device), scale=0.0)
        assert all((g == 0).all() for g in found.gradients), "gradient where none came"

    yield Check("a gradient of 0 from above", 72, zero_from_above)


def large(device: str) -> Checks:
    """The shapes that are timed, and more than 2^31 elements: a sample of the gradients."""
    for shape, dtype, pairing in (
        ((512, 128, 768), F32, "sub_batch"),
        ((64, 512, 4096), F32, "sub_batch"),
        ((64, 512, 4096), BF16, "symmetric"),
        ((64, 512, 4096), BF16, "leave_one_out"),
        ((4096, 16, 768), F32, "sub_batch"),
        # Offsets of rows past 2^31 elements; then those of a state (4, S, E) as well.
        ((64, 4096, 8208), BF16, "sub_batch"),
        ((4, 67072, 8208), BF16, "sub_batch"),
    ):
        elements = shape[0] * shape[1] * shape[2]

        def sample(shape=shape, dtype=dtype, pairing=pairing):
            inputs = large_inputs(shape, device, dtype)
            return rule10(inputs, evaluate(inputs, pairing=pairing), pairing=pairing)

        past = ", more than 2^31 elements" if elements > 2**31 else ""
        yield Check(f"{shape}, {name_of(dtype)}, {pairing}{past}", elements, sample)


GROUPS = (pairings, dtypes, layouts, sizes, masks, extremes, large)


def by_rule10(
    name: str,
    shape: Shape,
    device: str,
    of_inputs: tuple[torch.dtype, ...] = FLOAT32,
    *,
    layout: str | None = None,
    pairing: str = "sub_batch",
    combine: bool = True,
    entry: str = TOTAL,
    estimator: str = "jensen",
    **making: float,
) -> Check:
    options = {"pairing": pairing, "combine": combine, "entry": entry, "estimator": estimator}

    def function() -> Outcome:
        inputs = small_inputs(shape, device, of_inputs, **making)
        if layout is not None:
            inputs = laid_out(inputs, layout)
        found = evaluate(inputs, **options)
        assert all(
            g.dtype == inputs[i].dtype for g, i in zip(found.gradients, FLOATING, strict=True)
        ), "a gradient has another dtype than its input"
        return rule10(inputs, found, **options)

    return Check(f"{shape} {name}", shape[0] * shape[1] * shape[2], function)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
