"""The moments where a variance or a sum is out of range: what `accumulate_kernel` computes, of the
same arguments, row by row in float64 and without the square of anything but a ratio."""

import triton
import triton.language as tl

from ._tiles import finite, load, partners, position, root_terms
from ._unscaled import encoded


@triton.jit(
    do_not_specialize=["start", "rows", "rows_per_split", "S"],
    do_not_specialize_on_alignment=["sample_eps", "component_eps"],
)
def accumulate_carefully_kernel(
    y,  # all arguments: see accumulate_kernel
    x,
    mu,
    stds,
    sample_eps,
    component_eps,
    sample_active,
    component_active,
    sample_counts,
    component_counts,
    sample_parts,  # delta and m2 as `encoded`
    component_parts,  # delta and weight as `encoded`
    diagonal_parts,
    split_samples,  # (written by the other one)
    irregular,  # (1,) int32: 0 where nothing is to be done
    y_stride_row,
    y_stride_s,
    y_stride_e,
    x_stride_row,
    x_stride_s,
    x_stride_e,
    mu_stride_row,
    mu_stride_s,
    mu_stride_e,
    stds_stride_row,
    stds_stride_s,
    stds_stride_e,
    start,
    rows,
    rows_per_split,
    S,
    E,
    tiles,
    SAMPLES: tl.constexpr,
    OWN_STDS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    EXCLUDE_DIAGONAL: tl.constexpr,
    FEATURES: tl.constexpr,
):
    if tl.load(irregular) == 0:
        return
    tile, s, split = position(tiles, S)
    e = tile * FEATURES + tl.arange(0, FEATURES)
    inside = e < E
    begin, end = split * rows_per_split, min((split + 1) * rows_per_split, rows)
    ACC: tl.constexpr = tl.float64
    zeros = tl.zeros((FEATURES,), ACC)
    if SAMPLES:
        samples = tl.load(sample_counts + s)
        partners_of_samples = tl.load(sample_counts + S + s)
        first = start + tl.load(sample_counts + 2 * S + s)
        some = (samples > 0) & inside
        y_shift = finite(load(y, first, s, e, y_stride_row, y_stride_s, y_stride_e, some, ACC))
        n, mean_y, m2_y, log_i, unit_y = zeros, zeros, zeros, zeros, zeros
    if COMPONENTS:
        components = tl.load(component_counts + S + s)
        partners_of_components = tl.load(component_counts + s)
        first = start + tl.load(component_counts + 3 * S + s)
        some = (components > 0) & inside
        x_shift = finite(load(x, first, s, e, x_stride_row, x_stride_s, x_stride_e, some, ACC))
        weight, mean_c, m2_c, log_l, unit_c = zeros, zeros, zeros, zeros, zeros + float("inf")
        eps_l = tl.load(component_eps).to(ACC)
    if EXCLUDE_DIAGONAL:
        diagonal = zeros
    if OWN_STDS:
        eps_i = tl.load(sample_eps).to(ACC)

    # The units: the largest deviation of the samples and the least sqrt v of the components. What
    # underflows in them does not count.
    for index in range(begin, end):
        row, at = start + index, index * S.to(tl.int64) + s
        if SAMPLES:
            use_i = (tl.load(sample_active + at) != 0) & inside
            value = load(y, row, s, e, y_stride_row, y_stride_s, y_stride_e, use_i, ACC)
            size = tl.where(use_i, tl.abs(value - y_shift), 0.0)
            unit_y = tl.where((size > unit_y) & (size < float("inf")), size, unit_y)
        if COMPONENTS:
            use_l = (tl.load(component_active + at) != 0) & inside
            sigma = load(stds, row, s, e, stds_stride_row, stds_stride_s, stds_stride_e, use_l, ACC)
            root, _ = root_terms(sigma, eps_l)
            unit_c = tl.where(use_l & (root < unit_c), root, unit_c)
    if SAMPLES:
        unit_y = tl.where(unit_y > 0, unit_y, 1.0)
    if COMPONENTS:
        unit_c = tl.where(unit_c < float("inf"), unit_c, 1.0)

    for index in range(begin, end):
        row, at = start + index, index * S.to(tl.int64) + s
        use_i, use_l = inside & False, inside & False
        if SAMPLES:
            use_i = (tl.load(sample_active + at) != 0) & inside
        if COMPONENTS:
            use_l = (tl.load(component_active + at) != 0) & inside
        use = use_i | use_l
        sigma = load(stds, row, s, e, stds_stride_row, stds_stride_s, stds_stride_e, use, ACC)
        if SAMPLES:
            value = load(y, row, s, e, y_stride_row, y_stride_s, y_stride_e, use_i, ACC)
            deviation_y = tl.where(use_i, value - y_shift, 0.0)
            lost = tl.abs(deviation_y) == float("inf")  # its square is infinite, the mean is not
            n += use_i.to(ACC)
            step = tl.where(lost, 0.0, deviation_y / unit_y) - mean_y
            change = tl.where(use_i, step / tl.where(n > 0, n, 1.0), 0.0)
            mean_y += change
            m2_y += tl.where(lost, float("inf"), step * (step - change))
            if OWN_STDS:
                _, log_terms = root_terms(sigma, eps_i)
                others = partners(partners_of_samples, use_l, EXCLUDE_DIAGONAL, ACC)
                log_i += tl.where(use_i, others * log_terms, 0.0)
        if COMPONENTS:
            centre = load(x, row, s, e, x_stride_row, x_stride_s, x_stride_e, use_l, ACC) - x_shift
            centre += load(mu, row, s, e, mu_stride_row, mu_stride_s, mu_stride_e, use_l, ACC)
            deviation_c = tl.where(use_l, centre, 0.0)
            lost = tl.abs(deviation_c) == float("inf")
            root, log_terms = root_terms(sigma, eps_l)
            precision = tl.where(use_l, (unit_c / root) * (unit_c / root), 0.0)
            weight += precision
            step = tl.where(lost, 0.0, deviation_c) - mean_c
            change = step * (precision / tl.where(weight > 0, weight, 1.0))
            mean_c += change
            square = tl.where(lost, float("inf"), (step / root) * ((step - change) / root))
            m2_c += tl.where(use_l, square, 0.0)
            others = partners(partners_of_components, use_i, EXCLUDE_DIAGONAL, ACC)
            log_l += tl.where(use_l, others * log_terms, 0.0)
        if EXCLUDE_DIAGONAL:
            distance = ((deviation_y - deviation_c) + (y_shift - x_shift)) / root
            # What is infinite remains so without the diagonal: by the other rows.
            keep = use_i & use_l & (distance * distance != float("inf"))
            diagonal += tl.where(keep, distance * distance, 0.0)

    plane = S.to(tl.int64) * E
    at = s.to(tl.int64) * E + e
    if SAMPLES:
        parts = sample_parts + split.to(tl.int64) * 3 * plane + at
        delta, root = mean_y * unit_y, tl.sqrt(m2_y) * unit_y
        largest = tl.maximum(tl.abs(delta), root)
        delta, root = encoded(delta, root, largest, sample_parts.dtype.element_ty)
        tl.store(parts, delta, mask=inside)
        tl.store(parts + plane, root, mask=inside)
        tl.store(parts + 2 * plane, log_i, mask=inside)
    if COMPONENTS:
        parts = component_parts + split.to(tl.int64) * 4 * plane + at
        root = unit_c / tl.sqrt(weight)
        largest = tl.maximum(tl.abs(mean_c), root)
        delta, root = encoded(mean_c, root, largest, component_parts.dtype.element_ty)
        tl.store(parts, delta, mask=inside)
        tl.store(parts + plane, m2_c, mask=inside)
        tl.store(parts + 2 * plane, root, mask=inside)
        tl.store(parts + 3 * plane, log_l, mask=inside)
    if EXCLUDE_DIAGONAL:
        parts = diagonal_parts + split.to(tl.int64) * plane + at
        tl.store(parts, diagonal, mask=inside)
