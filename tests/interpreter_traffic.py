"""Counts what kernels load and store in Triton's interpreter: each element of each tensor.

`TRITON_INTERPRET=1` must be set before Triton is imported.
"""

import contextlib
import itertools
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder


class Touched:
    """Loads and stores of some tensors, by element; lanes that are masked out do not count."""

    def __init__(self, tensors):
        self._spans = {}
        for tensor in tensors:
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            elements = 1 + sum((size - 1) * stride for size, stride in steps)
            counts = np.zeros((2, elements if tensor.numel() else 0), dtype=np.int64)
            # The same tensor in two arguments is one span; overlapping views of one are refused.
            self._spans.setdefault((tensor.data_ptr(), elements, tensor.element_size()), counts)
        ends = sorted((start, start + n * size) for start, n, size in self._spans if n)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))

    def loads(self, tensor):
        """How often each element was loaded: int64, of the shape of `tensor`."""
        return self._of(tensor, 0)

    def stores(self, tensor):
        return self._of(tensor, 1)

    def _of(self, tensor, kind):
        key = next(k for k in self._spans if k[0] == tensor.data_ptr() and k[1])
        counts = torch.from_numpy(self._spans[key][kind])
        return counts.as_strided(tensor.shape, tensor.stride())

    def count(self, kind, pointers, mask):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        active = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        addresses = pointers.data[active].astype(np.int64)
        left = addresses.size
        for (start, elements, element_size), counts in self._spans.items():
            inside = addresses[(addresses >= start) & (addresses < start + elements * element_size)]
            if inside.size:
                index, rest = np.divmod(inside - start, element_size)
                assert element_size == size and not rest.any(), "an element in part"
                np.add.at(counts[kind], index, 1)
                left -= inside.size
        assert left == 0, "an access outside of every tensor"


@contextlib.contextmanager
def touched(*tensors):
    """Counts accesses inside; everything that the kernels touch must be among the tensors."""
    counts = Touched([t for t in tensors if isinstance(t, torch.Tensor)])
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def counted_load(pointers, mask, *rest, **options):
        counts.count(0, pointers, mask)
        return load(pointers, mask, *rest, **options)

    def counted_store(pointers, value, mask, *rest, **options):
        counts.count(1, pointers, mask)
        return store(pointers, value, mask, *rest, **options)

    # Accesses without a mask go through these two as well.
    with contextlib.ExitStack() as patches:
        for name, function in (
            ("create_masked_load", counted_load),
            ("create_masked_store", counted_store),
            ("create_atomic_rmw", _refused),
            ("create_atomic_cas", _refused),
        ):
            patches.enter_context(mock.patch.object(interpreter_builder, name, function))
        yield counts


def _refused(*_, **__):
    raise AssertionError("an atomic operation")
