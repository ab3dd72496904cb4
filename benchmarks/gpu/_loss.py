"""One way to make inputs, to lay them out in memory, and to run the loss on them.

Inputs are (means, stds, mask, clean, noisy), in the argument order of the public function: the mask
(B, S) bool, the others (B, S, E).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import fused_mi
import torch
from cases import FLOATING, MASK, mi_inputs
from torch import Tensor

Inputs = list[Tensor]
Shape = tuple[int, int, int]

FLOAT32 = (torch.float32,) * 4
"""dtypes of means, stds, clean and noisy."""


class Evaluation(NamedTuple):
    value: Tensor
    gradients: tuple[Tensor, ...]  # of means, stds, clean, noisy
    terms: dict[str, Tensor]  # what the argument `losses` received

    def same_bits(self, other: "Evaluation") -> bool:
        pairs = zip((self.value, *self.gradients), (other.value, *other.gradients), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    @property
    def finite(self) -> bool:
        return all(t.isfinite().all().item() for t in (self.value, *self.gradients))

    @property
    def has_nan(self) -> bool:
        return any(t.isnan().any().item() for t in (self.value, *self.gradients))


def small_inputs(
    shape: Shape, device: str, dtypes: Sequence[torch.dtype] = FLOAT32, **options: Any
) -> Inputs:
    """As the tests make them, in float64 on the host. The least stds of either half, and with them
    eps, lie at position 0 and feature 0."""
    inputs = mi_inputs(*shape, **options)
    for index, dtype in zip(FLOATING, dtypes, strict=True):
        inputs[index] = inputs[index].to(dtype)
    return [t.to(device) for t in inputs]


def large_inputs(
    shape: Shape, device: str, dtype: torch.dtype, density: float = 0.9, seed: int = 0
) -> Inputs:
    """The same kind of inputs, made on the device, without a temporary of their size."""
    generator = torch.Generator(device).manual_seed(seed)
    empty = [torch.empty(shape, dtype=dtype, device=device) for _ in range(4)]
    means, stds, clean, noisy = empty
    means.normal_(generator=generator).mul_(0.3)
    stds.uniform_(0.5, 1.5, generator=generator)
    stds[:, 0, 0] = 0.4
    clean.normal_(generator=generator)
    noisy.normal_(generator=generator).mul_(stds).add_(means).add_(clean)
    mask = torch.rand(shape[:2], generator=generator, device=device) < density
    mask[:, 0] = True
    return [means, stds, mask, clean, noisy]


def evaluate(
    inputs: Inputs,
    *,
    backend: str = "triton",
    entry: str | None = None,
    combine: bool = True,
    scale: float = 1.0,
    **options: Any,
) -> Evaluation:
    """The loss and its four gradients, both on one backend.

    Args:
        entry: of `losses`, which is evaluated instead of the total.
        scale: the gradient that comes from above.
        options: keyword arguments of the public function, the pairing for example.
    """
    leaves = leaves_of(inputs)
    terms: dict[str, Tensor] = {}
    with fused_mi.use_backend(backend):
        total = fused_mi.mutual_information_sub_batch(*leaves, combine, terms, **options)
        value = total if entry is None else terms[entry]
        gradients = torch.autograd.grad(scale * value, [leaves[i] for i in FLOATING])
    return Evaluation(value.detach(), gradients, {k: t.detach() for k, t in terms.items()})


def terms_without_gradients(
    inputs: Inputs, *, backend: str = "triton", combine: bool = True, **options: Any
) -> dict[str, float]:
    """Every entry of `losses`, the total among them, in nats."""
    terms: dict[str, Tensor] = {}
    with torch.no_grad(), fused_mi.use_backend(backend):
        fused_mi.mutual_information_sub_batch(*inputs, combine, terms, **options)
    return {name: term.item() for name, term in terms.items()}


def leaves_of(inputs: Inputs) -> Inputs:
    """The same memory as tensors of their own that want gradients."""
    return [t.detach().requires_grad_(i != MASK) for i, t in enumerate(inputs)]


def _poisoned(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory that must not be read: NaN, and True in masks."""
    return torch.full(tuple(shape), torch.nan if like.is_floating_point() else 1).to(like)


def _transposed(t: Tensor) -> Tensor:
    order = list(range(t.dim()))[::-1]
    return t.permute(order).contiguous().permute(order)


def _sliced(t: Tensor) -> Tensor:
    """In the middle of a larger tensor: no start is aligned to 16 bytes."""
    inside = tuple(slice(1, 1 + size) for size in t.shape)
    storage = _poisoned([size + 2 for size in t.shape], t)
    storage[inside] = t
    return storage[inside]


def _every_other(t: Tensor) -> Tensor:
    storage = _poisoned((*t.shape, 2), t)
    storage[..., 1] = t
    return storage[..., 1]


def _expanded(t: Tensor) -> Tensor:
    """One row for the whole batch, stride 0."""
    return t[:1].expand(t.shape)


_ALL = (0, 1, 2, 3, 4)
LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Sequence[int]]] = {
    "transposed": (_transposed, _ALL),
    "sliced": (_sliced, _ALL),
    "every other": (_every_other, _ALL),
    "expanded means, stds, mask": (_expanded, (0, 1, MASK)),
}
"""By name: how a tensor is laid out, and which of the inputs are."""


def laid_out(inputs: Inputs, layout: str) -> Inputs:
    """The inputs in another layout; values stay, but for expanded ones."""
    change, of = LAYOUTS[layout]
    return [change(t) if i in of else t for i, t in enumerate(inputs)]
