"""The loop over rows: moments of a range of rows, and the logs of their variances.

A tile has 2 x 2 x ROWS x FEATURES elements. The first two axes are a group of four rows, which stay
in the registers of one thread: their mean comes first, then the squares of what deviates from it,
and one merge adds the group to what was found before (Chan, Golub & LeVeque 1979). Each of the ROWS
is a stream of such groups. Deviations are measured from one shift, the first contributing row, in
all streams, splits and the backward pass.

Where all rows contribute, nothing is selected. Elsewhere what does not contribute is not loaded: it
is 0, with a weight of 0 and a variance of 1.
"""

import triton
import triton.language as tl

from ._instructions import log2, reciprocal
from ._tiles import cast, load_mask, stride

GROUP = tl.constexpr(4)


@triton.jit
def _sum(group):
    return tl.sum(tl.sum(group, 0), 0)


@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def inverse(weight):
    """1 / weight, of 0 something finite: weights are variances or inverse ones, in their range."""
    LEAST: tl.constexpr = 2.0**-100 if weight.dtype == tl.float32 else 2.0**-1000
    return reciprocal(tl.maximum(weight, LEAST))


@triton.jit
def merge(weight, mean, m2, more, more_mean, more_m2):
    """The moments of two sets of rows as those of their union."""
    total = weight + more
    share = more * inverse(total)
    step = more_mean - mean
    return total, mean + share * step, (m2 + more_m2) + ((weight * share) * step) * step


@triton.jit
def merge_streams(weight, mean, m2):
    """Moments (ROWS, FEATURES) of streams as those of their union (FEATURES,)."""
    total = tl.sum(weight, 0)
    merged = tl.sum(weight * mean, 0) * inverse(total)
    deviation = mean - merged[None, :]
    # In this order no stream of weight 0 becomes 0 * inf.
    m2 = tl.sum(m2 + (weight * deviation) * deviation, 0)
    NARROW: tl.constexpr = mean.dtype == tl.float32
    if NARROW:  # what the mean lacks by rounding counts where one stream has most of the weight
        merged += tl.sum(weight * deviation, 0) * inverse(total)
    return total, merged, m2


@triton.jit
def load_rows(tensor, row, s, local, e, use, ACC: tl.constexpr):
    """A group at `row`, see `_tiles.load`: what changes in the loop is a scalar."""
    of_row = stride(tensor, 0)
    base = tensor[0] + row.to(tl.int64) * of_row + s.to(tl.int64) * stride(tensor, 1)
    at = base + (local.to(tl.int64) * of_row + e.to(tl.int64) * tensor[3])
    if use is None:
        return cast(tl.load(at), ACC)
    else:
        return cast(tl.load(at, mask=use, other=0.0), ACC)


@triton.jit
def load_centres(x, mu, x_shift, mu_shift, row, s, local, e, use, here, ACC: tl.constexpr):
    """x + mu of a group, each relative to its shift."""
    x_rows = load_rows(x, row, s, local, e, use, ACC)
    return centres(x_rows, load_rows(mu, row, s, local, e, use, ACC), x_shift, mu_shift, here)


@triton.jit
def centres(x, mu, x_shift, mu_shift, here):
    """Of rows that are loaded."""
    return (x - where(here, x_shift)) + (mu - where(here, mu_shift))


@triton.jit
def where(here, value):
    """`value` in rows that are `here`, 0 elsewhere; None: all are."""
    if here is None:
        return value
    else:
        return here.to(value.dtype) * value


@triton.jit
def variance(sigma, eps, here):
    if here is None:
        return sigma * sigma + eps
    else:
        return sigma * sigma + tl.where(here, eps, 1.0)


@triton.jit
def _count(n, here):
    """How many rows of a group of each of the streams (ROWS, 1) contribute."""
    if here is None:
        return tl.zeros_like(n) + GROUP
    else:
        return _sum(here.to(n.dtype))


@triton.jit
def samples_of(nobody, y, here):
    """n, mean and m2 of a group; `nobody` is the n of no rows."""
    more = _count(nobody, here)
    if here is None:
        mean_y = _sum(y) * (1.0 / GROUP)
    else:
        mean_y = _sum(y) * reciprocal(tl.maximum(more, 1.0))
    deviation = y - where(here, mean_y[None, None])
    return more, mean_y, _sum(deviation * deviation)


@triton.jit
def _add_samples(found, y, here):
    n, mean, m2 = found
    more, more_mean, more_m2 = samples_of(n, y, here)
    return merge(n, mean, m2, more, more_mean, more_m2)


@triton.jit
def components_of(c, p):
    """Weight, mean and m2 of a group of the weights `p`."""
    weight = _sum(p)
    mean_c = _sum(p * c) * inverse(weight)
    deviation = c - mean_c[None, None]
    return weight, mean_c, _sum((p * deviation) * deviation)


