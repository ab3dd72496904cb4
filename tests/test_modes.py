"""Autograd, tracing and threading: the losses behave like any other differentiable function."""

import threading

import fused_mi
import pytest
import torch
from cases import (
    DEVICE,
    FLOATING,
    MASK,
    assert_same_bits,
    evaluate,
    gradients,
    leaves,
    mi,
    mi_inputs,
    same_bits,
    value_and_gradients,
)
from marks import combine, dtypes, every_mode
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.every_device


def tiny(options, dtype=torch.float64):
    b = 3 if options.get("pairing") == "leave_one_out" else 4
    e = 1 if options.get("pairing") == "symmetric" else 2
    inputs = mi_inputs(b=b, s=2, e=e, dtype=dtype, seed=1)
    inputs[1][:, 0, 0] += 0.1 * torch.arange(
        b, device=DEVICE
    )  # no ties: the stabiliser is a constant to autograd
    return inputs


@every_mode
@combine
def test_first_and_second_derivatives(options, combine):
    inputs = leaves(tiny(options))
    mask = inputs[MASK]

    def function(means, stds, clean, noisy):
        losses = {}
        mi([means, stds, mask, clean, noisy], combine, losses, safety_factor=0.0, **options)
        return tuple(
            losses.values()
        )  # safety_factor=0: nothing depends on stds behind autograd's back

    wanted = [inputs[i] for i in FLOATING]
    assert torch.autograd.gradcheck(function, wanted)
    assert torch.autograd.gradgradcheck(function, wanted)


def test_second_derivatives_of_the_distances():
    _, stds, mask, clean, noisy = leaves(mi_inputs(b=3, s=2, e=2))

    def rows(x, y, stds):
        return fused_mi.square_mahalanobis_distance(x, y, stds, mask, 0.0)

    def outer(x, y, stds):
        return fused_mi.square_mahalanobis_distance(
            x[:, None], y[None], stds[None], mask[:, None], 0.0
        )

    for function in (rows, outer):
        assert torch.autograd.gradcheck(function, (clean, noisy, stds))
        assert torch.autograd.gradgradcheck(function, (clean, noisy, stds))


@every_mode
@pytest.mark.parametrize("frozen", range(1, 15))
def test_frozen_subsets(options, frozen):
    """Any of the four inputs may need no gradient: the others' gradients do not change a bit."""
    everything = leaves(tiny(options, torch.float32))
    full = dict(zip(FLOATING, gradients(mi(everything, **options), everything), strict=True))
    some = leaves(tiny(options, torch.float32))
    for bit, index in enumerate(FLOATING):
        some[index].requires_grad_(not frozen >> bit & 1)
    mi(some, **options).backward()
    for bit, index in enumerate(FLOATING):
        if frozen >> bit & 1:
            assert some[index].grad is None
        else:
            assert same_bits(some[index].grad, full[index])


@every_mode
def test_nothing_requires_a_gradient(options):
    value = mi(tiny(options), **options)
    assert not value.requires_grad
    assert value.grad_fn is None


@every_mode
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_no_grad_inference_mode_and_detect_anomaly_keep_the_value(options):
    inputs = leaves(mi_inputs(dtype=torch.float32))
    inputs[MASK][2:, 1] = False
    inputs[4].data[2:, 1] = torch.nan
    value = mi(inputs, **options)
    with torch.no_grad():
        without = mi(inputs, **options)
    assert not without.requires_grad
    assert same_bits(without, value.detach())
    with torch.inference_mode():
        inference = mi([t.clone() for t in inputs], **options)
    assert inference.is_inference()
    assert inference.item() == value.item()
    plain = gradients(value, inputs)
    with torch.autograd.detect_anomaly(check_nan=True):
        checked = gradients(mi(inputs, **options), inputs)
    assert_same_bits(plain, checked)


@every_mode
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(options, amp):
    inputs = mi_inputs(dtype=torch.float32, seed=2)
    plain = evaluate(lambda t: mi(t, **options), inputs)
    with torch.autocast(DEVICE.type, amp):
        assert_same_bits(evaluate(lambda t: mi(t, **options), inputs), plain)


@every_mode
def test_retain_graph_and_repeats_are_bit_equal(options):
    inputs = leaves(mi_inputs(dtype=torch.float32, seed=3))
    value = mi(inputs, **options)
    first = gradients(value, inputs, retain_graph=True)
    assert_same_bits(gradients(value, inputs), first)
    again = mi(inputs, **options)
    assert_same_bits([again, *gradients(again, inputs)], [value, *first])


