"""How exact squared distances are that tensor cores could compute: emulated by rounding, on a CPU.

    python benchmarks/binaries/tensor_cores.py

Expanded, `sum_e (y - c)^2 / v = |a|^2 - 2 a.b + |b|^2` with `a, b` the standardised sample and
centre relative to the shift: a matrix product, whose operands are split into parts of fewer bits,
products and sums exact here (tensor cores round those as well). Beside it true differences in
float32. Errors are of the energies q (nats), and in units of eps * sum |terms|, of which rule 10 of
the tests allows 8 beside twice the error of naive float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {"TF32": 11, "bfloat16": 8}  # of a significand, the hidden one among them
FORMS = {
    "TF32, 1 product": ("TF32", 1),
    "TF32, 3 products": ("TF32", 2),
    "bfloat16, 3 products": ("bfloat16", 2),
    "bfloat16, 9 products": ("bfloat16", 3),
}


def rounded(value: Tensor, bits: int) -> Tensor:
    """float64 to `bits` bits, to nearest."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def split(value: Tensor, bits: int, parts: int) -> list[Tensor]:
    found = []
    for _ in range(parts):
        found.append(rounded(value, bits))
        value = value - found[-1]
    return found


def by_product(a: Tensor, b: Tensor, kind: str, parts: int) -> Tensor:
    """|a|^2 - 2 a.b + |b|^2, the product by parts, without those of the least parts where these
    are as small as what the last part lacks; norms, and what is added up, in float32."""
    of_a, of_b = split(a, BITS[kind], parts), split(b, BITS[kind], parts)
    kept = [(i, j) for i in range(parts) for j in range(parts) if parts == 3 or i + j < 2]
    dot = torch.stack([of_a[i] @ of_b[j].T for i, j in kept]).sum(0)
    norms = (a.square().sum(1).float()[:, None], b.square().sum(1).float()[None, :])
    return ((norms[0] + norms[1]) - 2 * dot.float()).double()


def by_difference(a: Tensor, b: Tensor) -> Tensor:
    """As the kernels do it, sums by blocks of 8 features."""
    total = torch.zeros(len(a), len(b))
    for begin in range(0, a.shape[1], 8):
        part = slice(begin, begin + 8)
        z = a[:, None, part].float() - b[None, :, part].float()
        total += z.square().sum(-1)
    return total.double()


def case(spread: float, features: int = 576) -> tuple[Tensor, Tensor]:
    """Standardised samples next to a component each, among components so far apart."""
    gen = torch.Generator().manual_seed(0)
    b = spread * torch.randn(256, features, generator=gen, dtype=torch.float64)
    a = b[:64] + torch.randn(64, features, generator=gen, dtype=torch.float64)
    return a.float().double(), b.float().double()


def main() -> None:
    eps = torch.finfo(torch.float32).eps
    print("spread of the centres in sigmas; error of q of the own component: nats, eps sum |terms|")
    for spread in (1.0, 2.0, 4.0, 10.0, 100.0):
        a, b = case(spread)
        true = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        own = torch.arange(len(a))
        found = {"true differences": by_difference(a, b)}
        found |= {name: by_product(a, b, *form) for name, form in FORMS.items()}
        for name, squares in found.items():
            error = ((squares - true)[own, own] / 2).abs().max().item()
            floors = error / (eps * true[own, own].min().item() / 2)
            print(f"{spread:6.0f}  {name:22s} {error:9.1e} {floors:11.1f}")


if __name__ == "__main__":
    main()