@triton.jit
def _add_components(found, c, v, here):
    weight, mean, m2 = found
    more, more_mean, more_m2 = components_of(c, where(here, reciprocal(v)))
    return merge(weight, mean, m2, more, more_mean, more_m2)


@triton.jit
def logs_of(nobody, v, here):
    """Of products of two variances: half as many logarithms. How many they are, log2 v, ends."""
    total = tl.sum(log2(tl.reduce(v, 0, _times)), 0)
    return _count(nobody, here), total, tl.min(tl.min(v, 0), 0), tl.max(tl.max(v, 0), 0)


@triton.jit
def _add_logs(found, v, here):
    count, total, least, largest = found
    more, of_more, of_least, of_largest = logs_of(count, v, here)
    least, largest = tl.minimum(least, of_least), tl.maximum(largest, of_largest)
    return count + more, total + of_more, least, largest


@triton.jit
def _add_group(
    found,
    tensors,
    shifts,
    eps,
    at,
    here_i,
    here_l,
    inside,
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,
    ACC: tl.constexpr,
):
    """The rows at `at`; `here` and `inside` are None where all of them and of the features are."""
    samples, components, sample_logs, component_logs = found
    y, x, mu, stds = tensors
    y_shift, x_shift, mu_shift = shifts  # (FEATURES,)
    row, s, local, e = at
    use_i = here_i if here_i is None else here_i & inside
    use_l = here_l if here_l is None else here_l & inside
    APART: tl.constexpr = y_shift is not None and x_shift is not None and OWN_STDS and not SHARED
    if x_shift is not None:
        centre = load_centres(x, mu, x_shift, mu_shift, row, s, local, e, use_l, here_l, ACC)
    sigma_i = None
    sigma_l = None
    if APART:
        sigma = load_rows(stds, row, s, local, e, use_i if use_i is None else use_i | use_l, ACC)
        sigma_i = sigma if use_i is None else tl.where(use_i, sigma, 0.0)
        sigma_l = sigma if use_l is None else tl.where(use_l, sigma, 0.0)
    elif x_shift is not None:
        sigma_l = load_rows(stds, row, s, local, e, use_l, ACC)
    elif OWN_STDS:
        sigma_i = load_rows(stds, row, s, local, e, use_i, ACC)
    if sigma_l is not None:
        v = variance(sigma_l, eps[1], here_l)
        component_logs = _add_logs(component_logs, v, here_l)
        components = _add_components(components, centre, v, here_l)
    if sigma_i is not None:
        v = variance(sigma_i, eps[0], here_i)
        sample_logs = _add_logs(sample_logs, v, here_i)
    if y_shift is not None:
        value = load_rows(y, row, s, local, e, use_i, ACC) - where(here_i, y_shift)
        samples = _add_samples(samples, value, here_i)
    return samples, components, sample_logs, component_logs


@triton.jit
def careful_log2(sigma, eps):
    """Of a variance that may be out of range: it is scaled by its own size."""
    NARROW: tl.constexpr = sigma.dtype == tl.float32
    FAR: tl.constexpr = 2.0**30 if NARROW else 2.0**250
    DOWN: tl.constexpr = -70 if NARROW else -600
    UP: tl.constexpr = 90 if NARROW else 700
    size = tl.maximum(tl.abs(sigma), tl.sqrt(eps), propagate_nan=tl.PropagateNan.ALL)
    exponent = tl.where(size > FAR, DOWN, tl.where(size < 1.0 / FAR, UP, 0))
    scale = tl.where(size > FAR, 2.0**DOWN, tl.where(size < 1.0 / FAR, 2.0**UP, 1.0))
    scale = scale.to(sigma.dtype)
    scaled = sigma * scale
    v = scaled * scaled + (eps * scale) * scale
    return tl.where(v == 0, -2148.0, log2(v) - 2 * exponent)


@triton.jit
def odd_columns(least, largest, inside):
    """In which columns a variance of some stream is out of range."""
    LARGEST: tl.constexpr = 2.0**62 if largest.dtype == tl.float32 else 2.0**505
    return ((tl.max(largest, 0) > LARGEST) | (tl.min(least, 0) < 1.0 / LARGEST)) & inside


@triton.jit
def log_total(total, count, inside):
    """log v + log 2 pi of all streams and features, in float64, from their sums of log2 v, and from
    how many rows each stream has."""
    LN_2: tl.constexpr = 0.6931471805599453
    LOG_2PI: tl.constexpr = 1.8378770664093453
    of_all = tl.sum(tl.where(inside, tl.sum(total, 0), 0.0), 0).to(tl.float64)
    rows = tl.sum(tl.sum(count, 1), 0).to(tl.float64)
    elements = rows * tl.sum(inside.to(tl.int32), 0).to(tl.float64)
    return of_all * LN_2 + elements * LOG_2PI


