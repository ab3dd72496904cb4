"""`reduction="none"`: the loss of each sample, and its terms."""

import fused_mi
import oracle
import pytest
import torch
from arguments import entropy_inputs
from cases import (
    DEVICE,
    MASK,
    PAIRINGS,
    assert_same_bits,
    directions,
    gradients,
    leaves,
    mi,
    mi_inputs,
)
from marks import dtypes, estimator, every_mode, every_mode_and_mask, pairing

pytestmark = pytest.mark.every_backend


def samples(pairing, rows=6):
    return rows if pairing != "sub_batch" else rows // 2


def pulled(value, inputs, seed=5):
    """Gradients under an upstream gradient of both signs, the same for every backend."""
    gen = torch.Generator().manual_seed(seed)
    upstream = torch.randn(value.shape, generator=gen, dtype=torch.float64).to(value)
    return gradients(value, inputs, grad_outputs=upstream, retain_graph=True)


@every_mode_and_mask
@pytest.mark.parametrize("offset", [0.0, 5e5])
def test_float64(options, offset):
    inputs = mi_inputs(offset=offset, seed=4)
    ours_in, true_in, losses = leaves(inputs), leaves(inputs), {}
    value = mi(ours_in, losses=losses, reduction="none", **options)
    true = oracle.mutual_information(true_in, reduction="none", **options)
    assert value.shape == (samples(options["pairing"]),) and value.dtype == torch.float64
    assert_same_bits([value], [losses[oracle.TOTAL]])
    scale = 1e-11 * sum(v.abs().max().item() for v in true.values())
    assert set(losses) == set(true)
    for name, entry in losses.items():
        assert (entry - true[name]).abs().max().item() <= scale, name
        ours, want = pulled(entry, ours_in), pulled(true[name], true_in)
        if all(g is None for g in want):
            continue
        largest = max(g.abs().max().item() for g in want if g is not None)
        for a, b in zip(ours, want, strict=True):
            a, b = (g if g is not None else torch.zeros(1) for g in (a, b))
            assert (a.cpu() - b.cpu()).abs().max().item() <= 1e-11 * largest, name


@every_mode
@dtypes(torch.float32, torch.bfloat16, torch.float16)
def test_it_adds_up_to_the_sum(options, dtype):
    inputs = mi_inputs(dtype=dtype, seed=5)
    each, whole = {}, {}
    each_in, whole_in = leaves(inputs), leaves(inputs)
    value = mi(each_in, losses=each, reduction="none", **options)
    total = mi(whole_in, losses=whole, reduction="sum", **options)
    twice = 2 if options["pairing"] == "symmetric" else 1
    assert value.dtype == total.dtype == torch.float32
    scale = sum(t.abs().sum().item() for t in each.values())
    for name, term in each.items():
        assert term.dtype == torch.float32 and term.shape == value.shape
        assert term.sum().item() == pytest.approx(twice * whole[name].item(), abs=1e-6 * scale)
    got = gradients(value.sum() / twice, each_in)
    for a, b in zip(got, gradients(total, whole_in), strict=True):
        assert a.dtype == dtype
        tolerance = 4 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
        assert (a - b).abs().max().item() <= tolerance * b.abs().max().item()


@pairing
@estimator
def test_samples_do_not_meet(estimator, pairing):
    """What another sample is changes nothing, as long as it is no component."""
    inputs, options = mi_inputs(seed=6), {"estimator": estimator, "pairing": pairing}
    before = mi(inputs, reduction="none", eps=0.1, **options)
    inputs[4][1] += 1  # noisy: of a sample alone
    after = mi(inputs, reduction="none", eps=0.1, **options)
    changed = (before != after).nonzero()[:, 0].tolist()
    assert changed == [1]


@estimator
def test_entropy(estimator):
    inputs, component_mask = entropy_inputs()
    options = {"estimator": estimator, "component_mask": component_mask, "reduction": "none"}
    losses = {}
    value = fused_mi.gaussian_mixture_entropy(*inputs, losses, **options)
    true = oracle.mixture_entropy(inputs, **options)
    torch.testing.assert_close(value, true[oracle.ENTROPY], rtol=1e-11, atol=1e-11)
    for name, entry in losses.items():
        torch.testing.assert_close(entry, true[name], rtol=1e-11, atol=1e-11)
    each = [
        fused_mi.gaussian_mixture_entropy(
            inputs[0], inputs[1][i : i + 1], *inputs[2:4], inputs[4][i : i + 1], **options
        )
        for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(each), value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("combine", [True, False])
def test_the_constant_is_that_of_each_sample(pairing, combine):
    inputs = mi_inputs(seed=3)
    size, mask = inputs[0].shape[-1], inputs[MASK].cpu()
    kept, less = (
        mi(inputs, combine, pairing=pairing, reduction="none", constant=constant)
        for constant in ("keep", "subtract")
    )
    halves = []
    for rows, components in directions(pairing, len(mask)):
        for i in range(len(mask))[rows]:
            partners = [j for j in range(len(mask))[components] if j != i]
            weights = [mask[i] & mask[j] if combine else mask[i] for j in partners]
            halves.append(sum(w.sum().item() for w in weights) * size / len(partners) / 2)
    expected = kept.cpu() - torch.tensor(halves, dtype=torch.float64)
    torch.testing.assert_close(less.cpu(), expected, rtol=1e-12, atol=1e-12)


@estimator
def test_hidden_values_have_no_influence(estimator):
    inputs = mi_inputs(seed=7, dtype=torch.float32)
    found = []
    for value in (0.0, float("nan"), float("inf")):
        hidden = leaves(inputs)
        with torch.no_grad():
            for i in (0, 1, 3, 4):
                hidden[i][~inputs[MASK]] = value
        each = mi(hidden, estimator=estimator, reduction="none", pairing="symmetric")
        found.append([each.detach(), *pulled(each, hidden)])
    for again in found[1:]:
        assert_same_bits(again, found[0])
    assert all((g[~inputs[MASK]] == 0).all() for g in found[0][1:])


@every_mode
def test_modules_and_one_graph(options):
    torch._dynamo.reset()
    inputs = leaves(mi_inputs(4, 2, 2, dtype=torch.float32))
    module = fused_mi.MutualInformationLoss(reduction="none", **options)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    ours, want = compiled(*inputs), module(*inputs)
    assert_same_bits([ours, want], [want, mi(inputs, reduction="none", **options)])
    for a, b in zip(pulled(ours, inputs), pulled(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@estimator
def test_nothing_active(estimator):
    inputs = leaves(mi_inputs())
    inputs[MASK][:] = False
    value = mi(inputs, estimator=estimator, reduction="none")
    assert torch.equal(value.detach(), torch.zeros(3, dtype=torch.float64, device=DEVICE))
    assert all((g == 0).all() for g in pulled(value, inputs))


@estimator
def test_second_derivatives(estimator):
    inputs = leaves(mi_inputs(4, 1, 2))

    def function(*embeddings):
        given = [*embeddings[:2], inputs[MASK], *embeddings[2:]]
        return mi(given, estimator=estimator, reduction="none", eps=0.1)

    embeddings = [t for t in inputs if t.requires_grad]
    assert torch.autograd.gradgradcheck(function, embeddings)