@every_mode
@dtypes(torch.float32, torch.bfloat16)
def test_a_hundred_runs_are_bit_equal(options, dtype):
    """At a size that takes several programs and threads."""
    inputs = mi_inputs(*(64, 33, 200) if DEVICE.type == "cuda" else (20, 9, 50), dtype=dtype)
    first = evaluate(lambda t: mi(t, **options), inputs)
    for _ in range(100 if DEVICE.type == "cuda" else 5):
        assert_same_bits(evaluate(lambda t: mi(t, **options), inputs), first)


@every_mode
@pytest.mark.parametrize("index", FLOATING)
def test_an_in_place_edit_before_backward_raises(options, index):
    inputs = leaves(mi_inputs(dtype=torch.float32))
    computed = [t * 1 if t.requires_grad else t for t in inputs]
    value = mi(computed, **options)
    computed[index].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@every_mode
def test_checkpoint(options):
    inputs = mi_inputs(dtype=torch.float32, seed=4)
    plain = evaluate(lambda t: mi(t, **options), inputs)
    found = evaluate(
        lambda t: checkpoint(lambda *a: mi(a, **options), *t, use_reentrant=False), inputs
    )
    assert_same_bits(found, plain)


@every_mode
def test_gradients_accumulate_and_the_value_scales(options):
    inputs = leaves(mi_inputs(seed=5))
    mi(inputs, **options).backward()
    once = [inputs[i].grad.clone() for i in FLOATING]
    (mi(inputs, **options) * 3).backward()
    for index, grad in zip(FLOATING, once, strict=True):
        torch.testing.assert_close(inputs[index].grad, 4 * grad, rtol=1e-11, atol=1e-12)


@every_mode
def test_hidden_values_stay_hidden_from_second_derivatives(options):
    results = []
    for hidden in (0.5, torch.nan):
        inputs = mi_inputs(dtype=torch.float32, seed=7)
        inputs[MASK][:, 1] = False
        for i in FLOATING:
            inputs[i][:, 1] = hidden
        inputs = leaves(inputs)
        first = gradients(mi(inputs, **options), inputs, create_graph=True)
        results.append(gradients(sum(g.square().sum() for g in first), inputs))
    for a, b in zip(*results, strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a, b)
        assert (b[:, 1] == 0).all()


@every_mode
def test_a_grad_scaler_multiplies_by_a_power_of_two_exactly(options):
    inputs = leaves(mi_inputs(dtype=torch.float32, seed=8))
    plain = gradients(mi(inputs, **options), inputs)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**16)
    scaler.scale(mi(inputs, **options)).backward()
    for index, grad in zip(FLOATING, plain, strict=True):
        assert torch.equal(inputs[index].grad / 2**16, grad)


@every_mode
def test_global_settings_change_nothing(options):
    inputs = mi_inputs(dtype=torch.float32, seed=9)
    plain = evaluate(lambda t: mi(t, **options), inputs)
    torch.set_default_dtype(torch.float16)
    torch.use_deterministic_algorithms(True)
    try:
        found = evaluate(lambda t: mi(t, **options), inputs)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert_same_bits(found, plain)


def test_threads():
    cases = [mi_inputs(dtype=torch.float32, seed=seed) for seed in range(8)]
    want = [evaluate(mi, case) for case in cases]
    got = [None] * len(cases)

    def work(i):
        got[i] = evaluate(mi, cases[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


@every_mode
def test_meta_tensors(options):
    inputs = [t.to("meta") for t in mi_inputs(dtype=torch.bfloat16)]
    losses = {}
    value, grads = value_and_gradients(lambda t: mi(t, losses=losses, **options), inputs)
    assert value.device.type == "meta"
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert [g.shape for g in grads] == [inputs[i].shape for i in FLOATING]
    assert {g.dtype for g in grads} == {torch.bfloat16}


@every_mode
def test_fake_tensors(options):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        inputs = [mode.from_tensor(t) for t in mi_inputs()]
        value, grads = value_and_gradients(lambda t: mi(t, **options), inputs)
    assert isinstance(value, FakeTensor)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert [g.shape for g in grads] == [inputs[i].shape for i in FLOATING]


# The compiler itself instantiates autograd functions while it traces them.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_mode
def test_compile_with_a_full_graph(options):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: mi(t, **options), backend="eager", fullgraph=True)
    inputs = mi_inputs(dtype=torch.float32, seed=6)
    plain = evaluate(lambda t: mi(t, **options), inputs)
    value, *grads = evaluate(lambda t: compiled(*t), inputs)
    torch.testing.assert_close(value, plain[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads, plain[1:], rtol=1e-5, atol=1e-6)
