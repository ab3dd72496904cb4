"""Gradients of the energies of all pairs: the differences once more, weighted by the upstream
gradients and added up over the other role.

The features lie across the lanes here, the rows of a gradient across the warps, and what is added
up in the registers of each thread. Differences are direct, never those of two large products: where
a sample is close to one component and far from the rest, a product would cancel.
"""

import triton
import triton.language as tl

from ._pairs_forward import inverse_root, times
from ._tiles import add_rows, cast, contributing, load, multiple, stride


@triton.jit
def _component(x, mu, stds, row, s, e, use, origin, eps, CAREFUL: tl.constexpr, ACC: tl.constexpr):
    """r = 1 / sqrt(v), and c r of components, 0 where not `use`; where CAREFUL sqrt(v), infinite
    where not `use`, and c."""
    centre = load(x, row, s, e, use, ACC) - origin
    if mu is not None:
        centre += load(mu, row, s, e, use, ACC)
    sigma = load(stds, row, s, e, use, ACC)
    sigma = tl.where(use, sigma, 1.0)
    root = inverse_root(sigma, eps, CAREFUL)
    if CAREFUL:
        return tl.where(use, root, float("inf")), tl.where(use, centre, 0.0), root
    else:
        return tl.where(use, root, 0.0), tl.where(use, centre * root, 0.0), root


@triton.jit
def _standardised(sample, root, centre, CAREFUL: tl.constexpr):
    """(y - c) / sqrt(v)"""
    if CAREFUL:
        return (sample - centre) / root
    else:
        return sample * root - centre


@triton.jit
def _pulled(upstream, z, CAREFUL: tl.constexpr):
    """Their product; an upstream gradient of 0 does not meet what is infinite."""
    if CAREFUL:
        return tl.where(upstream == 0, 0.0, upstream * z)
    else:
        return upstream * z


@triton.jit
def _slope_times(sigma, pull, eps, CAREFUL: tl.constexpr):
    """`sigma / (sigma^2 + eps)` times `pull`"""
    root = inverse_root(sigma, eps, CAREFUL)
    return times(sigma, root, CAREFUL) * times(pull, root, CAREFUL)


@triton.jit
def _beyond(value, inside):
    """Whether a value somewhere `inside` is infinite or NaN."""
    return tl.max(tl.max((inside & ~(tl.abs(value) < float("inf"))).to(tl.int32), 1), 0)