@triton.jit
def log_sum(found, stds, eps, mask, some, part, place, inside):
    """Sum of log v + log 2 pi, in float64, and the columns in which a v is out of range."""
    start, _, begin, end = part
    tile, s, _, _ = place
    count, total, least, largest = found
    odd = odd_columns(least, largest, inside)
    if tl.max(odd.to(tl.int32), 0) > 0:
        total = tl.zeros_like(total)
        e = (tile * inside.shape[0] + tl.arange(0, inside.shape[0]))[None, :]
        stream = tl.arange(0, total.shape[0])[:, None]
        for first in range(begin, end, total.shape[0]):
            row = first + stream
            use = load_mask(mask, start + row, s, (row < end) & some) & inside[None, :]
            sigma = load_rows(stds, start + first, s, stream, e, use, eps.dtype)
            total += tl.where(use, careful_log2(sigma, eps), 0.0)
    return log_total(total, count, inside), odd


@triton.jit
def moments_of_rows(
    tensors,  # y, x, mu, stds: (rows, S, E) strided
    shifts,  # (FEATURES,) of y, x, mu; None of roles that these rows do not have
    eps,  # of samples and of components; None where there is no such variance
    masks,  # (rows, S) strided bool of both roles
    counts,  # of these rows, how many contribute at s, in both roles: all that are active or none
    part,  # start of `rows` rows; rows; begin and end of a range of them
    place,  # tile of features, s, S, E
    OWN_STDS: tl.constexpr,
    SHARED: tl.constexpr,  # both roles have the variances and the mask of the components
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """n, mean and m2 of the samples; weight, mean and m2 of the components, means NaN in columns
    that are out of range; sums of log v + log 2 pi of both."""
    BLOCK: tl.constexpr = GROUP * ROWS
    SAMPLES: tl.constexpr = shifts[0] is not None
    COMPONENTS: tl.constexpr = shifts[1] is not None
    start, rows, begin, end = part
    tile, s, _, E = place
    feature = tile * FEATURES + tl.arange(0, FEATURES)
    inside = feature < E
    # No wider than that, or the threads of a warp would have different rows.
    e = tl.max_contiguous(feature, VECTOR)[None, None, None, :]
    inside_e = inside[None, None, None, :]
    two = tl.arange(0, 2)
    local = (2 * two[:, None, None, None] + two[None, :, None, None]) * ROWS
    local += tl.arange(0, ROWS)[None, None, :, None]
    zeros = tl.zeros((ROWS, FEATURES), ACC)
    nobody = tl.zeros((ROWS, 1), ACC)
    no_logs = (nobody, zeros, zeros + 1.0, zeros + 1.0)
    found = ((nobody, zeros, zeros), (zeros, zeros, zeros), no_logs, no_logs)

    everything = (tile + 1) * FEATURES <= E
    if SAMPLES:
        everything = everything & (counts[0] == rows)
    if COMPONENTS:
        everything = everything & (counts[1] == rows)
    whole = begin
    if everything:
        whole = begin + (end - begin) // BLOCK * BLOCK
    for first in range(begin, whole, BLOCK):
        at = (start + first, s, local, e)
        found = _add_group(found, tensors, shifts, eps, at, None, None, None, OWN_STDS, SHARED, ACC)
    for first in range(whole, end, BLOCK):
        here_i = None
        here_l = None
        row = first + local
        if COMPONENTS:
            here_l = load_mask(masks[1], start + row, s, row < end) & (counts[1] > 0)
        if SHARED:
            here_i = here_l
        elif SAMPLES:
            here_i = load_mask(masks[0], start + row, s, row < end) & (counts[0] > 0)
        at = (start + first, s, local, e)
        found = _add_group(
            found, tensors, shifts, eps, at, here_i, here_l, inside_e, OWN_STDS, SHARED, ACC
        )
    samples, components, sample_logs, component_logs = found

    odd = inside & False
    log_i = tl.zeros((), tl.float64)
    log_l = tl.zeros((), tl.float64)
    if COMPONENTS:
        log_l, odd = log_sum(
            component_logs, tensors[3], eps[1], masks[1], counts[1] > 0, part, place, inside
        )
    if SHARED:
        log_i = log_l
    elif SAMPLES and OWN_STDS:
        log_i, odd_i = log_sum(
            sample_logs, tensors[3], eps[0], masks[0], counts[0] > 0, part, place, inside
        )
        odd = odd | odd_i
    n, mean_y, m2_y = merge_streams(samples[0], samples[1], samples[2])
    weight, mean_c, m2_c = merge_streams(components[0], components[1], components[2])
    nan = float("nan")
    mean_y, mean_c = tl.where(odd, nan, mean_y), tl.where(odd, nan, mean_c)
    return (n, mean_y, m2_y), (weight, mean_c, m2_c), log_i, log_l
