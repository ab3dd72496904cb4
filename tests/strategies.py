"""What hypothesis draws: small batches with any mask, offset and spread, and the options."""

import torch
from cases import DEVICE, ESTIMATORS, MASK, PAIRINGS, REDUCTIONS
from hypothesis import strategies as st

OFFSETS = (0.0, -3.0, 1e3, 5e5)


@st.composite
def mi_batches(draw, dtype=torch.float64, offsets=OFFSETS, even=True):
    """(means, stds, mask, clean, noisy); stds from 0.05 to 5, any mask, all false among them."""
    b = draw(st.sampled_from((2, 4, 6, 8) if even else (2, 3, 4, 5, 7)))
    s, e = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal():
        return torch.randn(b, s, e, generator=gen, dtype=torch.float64)

    clean = normal() + draw(st.sampled_from(offsets))
    means = normal() * draw(st.sampled_from((0.0, 0.3, 10.0)))
    stds = 0.05 * 100 ** torch.rand(b, s, e, generator=gen, dtype=torch.float64)
    noisy = clean + means + stds * normal()
    bits = draw(st.lists(st.booleans(), min_size=b * s, max_size=b * s))
    inputs = [means, stds, torch.tensor(bits).view(b, s), clean, noisy]
    return [t.to(DEVICE, t.dtype if i == MASK else dtype) for i, t in enumerate(inputs)]


def options(pairings=PAIRINGS, estimators=ESTIMATORS):
    return st.fixed_dictionaries(
        {
            "estimator": st.sampled_from(estimators),
            "pairing": st.sampled_from(pairings),
            "reduction": st.sampled_from(REDUCTIONS),
            "combine": st.booleans(),
        }
    )