@triton.jit
def _roots_beyond(least, largest):
    """Whether inverse roots are out of the range of a regular call."""
    return tl.max(tl.max(((least < 2.0**-31) | (largest > 2.0**31)).to(tl.int32), 1), 0)


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E"),
        *("tiles_n", "tiles_e", "splits", "per_split", "to_start", "add"),
    ],
    do_not_specialize_on_alignment=["component_eps"],
)
def samples_gradient_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided, or None
    stds,  # (rows, S, E) strided
    component_eps,  # ()
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    shift,  # (S, E) in the dtype of x, see `shift_of`
    irregular,  # (1,) int32, becomes 1 where something is out of range; CAREFUL waits for it
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    tiles_n,
    tiles_e,
    pull,  # (PADDED M, PADDED N) strided ACC: upstream gradient of q, 0 outside
    d_y,  # (rows, S, E), written from row to_start on; (splits, N, S, E) of several splits
    splits,  # of the components: programs that share those of a tile of samples
    per_split,
    to_start,
    add,  # not 0: on top of what is there
    UNIT: tl.constexpr,  # divides E
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """`d_y_i = sum_l u_il (y_i - c_l) / v_l` of the samples' rows."""
    E = multiple(E, UNIT)
    first, stop, step = tl.program_id(0), tl.program_id(0) + 1, 1
    if CAREFUL:
        # Mostly nothing to do: few programs, which otherwise do the work of all.
        stop, step = tiles_n * tiles_e * S * splits, tl.num_programs(0)
        if tl.load(irregular) == 0:
            return
    for program in range(first, stop, step):
        tile_n, s = program % tiles_n, (program // tiles_n // tiles_e) % S
        split = program // tiles_n // tiles_e // S
        e = ((program // tiles_n) % tiles_e) * FEATURES + tl.arange(0, FEATURES)[None, :]
        n = tile_n * ROWS + tl.arange(0, ROWS)
        here_n = contributing(sample_active, n, s, S, N)
        total = tl.zeros((ROWS, FEATURES), ACC)
        eps = tl.load(component_eps).to(ACC)
        if tl.max(here_n.to(tl.int32), 0) > 0:
            origin = cast(tl.load(shift + s.to(tl.int64) * E + e, mask=e < E, other=0.0), ACC)
            use = here_n[:, None] & (e < E)
            row = sample_start + n[:, None]
            sample = load(y, row, s, e, use, ACC)
            sample = tl.where(use, sample - origin, 0.0)
            at_m = (split * per_split + tl.arange(0, SUMMED)).to(tl.int64)[:, None]
            at = pull[0] + at_m * stride(pull, 0) + n[None, :]
            least = tl.full((SUMMED, FEATURES), 1.0, ACC)
            largest = least
            for begin in range(split * per_split, min((split + 1) * per_split, M), SUMMED):
                m = begin + tl.arange(0, SUMMED)
                here_m = contributing(component_active, m, s, S, M)
                use_m, row_m = here_m[:, None] & (e < E), component_start + m[:, None]
                root, centre, found = _component(
                    x, mu, stds, row_m, s, e, use_m, origin, eps, CAREFUL, ACC
                )
                least, largest = tl.minimum(least, found), tl.maximum(largest, found)
                # Where a component lacks the position, its inverse root is 0 and so is the term.
                z = _standardised(sample[None, :, :], root[:, None, :], centre[:, None, :], CAREFUL)
                z = _pulled(tl.load(at)[:, :, None], z, CAREFUL)
                total += tl.sum(times(z, root[:, None, :], CAREFUL), 0)
                at += SUMMED * stride(pull, 0)
            total = tl.where(use, total, 0.0)
            if not CAREFUL:
                odd = tl.maximum(_roots_beyond(least, largest), _beyond(total, use))
                tl.store(irregular, 1, mask=odd > 0)
        row = to_start + split * N + n[:, None]
        add_rows(d_y, row, s, e, S, E, total, add, (n < N)[:, None] & (e < E))


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E", "tiles_m", "tiles_e", "add"),
    ],
    do_not_specialize_on_alignment=["component_eps", "own_eps"],
)
def components_gradient_kernel(
    y,  # (rows, S, E) strided
    x,  # (rows, S, E) strided
    mu,  # (rows, S, E) strided, or None
    stds,  # (rows, S, E) strided
    component_eps,  # (); this and what is of the components is None where they are no components
    sample_active,  # (N, S) uint8
    component_active,  # (M, S) uint8
    shift,  # (S, E) in the dtype of x, see `shift_of`
    irregular,  # (1,) int32, becomes 1 where something is out of range; CAREFUL waits for it
    sample_start,
    component_start,
    N,
    M,
    S,
    E,
    tiles_m,
    tiles_e,
    pull,  # (PADDED N, PADDED M) strided ACC: upstream gradient of q, 0 outside
    of_logs,  # (M, S) float64: upstream gradients of the log-determinants as components
    own_eps,  # () of the mixture in which these rows are samples, or None
    own_active,  # (M, S) uint8, where these rows are active as samples
    of_own,  # (M, S) float64: upstream gradients of the log-determinants as samples
    d_x,  # (rows, S, E), written; None where there is nothing to write
    d_mu,
    d_stds,
    add,  # not 0: on top of what is there
    UNIT: tl.constexpr,  # divides E
    CAREFUL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """`d_c_l = sum_i u_il (c_l - y_i) / v_l`, and the gradient of the stds of M rows in both roles;
    zeros where they lack a role."""
    E = multiple(E, UNIT)
    first, stop, step = tl.program_id(0), tl.program_id(0) + 1, 1
    if CAREFUL:
        # Mostly nothing to do: few programs, which otherwise do the work of all.
        stop, step = tiles_m * tiles_e * S, tl.num_programs(0)
        if tl.load(irregular) == 0:
            return
    for program in range(first, stop, step):
        tile_m, s = program % tiles_m, program // tiles_m // tiles_e
        e = ((program // tiles_m) % tiles_e) * FEATURES + tl.arange(0, FEATURES)[None, :]
        m = tile_m * ROWS + tl.arange(0, ROWS)
        inside = (m < M)[:, None] & (e < E)
        at_m = m.to(tl.int64) * S + s
        row = component_start + m[:, None]
        gradient_c = tl.zeros((ROWS, FEATURES), ACC)
        of_squares = tl.zeros((ROWS, FEATURES), ACC)
        here = tl.zeros((ROWS,), tl.int1)
        if component_eps is not None:
            here_m = contributing(component_active, m, s, S, M)
            here = here_m
            eps = tl.load(component_eps).to(ACC)
            if tl.max(here_m.to(tl.int32), 0) > 0:
                origin = cast(tl.load(shift + s.to(tl.int64) * E + e, mask=e < E, other=0.0), ACC)
                use = here_m[:, None] & (e < E)
                root, centre, found = _component(
                    x, mu, stds, row, s, e, use, origin, eps, CAREFUL, ACC
                )
                if not CAREFUL:
                    tl.store(irregular, 1, mask=_roots_beyond(found, found) > 0)
                of_centre = tl.zeros((ROWS, FEATURES), ACC)
                at = (
                    pull[0]
                    + tl.arange(0, SUMMED).to(tl.int64)[:, None] * stride(pull, 0)
                    + m[None, :]
                )
                for begin in range(0, N, SUMMED):
                    n = begin + tl.arange(0, SUMMED)
                    here_n = contributing(sample_active, n, s, S, N)
                    use_n = here_n[:, None] & (e < E)
                    at_n = sample_start + n[:, None]
                    sample = load(y, at_n, s, e, use_n, ACC)
                    sample = tl.where(use_n, sample - origin, 0.0)
                    of_pairs = tl.where(here_n[:, None], tl.load(at), 0.0)
                    z = _standardised(
                        sample[:, None, :], root[None, :, :], centre[None, :, :], CAREFUL
                    )
                    terms = _pulled(of_pairs[:, :, None], z, CAREFUL)
                    of_centre += tl.sum(terms, 0)
                    if CAREFUL:
                        terms = tl.where(terms == 0, 0.0, terms * z)
                        of_squares += tl.sum(terms, 0)
                    else:
                        of_squares += tl.sum(terms * z, 0)
                    at += SUMMED * stride(pull, 0)
                gradient_c = tl.where(use, -times(of_centre, root, CAREFUL), 0.0)
        add_rows(d_x, row, s, e, S, E, gradient_c, add, inside)
        add_rows(d_mu, row, s, e, S, E, gradient_c, add, inside)
        if d_stds is not None:
            gradient_stds = tl.zeros((ROWS, FEATURES), ACC)
            if own_eps is not None:
                here_own = contributing(own_active, m, s, S, M)
                here = here | here_own
            # Once more, from a cache: in registers it would cost the loop a quarter of its warps.
            use = here[:, None] & (e < E)
            sigma = load(stds, row, s, e, use, ACC)
            sigma = tl.where(use, sigma, 1.0)
            if component_eps is not None:
                logs = tl.load(of_logs + at_m, mask=m < M, other=0.0).to(ACC)[:, None]
                pull_l = _slope_times(sigma, logs - of_squares, eps, CAREFUL)
                gradient_stds = tl.where(here_m[:, None] & (e < E), pull_l, 0.0)
            if own_eps is not None:
                eps_own = tl.load(own_eps).to(ACC)
                own = tl.load(of_own + at_m, mask=m < M, other=0.0).to(ACC)[:, None]
                use_own = here_own[:, None] & (e < E)
                pull_own = _slope_times(sigma, own, eps_own, CAREFUL)
                gradient_stds += tl.where(use_own, pull_own, 0.0)
                if not CAREFUL:
                    root_own = tl.where(use_own, inverse_root(sigma, eps_own, CAREFUL), 1.0)
                    odd = _roots_beyond(root_own, root_own)
                    tl.store(irregular, 1, mask=odd > 0)
            add_rows(d_stds, row, s, e, S, E, gradient_stds, add, inside)
            gradient_c = gradient_stds
        if not CAREFUL:  # here, of one sum: anywhere else it costs registers or the loop's schedule
            odd = tl.sum(tl.sum(gradient_c, 1), 0)
            tl.store(irregular, 1, mask=~(tl.abs(odd) < float("inf")))
