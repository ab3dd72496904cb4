"""What no implementation can avoid: bytes that move and operations that are computed."""

from .cases import Case

# Operations on an element by the moments: of a sample and of its partner, its own stds included
# (see docs/benchmarks.md); and for each pair and feature by the differences: two multiply-adds
# forward, then one for each of the gradients of y, of c and of the stds, and the difference anew.
_MOMENTS = {"fwd": 48, "bwd": 43}
_PAIRS = {"fwd": 4, "bwd": 8}


def bytes_moved(case: Case) -> dict[str, float]:
    """By mode, where the batch does not fit into a cache: eps and each pass read what they need of
    the active positions once, and every wanted gradient is written once, zeros included.

    In tensors of half a batch, for "sub_batch": 2 + 5, then 5 and two for each gradient.
    """
    half = case.elements / 2 * case.itemsize
    whole = case.pairing != "sub_batch"  # every row is sample and component
    active = case.active / case.S * half
    stds = 2 if whole or case.information else 1
    inputs = (6 if whole else 3) + stds
    forward = (stds + inputs) * active
    backward = inputs * active + 2 * len(case.wanted) * half
    return _with_both(forward, backward)


def operations(case: Case) -> dict[str, float]:
    """By mode: those of the formula; a division or a logarithm counts as one."""
    if case.estimator == "jensen":
        units = case.active / case.S * case.elements / (2 if case.pairing == "sub_batch" else 1)
        table = _MOMENTS
    else:
        directions = 2 if case.pairing == "symmetric" else 1
        share = (case.active / case.S) ** 2
        units = share * directions * case.samples * case.components * case.S * case.E
        table = _PAIRS
    return _with_both(table["fwd"] * units, table["bwd"] * units)


def modes(case: Case) -> tuple[str, ...]:
    return ("fwd", "bwd", "both") if case.wanted else ("fwd",)


def _with_both(forward: float, backward: float) -> dict[str, float]:
    return {"fwd": forward, "bwd": backward, "both": forward + backward}
