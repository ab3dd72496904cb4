"""Which implementation serves an operator: the fastest usable one, or the one that was forced.

A backend is a package whose modules have the same names and functions in all backends: `estimators`
serves the operators `jensen` and `logsumexp`, and the losses of ranks and micro-batches; `pairs`
serves `distances`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple, overload

from torch import Tensor

from .. import _checks
from .._building_blocks import BuildingBlocks
from .._environment import Variable
from . import _cpu, _cuda, _triton

OPERATORS = ("jensen", "logsumexp", "distances", "variance", "ranks")
AUTOMATIC = ("triton", "cpu", "reference")  # the fastest first
BACKENDS = ("triton", "cpu", "cuda", "reference")  # cuda: when forced, it has not run on a GPU yet
VARIABLE = "FUSED_MI_BACKEND"
_variable = Variable(VARIABLE)
_PACKAGES = {
    "triton": "fused_mi.triton_kernels",
    "cuda": "fused_mi.cuda",
    "cpu": "fused_mi.cpu",
    "reference": "fused_mi.reference",
}

_MODULES = {
    "jensen": "estimators",
    "logsumexp": "estimators",
    "distances": "pairs",
    "variance": "variance",
    "ranks": "estimators",
}

_log = logging.getLogger("fused_mi")
_forced: str | None = None  # the last of _entered, which every operator reads
_entered: dict[object, str] = {}  # a key for each open `use_backend`, in the order of entry
_entering = threading.RLock()  # reentrant: garbage collection may close a generator at any point


class Backend(NamedTuple):
    """A backend, whether it can be used here at all, and why or why not."""

    name: str
    usable: bool
    reason: str


class Finding(NamedTuple):
    """A suspicious argument, what is suspicious, and what to do."""

    argument: str
    problem: str
    advice: str


class Choice(NamedTuple):
    """The backend that serves an operator, and why."""

    operator: str
    backend: str
    reason: str


def backends() -> list[Backend]:
    """Every backend: whether it is usable in this process, and the reason."""
    return [Backend(name, *_usable(name)) for name in BACKENDS]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every operator called inside; it raises where it cannot serve.

    Holds for the whole process, all other threads included: autograd runs backward passes in
    threads of its own. Of several open blocks, of whatever threads, the one entered last counts,
    until it is left; they may be left in any order. A backward pass goes to the backend of its
    forward pass; in a function that `torch.compile` compiled it chooses anew. Inside of such a
    function the block breaks the graph; put it around the call. Goes before the environment
    variable `FUSED_MI_BACKEND`. Functions without an operator are not affected.

    Raises:
        ValueError: no backend has this name.
    """
    _check(name, "use_backend")
    entry = object()
    try:
        with _entering:
            _entered[entry] = name
            _update()
        yield
    finally:
        with _entering:
            _entered.pop(entry, None)
            _update()


def _update() -> None:
    global _forced
    _forced = [None, *_entered.values()][-1]


@overload
def explain(*tensors: Tensor) -> list[Choice]: ...
@overload
def explain(*tensors: Tensor, check: bool, eps: float | None = None) -> list[Choice | Finding]: ...
def explain(
    *tensors: Tensor, check: bool = False, eps: float | None = None
) -> list[Choice] | list[Choice | Finding]:
    """Which backend would serve each operator for these tensors, and why: "forced", or the fastest
    and what spoke against those that would go before it.

    Args:
        tensors: on one device; to be checked, the first five arguments of
            `mutual_information_sub_batch` or of `gaussian_mixture_entropy`, in their order.
        check: look at the values as well, and append a `Finding` for each argument that the loss
            would take and its caller may not mean: values that are not finite, negative or tiny
            stds, swapped arguments, masks that leave nothing, noisy embeddings that are not what
            means and stds say, rows that are there twice, types without room for the noise. It
            waits for the device and takes a few times the memory of the tensors: for a first batch
            and for bug reports, not for every step.
        eps: the stabiliser, where the loss gets one; stds below its root are named.

    Raises:
        TypeError: no tensor; to be checked, not five of them, or as the loss.
        ValueError: devices differ; to be checked, as the loss.
        RuntimeError: a forced backend cannot serve one of the operators.
    """
    if not tensors:
        raise TypeError("tensors: expected at least one tensor, got none")
    named = {f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)}
    for name, tensor in named.items():
        _checks.tensor(name, tensor)
    _checks.one_device(named)
    choices = [_choose(operator, tensors[0].device.type, forced()) for operator in OPERATORS]
    if not _checks.flag("check", check):
        return choices
    from .._suspicions import findings  # here: what it needs is above the operators

    found: list[Choice | Finding] = [*choices, *findings(tensors, eps)]
    return found


def choose(operator: str, *tensors: Tensor) -> ModuleType:
    """The module that serves `operator` for these tensors.

    Raises:
        RuntimeError: a forced backend cannot serve it.
    """
    choice = _choose(operator, tensors[0].device.type, forced())
    return _module(choice.backend, operator)


def building_blocks(*tensors: Tensor) -> BuildingBlocks:
    """Those of the backend that serves ranks and micro-batches of these tensors; see `choose`."""
    found: BuildingBlocks = choose("ranks", *tensors).building_blocks
    return found


def forced() -> str | None:
    """The name of the forced backend, by `use_backend` or by the environment; None = automatic."""
    if _forced is not None:
        return _forced
    name = _variable.get()
    if name is not None:
        _check(name, VARIABLE)
    return name


def _check(name: str, argument: str) -> None:
    if name not in BACKENDS:
        raise ValueError(
            f"{argument}: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}"
        )


@functools.cache
def _module(backend: str, operator: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGES[backend]}.{_MODULES[operator]}")


@functools.cache
def _choose(operator: str, device: str, wanted: str | None) -> Choice:
    if wanted is not None:
        serves, reason = _serves(wanted, operator, device)
        if not serves:
            raise RuntimeError(
                f"backend {wanted!r} was forced and cannot serve {operator}: {reason}"
            )
        return Choice(operator, wanted, "forced")
    reasons = [f"the fastest that serves {device} tensors"]
    for name in AUTOMATIC:
        serves, reason = _serves(name, operator, device)
        if serves and name == "triton" and device == "cpu":
            serves, reason = False, "its interpreter is for tests: only when forced"
        if serves:
            break
        reasons.append(f"{name}: {reason}")
    because = "; ".join(reasons)
    if device == "cpu" and name == "reference":
        _cpu.warn_of_slowness(_cpu.usable()[1])
    _log.info("%s on %s is served by %s (%s)", operator, device, name, because)
    return Choice(operator, name, because)


_ANSWERS = {"triton": _triton, "cuda": _cuda, "cpu": _cpu}


def _usable(backend: str) -> tuple[bool, str]:
    if backend == "reference":
        return True, "plain torch, on any device"
    usable: tuple[bool, str] = _ANSWERS[backend].usable()
    return usable


def _serves(backend: str, operator: str, device: str) -> tuple[bool, str]:
    if backend == "reference":
        return _usable(backend)
    serves: tuple[bool, str] = _ANSWERS[backend].serves(operator, device)
    return serves
