"""From the sums over all pairs to the loss and its terms, and back: one program each."""

import triton
import triton.language as tl


@triton.jit
def _kept(header, at, eps):
    if eps is None:
        return header
    else:
        return tl.where(at, tl.load(eps).to(tl.float64), header)


@triton.jit(
    do_not_specialize=["divisor"],
    do_not_specialize_on_alignment=["sums", "component_eps", "sample_eps", "total", "terms"],
)
def jensen_terms_kernel(
    sums,  # (MIXTURES, 3) float64: of q, g and k
    component_eps,  # () of the first mixture
    other_component_eps,  # () of the second, or None
    sample_eps,  # (), or None
    other_sample_eps,
    state,  # its header, (HEADER,)
    total,  # () in T
    terms,  # (6,) in T
    divisor,
    MIXTURES: tl.constexpr,
    HEADER: tl.constexpr,
):
    """The terms in the order of `TERMS`; the stabilisers go into the header of the state."""
    i = tl.arange(0, HEADER)
    header = tl.zeros((HEADER,), tl.float64)
    header = _kept(header, i == 0, component_eps)
    header = _kept(header, i == 1, other_component_eps)
    header = _kept(header, i == MIXTURES, sample_eps)
    header = _kept(header, i == MIXTURES + 1, other_sample_eps)
    tl.store(state + i, header.to(state.dtype.element_ty))
    q, g, k = tl.load(sums), tl.load(sums + 1), tl.load(sums + 2)
    if MIXTURES == 2:
        q += tl.load(sums + 3)
        g += tl.load(sums + 4)
        k += tl.load(sums + 5)
    pairs = divisor.to(tl.float64)
    q, g, k = q / pairs, g / pairs, k / pairs
    tl.store(total, (q + g - k).to(total.dtype.element_ty))
    tl.store(terms, (q + g - k).to(terms.dtype.element_ty))
    tl.store(terms + 1, q.to(terms.dtype.element_ty))
    tl.store(terms + 2, g.to(terms.dtype.element_ty))
    tl.store(terms + 3, tl.zeros((), tl.float32).to(terms.dtype.element_ty))
    tl.store(terms + 4, (q + g).to(terms.dtype.element_ty))
    tl.store(terms + 5, (-k).to(terms.dtype.element_ty))


@triton.jit
def _of_term(of_terms, i: tl.constexpr, stride):
    if of_terms is None:
        return tl.zeros((), tl.float64)
    else:
        return tl.load(of_terms + i * stride).to(tl.float64)


@triton.jit(
    do_not_specialize=["divisor", "stride"],
    do_not_specialize_on_alignment=["of_total", "of_terms"],
)
def jensen_upstream_kernel(
    of_total,  # () in T, or None
    of_terms,  # (6,) in T, or None
    upstream,  # (MIXTURES, 3) float64: gradients of the sums of q, g and k
    stride,
    divisor,
    MIXTURES: tl.constexpr,
):
    total = _of_term(of_total, 0, stride) + _of_term(of_terms, 0, stride)
    entropy = _of_term(of_terms, 4, stride)
    pairs = divisor.to(tl.float64)
    of_q = (total + entropy + _of_term(of_terms, 1, stride)) / pairs
    of_g = (total + entropy + _of_term(of_terms, 2, stride)) / pairs
    of_k = -(total + _of_term(of_terms, 5, stride)) / pairs
    for d in tl.static_range(MIXTURES):
        tl.store(upstream + 3 * d, of_q)
        tl.store(upstream + 3 * d + 1, of_g)
        tl.store(upstream + 3 * d + 2, of_k)
