"""What every operator shares: the eager path, the registered operator, and the plain formula.

- Eager tensors go straight to the backend, behind one autograd function.
- `torch.compile`, export, modes and subclasses see the registered operator `torch.ops.fused_mi.*`.
- Transforms of `torch.func` see an autograd function over it, and rules for `vmap`.
- Forward-mode derivatives, `torch.jit.trace` and derivatives of derivatives follow the plain
  formula, which is made of torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._batched import element_by_element, is_batched
from .._building_blocks import Gradients
from ._backends import choose
from ._library import define, differentiate, refuse_tangents

_DENSE = frozenset((Tensor, torch.nn.Parameter))
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_modes_active = torch._C._len_torch_dispatch_stack
_is_tracing = torch._C._is_tracing
_is_grad_enabled = torch.is_grad_enabled


class Quantity(NamedTuple):
    """What an operator computes. Its inputs are differentiable, its constants are not."""

    name: str
    served_as: str  # whose backend it has, see `choose`
    inputs: tuple[str, ...]  # names of tensors
    constants: tuple[str, ...]  # as in a schema, tensors first
    tensors: int  # how many of the constants are tensors, or None
    outputs: tuple[str, ...]  # names of tensors
    bundle: Callable[..., Any]  # the constants as the functions below take them: a tuple

    # (module of the backend, inputs, constants) -> (*outputs, state)
    forward: Callable[..., Any]
    # (module, gradients of outputs or None, inputs, constants, state, wanted)
    backward: Callable[..., Gradients]
    # (inputs, constants) -> (*outputs, state): empty tensors
    fake: Callable[..., Any]
    # (inputs, constants) -> outputs: in torch's own operators
    formula: Callable[..., Any]


def operator(q: Quantity) -> Callable[..., Any]:
    """Register `name` and `name_backward`; returns `(inputs, constants, first_only=False)` ->
    outputs, or the first of them."""
    last = len(q.outputs)
    operation, value, gradient = _register(q)
    eager = _eager(q, gradient)

    def call(inputs: Sequence[Tensor], constants: Any, first_only: bool = False) -> Any:
        if _is_compiling():
            of_formula = _transforms_active()
            found = q.formula(inputs, constants) if of_formula else operation(*inputs, *constants)
        elif forward_ad._current_level >= 0 or _is_tracing():
            found = q.formula(inputs, constants)
        elif _transforms_active():
            found = value(*inputs, *constants)
        elif _modes_active() or not _DENSE.issuperset(map(type, inputs)):
            found = operation(*inputs, *constants)
        elif _is_grad_enabled() and any([t.requires_grad for t in inputs]):  # noqa: C419, faster
            return eager(constants, first_only, *inputs)
        else:
            found = q.forward(choose(q.served_as, inputs[0]), inputs, constants)
        return found[0] if first_only else found[:last]

    return call


def _eager(q: Quantity, gradient: Callable[..., Any]) -> Callable[..., Any]:
    """From an autograd function straight to the backend, with nothing in between."""
    count, last, tensors = len(q.inputs), len(q.outputs), q.tensors
    nothing = (None,) * (2 + count)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, constants: Any, first_only: bool, *inputs: Tensor) -> Any:
            module = choose(q.served_as, inputs[0])
            *outputs, state = q.forward(module, inputs, constants)
            ctx.save_for_backward(*inputs, *constants[:tensors], state)
            ctx.module, ctx.options = module, constants[tensors:]
            ctx.set_materialize_grads(False)
            return outputs[0] if first_only else tuple(outputs)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> Any:
            given = [g for g in upstream if g is not None]
            if not given:
                return nothing
            saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
            upstream += (None,) * (last - len(upstream))
            inputs, state = saved[:count], saved[-1]
            constants = q.bundle(*saved[count:-1], *ctx.options)
            if _transforms_active():
                found = gradient(*upstream, *inputs, *constants, state, list(wanted))
                return None, None, *_scatter(iter(found), wanted)

            def pull(upstream: Sequence[Tensor | None]) -> Gradients:
                if _is_grad_enabled():  # create_graph
                    return _gradient_of_formula(q, upstream, inputs, constants, wanted)
                return q.backward(ctx.module, upstream, inputs, constants, state, wanted)

            if any(map(is_batched, given)):  # is_grads_batched
                return None, None, *element_by_element(pull, upstream)
            return None, None, *pull(upstream)

    Eager.__name__ = Eager.__qualname__ = q.name
    return Eager.apply


def _register(q: Quantity) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """The operator, and it and its gradient as functions that transforms can see through."""
    count, last, tensors = len(q.inputs), len(q.outputs), len(q.inputs) + q.tensors
    inputs = ", ".join(f"Tensor {name}" for name in q.inputs)
    outputs = ", ".join(f"Tensor {name}" for name in q.outputs)
    upstream = ", ".join(f"Tensor? of_{name}" for name in q.outputs)
    constants = ", ".join(q.constants)

    def forward(*arguments: Any) -> Any:
        given = arguments[:count]
        refuse_tangents(q.name, given)
        return q.forward(choose(q.served_as, given[0]), given, q.bundle(*arguments[count:]))

    def fake(*arguments: Any) -> Any:
        return q.fake(arguments[:count], q.bundle(*arguments[count:]))

    def backward(*arguments: Any) -> list[Tensor]:
        of_outputs, rest = arguments[:last], arguments[last:]
        given, constants = rest[:count], q.bundle(*rest[count:-2])
        found = q.backward(choose(q.served_as, given[0]), of_outputs, given, constants, *rest[-2:])
        return [g for g in found if g is not None]

    def backward_fake(*arguments: Any) -> list[Tensor]:
        given, wanted = arguments[last : last + count], arguments[-1]
        return [t.new_empty(t.shape) for t, needed in zip(given, wanted, strict=True) if needed]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output[last])
        ctx.set_materialize_grads(False)
        ctx.options = inputs[tensors:]
        ctx.save_for_backward(*inputs[:tensors], output[last])

    def pull_back(ctx: Any, *of_outputs: Any) -> tuple[Any, ...]:
        if not any(g is not None for g in of_outputs):
            return (None,) * (count + len(q.constants))
        *saved, state = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:count])
        found = gradient(*of_outputs[:last], *saved, *ctx.options, state, wanted)
        return *_scatter(iter(found), wanted), *(None,) * len(q.constants)

    def save_of_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *arguments, _, ctx.wanted = inputs
        ctx.options = arguments[last + tensors :]
        ctx.save_for_backward(*arguments[: last + tensors])

    def pull_back_gradient(ctx: Any, *of_gradients: Any) -> tuple[Any, ...]:
        values, masks = ctx.saved_tensors[: last + count], ctx.saved_tensors[last + count :]
        constants = q.bundle(*masks, *ctx.options)
        present = [t is not None for t in values]

        def plain(*values: Tensor) -> list[Tensor]:
            given = _scatter(iter(values), present)
            found = _gradient_of_formula(q, given[:last], given[last:], constants, ctx.wanted)
            return [g for g in found if g is not None]

        as_list = isinstance(of_gradients[0], (list, tuple))  # by an operator, not by a function
        pull = torch.func.vjp(plain, *(t for t in values if t is not None))[1]
        second = pull(list(of_gradients[0] if as_list else of_gradients))
        return *_scatter(iter(second), present), *(None,) * (len(q.constants) + 2)

    operation = define(
        f"{q.name}({inputs}, {constants}) -> ({outputs}, Tensor state)", forward, fake
    )
    operation_backward = define(
        f"{q.name}_backward({upstream}, {inputs}, {constants}, Tensor state, bool[] wanted)"
        " -> Tensor[]",
        backward,
        backward_fake,
    )
    value = differentiate(operation, save, pull_back)
    gradient = differentiate(operation_backward, save_of_gradient, pull_back_gradient)
    return operation, value, gradient


def _gradient_of_formula(
    q: Quantity,
    upstream: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    constants: Any,
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of the wanted inputs, themselves differentiable; the graph holds whole tensors."""
    chosen = [i for i, needed in enumerate(wanted) if needed]
    given = [k for k, tensor in enumerate(upstream) if tensor is not None]

    def of_chosen(*values: Tensor) -> tuple[Tensor, ...]:
        replaced = dict(zip(chosen, values, strict=True))
        outputs = q.formula([replaced.get(i, t) for i, t in enumerate(inputs)], constants)
        return tuple(outputs[k] for k in given)

    with torch.enable_grad():
        pull_back = torch.func.vjp(of_chosen, *(inputs[i] for i in chosen))[1]
        return _scatter(iter(pull_back(tuple(upstream[k] for k in given))), wanted)


def _scatter(found: Iterator[Any], wanted: Sequence[bool]) -> list[Any]:
    return [next(found) if needed else None for needed in wanted]
