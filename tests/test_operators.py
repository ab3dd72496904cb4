"""The operators `torch.ops.fused_mi`: registration, tracing, and one graph for all batch sizes."""

import itertools

import fused_mi
import pytest
import torch
from cases import ALL_CASES, PAIRINGS, leaves, mi, mi_inputs, value_and_gradients
from marks import dtypes, estimator, pairing
from torch._dynamo.utils import counters

ESTIMATORS = ("jensen", "logsumexp")
TRACED = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"
estimators = pytest.mark.parametrize("name", ESTIMATORS)


def arguments(pairing, own, combine, reduction="sum", weighted=False):
    """Of an estimator: its tensors, and the constants."""
    means, stds, mask, clean, noisy = mi_inputs(dtype=torch.float32)
    tensors = [noisy, clean, means, stds]
    origins = None
    if weighted:
        tensors.append(torch.randn(len(means)).log_softmax(0))
        origins = torch.arange(len(means)).flip(0)
    tensors = [t.requires_grad_() for t in tensors]
    masks = mask, mask if combine else None
    return (*tensors, *masks, origins, pairing, own, reduction, 100.0, weighted)


@estimators
@pytest.mark.parametrize("pairing", [*PAIRINGS, "all"])
def test_opcheck(name, pairing):
    own = pairing != "all"
    given = arguments(pairing, own, combine=pairing != "symmetric")
    torch.library.opcheck(getattr(torch.ops.fused_mi, name), given)
    total, terms, state = getattr(torch.ops.fused_mi, name)(*given)
    backward = getattr(torch.ops.fused_mi, f"{name}_backward")
    of_total, of_terms = torch.randn_like(total), torch.randn_like(terms).requires_grad_()
    everything, some = [True] * 4, [False, True, False, True]
    # Traced for sizes that change, which takes seconds: "symmetric" has both of its directions.
    checks = TRACED if ALL_CASES or pairing != "sub_batch" else TRACED[:-1]
    combinations: list[tuple] = [((of_total, of_terms), everything, checks)]
    if pairing == "sub_batch":  # what is given and what is wanted does not meet the pairing
        combinations += [((of_total, None), some, checks), ((None, of_terms), everything, TRACED)]
    for upstream, wanted, checks in combinations:
        torch.library.opcheck(backward, (*upstream, *given, state, wanted), test_utils=checks)


@pytest.mark.parametrize("name", [*ESTIMATORS, "logsumexp_of_weighted"])
def test_opcheck_of_samples_and_weights(name):
    weighted = name not in ESTIMATORS
    pairing = "all" if weighted else "symmetric"
    given = arguments(pairing, not weighted, True, "none", weighted)
    torch.library.opcheck(getattr(torch.ops.fused_mi, name), given)
    total, terms, state = getattr(torch.ops.fused_mi, name)(*given)
    assert total.shape == terms.shape[1:] == (6,)
    backward = getattr(torch.ops.fused_mi, f"{name}_backward")
    upstream = torch.randn_like(total), torch.randn_like(terms).requires_grad_()
    wanted = [True] * (5 if weighted else 4)
    torch.library.opcheck(backward, (*upstream, *given, state, wanted), test_utils=TRACED)


def test_opcheck_of_the_distances():
    _, stds, mask, clean, noisy = mi_inputs(dtype=torch.float32)
    tensors = [t.requires_grad_() for t in (noisy, clean, stds)]
    given = (*tensors, mask, mask, torch.tensor(1e-5))
    torch.library.opcheck(torch.ops.fused_mi.distances, given)
    found, state = torch.ops.fused_mi.distances(*given)
    upstream = torch.randn_like(found).requires_grad_()
    backward = torch.ops.fused_mi.distances_backward
    torch.library.opcheck(backward, (upstream, *given, state, [True, False, True]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_of_the_variance(dtype):
    _, stds, mask, _, _ = mi_inputs(dtype=torch.float32)
    torch.library.opcheck(torch.ops.fused_mi.variance, (stds, mask, 1, 5, dtype, 100.0))


@estimators
def test_the_state_takes_no_gradient(name):
    total, terms, state = getattr(torch.ops.fused_mi, name)(*arguments("sub_batch", True, True))
    assert total.requires_grad and terms.requires_grad
    assert not state.requires_grad


# The compiler itself instantiates autograd functions while it traces them.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@estimator
@pairing
def test_one_graph_for_every_batch_size(estimator, pairing):
    torch._dynamo.reset()
    counters.clear()
    options = {"estimator": estimator, "pairing": pairing}
    compiled = torch.compile(
        lambda *t: mi(t, **options), backend="aot_eager", fullgraph=True, dynamic=True
    )
    # Sizes of 1 are constants to the compiler: logsumexp has a graph of its own for N = 1.
    least = 4 if estimator == "logsumexp" and pairing != "leave_one_out" else 2
    for b in range(least, 22):
        if b % 2 and pairing != "leave_one_out":
            continue
        inputs = mi_inputs(b, 5, 3, dtype=torch.float32, seed=b)
        value, grads = value_and_gradients(lambda t: compiled(*t), inputs)
        plain, plain_grads = value_and_gradients(lambda t: mi(t, **options), inputs)
        torch.testing.assert_close(value, plain, rtol=1e-6, atol=1e-6)
        for a, b_ in zip(grads, plain_grads, strict=True):
            torch.testing.assert_close(a, b_, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    for shape in ((6, 1, 3), (6, 5, 1)):
        compiled(*leaves(mi_inputs(*shape, dtype=torch.float32))).backward()
    assert counters["stats"]["unique_graphs"] <= 3


@estimator
def test_transforms_of_torch_func(estimator):
    means, stds, mask, clean, noisy = mi_inputs(b=4, s=2, e=2)

    def loss(noisy, stds):
        return mi([means, stds, mask, clean, noisy], estimator=estimator, safety_factor=0.0)

    inputs = [means, stds, mask, clean, noisy]
    _, grads = value_and_gradients(lambda t: mi(t, estimator=estimator, safety_factor=0.0), inputs)
    by_noisy, by_stds = torch.func.grad(loss, argnums=(0, 1))(noisy, stds)
    torch.testing.assert_close(by_noisy, grads[3], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(by_stds, grads[1], rtol=1e-12, atol=1e-13)
    second = torch.func.grad(lambda n: torch.func.grad(loss)(n, stds).square().sum())(noisy)
    wanted = noisy.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(wanted, stds), wanted, create_graph=True)
    (want,) = torch.autograd.grad(first.square().sum(), wanted)
    torch.testing.assert_close(second, want, rtol=1e-12, atol=1e-13)


@estimators
@pytest.mark.parametrize("pairing", ["sub_batch", "leave_one_out"])
@dtypes(torch.float32, torch.float64)
def test_a_state_serves_every_backend(name, pairing, dtype):
    """The backward pass of the operator chooses its backend anew."""
    found = []
    for forward, backward in itertools.product(["reference", "cpu"], repeat=2):
        given = [
            t.detach() if isinstance(t, torch.Tensor) else t for t in arguments(pairing, True, True)
        ]
        given[:4] = [t.to(dtype) for t in given[:4]]
        with fused_mi.use_backend(forward):
            total, _, state = getattr(torch.ops.fused_mi, name)(*given)
        with fused_mi.use_backend(backward):
            pull = getattr(torch.ops.fused_mi, f"{name}_backward")
            found.append(pull(torch.ones_like(total), None, *given, state, [True] * 4))
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
