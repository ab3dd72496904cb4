"""Gradients of the energies where a warp holds all components: both roles from one difference.

A program has one position and a feature of each lane, or some of them; the components stay in the
registers of its threads, and the samples pass by. What is summed over components stays within a
thread, what is summed over samples in its registers: nothing crosses the shared memory, there is no
barrier, and every input is read once.
"""

import triton
import triton.language as tl

from ._pairs_backward import component_of, roots_beyond, stds_gradient
from ._tiles import cast, contributing, corner, multiple, store_rows, stride


@triton.jit(
    do_not_specialize=["sample_start", "component_start", "N", "M", "S", "E", "tiles_e"],
    do_not_specialize_on_alignment=["component_eps", "own_eps"],
)
def few_gradient_kernel(
    y,  # up to `E` as in `components_gradient_kernel`
    x,
    mu,
    stds,
    component_eps,
    sample_active,
    component_active,
    shift,
    irregular,
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    tiles_e,
    pull,  # (PADDED N, PADDED M) strided ACC: upstream gradient of q, 0 outside
    of_logs,  # up to `d_stds` as there
    own_eps,
    own_active,
    of_own,
    d_x,
    d_mu,
    d_stds,
    d_y,  # (rows, S, E), written in the rows of the samples
    UNIT: tl.constexpr,  # divides E
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The gradients of `samples_gradient_kernel` and `components_gradient_kernel`, M <= ROWS."""
    E = multiple(E, UNIT)
    program = tl.program_id(0)
    s = program // tiles_e
    feature = (program % tiles_e) * FEATURES + tl.arange(0, FEATURES)
    e = tl.max_contiguous(feature, VECTOR)[None, :]
    m = tl.arange(0, ROWS)
    here_m = contributing(component_active, m, s, S, M)
    some = tl.max(here_m.to(tl.int32), 0) > 0
    use = here_m[:, None] & (e < E)
    eps = tl.load(component_eps).to(ACC)
    origin = tl.load(shift + s.to(tl.int64) * E + e, mask=some & (e < E), other=0.0)
    origin = cast(origin, ACC)
    row_m = component_start + m[:, None]
    root, centre, found = component_of(x, mu, stds, row_m, s, e, use, origin, eps, False, ACC)
    tl.store(irregular, 1, mask=roots_beyond(found, found) > 0)
    of_centre = tl.zeros((ROWS, FEATURES), ACC)
    of_squares = tl.zeros((ROWS, FEATURES), ACC)
    seen = tl.zeros((1, FEATURES), ACC)

    # One sample, and whether the next one contributes, are on their way while one is computed.
    flag = sample_active + s
    row_n = tl.zeros((1, 1), tl.int32) + sample_start
    next_here = (tl.load(flag) != 0) & some
    of_y = tl.load(corner(y, row_n, s, e), mask=next_here & (e < E), other=0.0)
    after = (tl.load(flag + S, mask=N > 1, other=0) != 0) & some
    at = pull[0] + m
    for n in range(0, N):
        here, sample = next_here, cast(of_y, ACC) - origin
        next_here = after
        of_y = tl.load(corner(y, row_n + (n + 1), s, e), mask=next_here & (e < E), other=0.0)
        flag += S
        after = (tl.load(flag + S, mask=n + 2 < N, other=0) != 0) & some
        gradient_y = tl.zeros((1, FEATURES), ACC)
        if here:
            z = sample * root - centre
            pulled = tl.load(at)[:, None] * z
            of_centre += pulled
            of_squares += pulled * z
            gradient_y = tl.sum(pulled * root, 0)[None, :]
        seen += tl.abs(gradient_y)
        store_rows(d_y, row_n + n, s, e, S, E, gradient_y, e < E)
        at += stride(pull, 0)

    inside = (m < M)[:, None] & (e < E)
    gradient_c = tl.where(use, -(of_centre * root), 0.0)
    store_rows(d_x, row_m, s, e, S, E, gradient_c, inside)
    store_rows(d_mu, row_m, s, e, S, E, gradient_c, inside)
    if d_stds is not None:
        of_component = component_eps, eps, here_m, of_logs, of_squares
        of_sample = own_eps, own_active, of_own
        rows = m, M, row_m
        gradient_c = stds_gradient(
            stds, of_component, of_sample, irregular, rows, s, S, e, E, False, ACC
        )
        store_rows(d_stds, row_m, s, e, S, E, gradient_c, inside)
    odd = tl.sum(tl.sum(gradient_c, 1), 0) + tl.sum(tl.sum(seen, 1), 0)
    tl.store(irregular, 1, mask=~(tl.abs(odd) < float("inf")))
