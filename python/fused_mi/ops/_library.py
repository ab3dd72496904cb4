"""The operators' namespace, `torch.ops.fused_mi`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = "fused_mi"
# One for each operator, where they outlive this module: who imports it again, replaces them.
_libraries: dict[str, torch.library.Library] = vars(torch.ops.fused_mi).setdefault("_libraries", {})


def define(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Register an operator `name(arguments) -> results`: one implementation for every device, which
    chooses the backend, and what tracing sees of it."""
    name = schema[: schema.index("(")]
    if name in _libraries:
        _libraries.pop(name)._destroy()
    library = _libraries[name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    operator: torch._ops.OpOverload = getattr(torch.ops.fused_mi, name).default
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _looping(operator), lib=library)
    return operator


def refuse_tangents(name: str, tensors: Iterable[Any]) -> None:
    """The public functions have forward derivatives; in an operator a tangent would be lost in
    silence.

    Raises:
        NotImplementedError: there is one.
    """
    if forward_ad._current_level >= 0:
        for t in tensors:
            if isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None:
                raise NotImplementedError(
                    f"{NAMESPACE}::{name} has no forward derivative; the public functions have"
                )


def _looping(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """A rule for `vmap`: the operator for one element of the batch after the other."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def element(i: int) -> Any:
            return operator(
                *(
                    a if dim is None or not isinstance(a, torch.Tensor) else a.select(dim, i)
                    for a, dim in zip(arguments, in_dims, strict=True)
                )
            )

        elements = [element(i) for i in range(info.batch_size)]
        if isinstance(elements[0], torch.Tensor):
            return torch.stack(elements), 0
        joined = [torch.stack(column) for column in zip(*elements, strict=True)]
        dims = [0] * len(joined)
        return (joined, dims) if isinstance(elements[0], list) else (tuple(joined), tuple(dims))

    return rule


def differentiate(
    operator: torch._ops.OpOverload,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Give an operator its gradient, for autograd and `torch.compile`; returns a function that
    works under the transforms of `torch.func` as well, which only know autograd functions."""
    library = _libraries[operator._schema.name.split("::")[1]]
    torch.library.register_autograd(operator, backward, setup_context=setup_context, lib=library)

    def forward(*arguments: Any) -> Any:
        results = operator(*arguments)
        # Autograd functions do not track the tensors of a list.
        return tuple(results) if isinstance(results, list) else results

    function = type(
        operator.name(),
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "generate_vmap_rule": True,
        },
    )

    def call(*arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return function.apply(*arguments)  # type: ignore[attr-defined]
        return operator(*arguments)

    return call
