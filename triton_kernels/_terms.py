"""From the sums of all programs to the loss and its terms, and back: one program each."""

import triton
import triton.language as tl


@triton.jit
def _kept(header, at, eps):
    if eps is None:
        return header
    else:
        return tl.where(at, tl.load(eps).to(tl.float64), header)


@triton.jit
def sums_of(partial_sums, part, BLOCK: tl.constexpr):
    """Of q, g and k, of the programs from the first to the end of `part`."""
    q = tl.zeros((BLOCK,), tl.float64)
    g = tl.zeros((BLOCK,), tl.float64)
    k = tl.zeros((BLOCK,), tl.float64)
    for begin in range(part[0], part[1], BLOCK):
        i = begin + tl.arange(0, BLOCK)
        parts, inside = partial_sums + i.to(tl.int64) * 3, i < part[1]
        q += tl.load(parts, mask=inside, other=0.0)
        g += tl.load(parts + 1, mask=inside, other=0.0)
        k += tl.load(parts + 2, mask=inside, other=0.0)
    return tl.sum(q, 0), tl.sum(g, 0), tl.sum(k, 0)


@triton.jit(
    do_not_specialize=["programs", "divisor"],
    do_not_specialize_on_alignment=["sums", "component_eps", "sample_eps", "total", "terms"],
)
def reduce_kernel(
    partial_sums,  # (MIXTURES, programs, 3) float64: of q, g and k, times 2
    sums,  # (MIXTURES, 3) float64
    component_eps,  # () of the first mixture
    other_component_eps,  # () of the second, or None
    sample_eps,  # (), or None
    other_sample_eps,
    header,  # (HEADER,) of a state; it, `total` and `terms` are None where sums are all
    total,  # () in T
    terms,  # (6,) in T
    programs,
    divisor,
    MIXTURES: tl.constexpr,
    HEADER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums; the terms in the order of `TERMS`; the stabilisers go into the header."""
    of_q = tl.zeros((), tl.float64)
    of_g = tl.zeros((), tl.float64)
    of_k = tl.zeros((), tl.float64)
    for d in tl.static_range(MIXTURES):
        q, g, k = sums_of(partial_sums + d * programs.to(tl.int64) * 3, (0, programs), BLOCK)
        q, g, k = q / 2, g / 2, k / 2
        tl.store(sums + 3 * d, q)
        tl.store(sums + 3 * d + 1, g)
        tl.store(sums + 3 * d + 2, k)
        of_q, of_g, of_k = of_q + q, of_g + g, of_k + k
    if total is not None:
        i = tl.arange(0, HEADER)
        kept = tl.zeros((HEADER,), tl.float64)
        kept = _kept(kept, i == 0, component_eps)
        kept = _kept(kept, i == 1, other_component_eps)
        kept = _kept(kept, i == MIXTURES, sample_eps)
        kept = _kept(kept, i == MIXTURES + 1, other_sample_eps)
        tl.store(header + i, kept.to(header.dtype.element_ty))
        pairs = divisor.to(tl.float64)
        q, g, k = of_q / pairs, of_g / pairs, of_k / pairs
        tl.store(total, (q + g - k).to(total.dtype.element_ty))
        tl.store(terms, (q + g - k).to(terms.dtype.element_ty))
        tl.store(terms + 1, q.to(terms.dtype.element_ty))
        tl.store(terms + 2, g.to(terms.dtype.element_ty))
        tl.store(terms + 3, tl.zeros((), tl.float32).to(terms.dtype.element_ty))
        tl.store(terms + 4, (q + g).to(terms.dtype.element_ty))
        tl.store(terms + 5, (-k).to(terms.dtype.element_ty))


@triton.jit
def _of_terms(of_terms, has_terms, i: tl.constexpr, stride):
    return tl.load(of_terms + i * stride, mask=has_terms != 0, other=0.0).to(tl.float64)


@triton.jit
def upstream_of(upstream, loss):
    """Gradients of the sums of q, g and k, in float64.

    Args:
        upstream: (3,) float64, or None: they come from the gradients of the loss and its terms.
        loss: these, () and (6,); whether there are any; stride of the terms; divisor of the sums.
    """
    if upstream is not None:
        return tl.load(upstream), tl.load(upstream + 1), tl.load(upstream + 2)
    else:
        of_total, of_terms, has_total, has_terms, stride, divisor = loss
        total = tl.load(of_total, mask=has_total != 0, other=0.0).to(tl.float64)
        total += _of_terms(of_terms, has_terms, 0, stride)
        entropy = total + _of_terms(of_terms, has_terms, 4, stride)
        pairs = 1.0 / divisor.to(tl.float64)
        return (
            (entropy + _of_terms(of_terms, has_terms, 1, stride)) * pairs,
            (entropy + _of_terms(of_terms, has_terms, 2, stride)) * pairs,
            -(total + _of_terms(of_terms, has_terms, 5, stride)) * pairs,
        )
