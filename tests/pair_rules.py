"""How close energies of pairs and their gradients are: see `rules`."""

import torch


def scales(inputs, mixture, upstream):
    """Sums of the magnitudes of all terms, relative to the shift as the kernels take them: of the
    energies (3, N, M), and of the gradients of y, x, mu, stds."""
    y, x, mu, stds = (t.double() if t is not None else torch.zeros(()) for t in inputs)
    rows_n, rows_m = slice(*mixture.sample_rows), slice(*mixture.component_rows)
    here_n, here_m = mixture.contributing()
    w = (here_n[:, None] & here_m)[..., None].double()
    shift = x[rows_m][here_m.long().argmax(0), torch.arange(x.shape[1])]
    offset = mu[rows_m].abs() if mu.dim() else 0
    size = (y[rows_n] - shift).abs()[:, None] + (x[rows_m] - shift).abs() + offset
    v = stds[rows_m].square() + mixture.component_eps.double()
    v_i = stds[rows_n].square() + mixture.sample_eps.double()
    squares = size.square() / v
    energies = [squares, 2 + v.log().abs() + 0 * squares, 2 + v_i.log().abs()[:, None] + 0 * v]
    q, g, k = ((w * terms).sum((-2, -1)) / 2 for terms in energies)
    up_q, up_g, up_k = (u[..., None, None].abs() * w for u in upstream.double())
    by_centre = up_q * size / v
    gradients = [torch.zeros_like(y) for _ in range(4)]
    gradients[0][rows_n] += by_centre.sum(1)
    for gradient in gradients[1:3]:
        gradient[rows_m] += by_centre.sum(0)
    gradients[3][rows_m] += (up_g + up_q * squares).sum(0) * stds[rows_m].abs() / v
    gradients[3][rows_n] += up_k.sum(1) * stds[rows_n].abs() / v_i
    return torch.stack([q, g, k]), gradients
