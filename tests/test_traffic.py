"""What the kernels move, counted in the interpreter: the model of it, and each element once."""

import collections

import pytest
import torch
import triton
import triton.language as tl
from cases import mi_inputs, mixtures, scoring_of
from fused_mi.triton_kernels import _configs
from fused_mi.triton_kernels._backward_traffic import passes
from fused_mi.triton_kernels._launch import launch, recorded
from fused_mi.triton_kernels._traffic import counted, expected, floor, total, traffic
from fused_mi.triton_kernels.estimators import jensen, jensen_backward
from fused_mi.triton_kernels.moments import moments, moments_backward
from fused_mi.triton_kernels.variance import variance
from interpreter_traffic import touched
from marks import pairing

ALL = (True,) * 4
NAMES = ("y", "x", "mu", "stds")
ACCUMULATE = ("accumulate_kernel", "leave_one_out_kernel")


@triton.jit
def _copy_some(source, target, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + 2 * i, mask=i < count, other=0.0) + tl.load(source)
    tl.store(target + i, value, mask=i < count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_counter_sees_lanes_that_are_not_masked(dtype):
    source, target = torch.randn(20).to(dtype), torch.zeros(10, dtype=dtype)
    with touched(source, target) as counts:
        _copy_some[(3,)](source, target, 7, BLOCK=4)
    loads = torch.tensor([1, 0] * 7 + [0] * 6)
    loads[0] += 3  # the scalar of each program
    assert counts.loads(source).tolist() == loads.tolist()
    assert counts.loads(source[::2]).tolist() == loads[::2].tolist()
    assert counts.stores(target).tolist() == [1] * 7 + [0] * 3
    assert not counts.stores(source).any() and not counts.loads(target).any()


def test_the_counter_refuses_what_it_was_not_given():
    source, target = torch.randn(20), torch.zeros(10)
    with pytest.raises(Exception, match="outside of every tensor"), touched(source):
        _copy_some[(1,)](source, target, 4, BLOCK=4)


@pytest.fixture(params=[(5, 1), (130, 12)], ids=["one tile", "tiles and splits"])
def features(request, monkeypatch):
    """Features of an embedding; and programs enough to split the batch for the larger number, where
    programs look for the least variance in several parts."""
    count, programs = request.param
    monkeypatch.setattr(_configs, "_MAX_LEAST", 3 if count > 128 else 1024)
    monkeypatch.setattr(_configs, "enough_programs", lambda device: programs)
    monkeypatch.setattr(_configs, "_MIN_GROUPS", 1)
    return count


def case(pairing, features, dtypes=(torch.float32,) * 4, own=True, rows=10):
    """y, x, mu, stds (rows, 3, features) and the mixtures over them; some positions have no active
    row, some rows no active position. No sample is far from the others."""
    mu, stds, mask, x, y = mi_inputs(rows, 3, features, seed=1)
    y = y.abs().clamp(0.5, 1) * (1 - 2 * (torch.arange(rows) % 2))[:, None, None]
    if rows > 16:  # and no component heavier
        stds = stds.clamp(min=0.9)
    mask[1], mask[:, 2] = False, False
    inputs = [t.to(dtype) for t, dtype in zip((y, x, mu, stds), dtypes, strict=True)]
    given = mixtures(pairing, mask)
    return inputs, given if own else [m._replace(sample_eps=None) for m in given]


def record(inputs, mixtures, wanted=ALL):
    """Launches of forward and of backward, and the gradients that the latter write."""
    with recorded() as forward:
        sums, state = moments(*inputs, mixtures)
    with recorded() as backward:
        upstream = torch.ones_like(sums)
        gradients = moments_backward(upstream, *inputs, state, mixtures, wanted)
    return forward, backward, gradients


def run(launches):
    """Execute recorded launches; each with the accesses that it made."""
    found = []
    for this in launches:
        with touched(*this.named().values()) as counts:
            launch(this.kernel, this.programs, *this.arguments, **this.meta)
        found.append((this, counts))
    return found


def accesses(found, tensor, kind):
    """How often each element of `tensor` was loaded or stored by all launches together."""
    each = [
        getattr(counts, kind)(tensor)
        for this, counts in found
        if any(argument is tensor for argument in this.named().values())
    ]
    return torch.stack(each).sum(0)


def assert_modelled(launches):
    """The model says to the byte what every launch loads from and stores to every tensor."""
    for this, counts in run(launches):
        model = traffic(this, counted(this))
        tensors = {name: t for name, t in this.named().items() if isinstance(t, torch.Tensor)}
        for of_model, of_kernel in ((model.read, counts.loads), (model.written, counts.stores)):
            # One tensor may be in several arguments.
            expected_bytes = collections.defaultdict(float)
            for name, size in of_model.items():
                expected_bytes[tensors[name].data_ptr()] += size
            for name, tensor in tensors.items():
                moved = int(of_kernel(tensor).sum()) * tensor.element_size()
                message = f"{this.kernel.__name__}: {name}"
                assert moved == expected_bytes[tensor.data_ptr()], message


def roles(shape, mixtures):
    """Contributing (row, position) pairs as samples and as components, and the first of each
    mixture and position, whose values are the shifts: 4 x (rows, S) bool."""
    result = torch.zeros((4, *shape[:2]), dtype=torch.bool)
    for mixture in mixtures:
        ranges = mixture.sample_rows, mixture.component_rows
        for role, (here, rows) in enumerate(zip(mixture.contributing(), ranges, strict=True)):
            result[role, slice(*rows)] |= here
            result[2 + role, slice(*rows)] |= here & (here.cumsum(0) == 1)
    return result


def assert_read_once(launches, inputs, mixtures):
    """Every element of a contributing position once, the others never; and the shifts of y, x and
    mu once more for each program that needs them."""
    found = run(launches)
    samples, components, shift_y, shift_x = roles(inputs[0].shape, mixtures)
    contributing = (samples, components, components, samples | components)
    none = torch.zeros_like(samples)
    shifts = (shift_y, shift_x, shift_x, none)
    if mixtures[0].exclude_diagonal:  # samples are measured from a centre
        shifts = (none, shift_x, shift_x, none)
    for name, tensor, here, shift in zip(NAMES, inputs, contributing, shifts, strict=True):
        loads = accesses(found, tensor, "loads")
        assert (loads[~here] == 0).all(), name
        assert (loads[here & ~shift] == 1).all(), name
        assert (loads[shift] > 1).all(), name


@pairing
@pytest.mark.parametrize("own", [True, False])
def test_model_of_forward_and_backward(pairing, features, own):
    inputs, mixtures = case(pairing, features, own=own)
    forward, backward, _ = record(inputs, mixtures)
    splits = [this.named().get("splits", 1) for this in forward]
    assert (max(splits) > 1) == (features > 128)
    assert_modelled(forward)
    assert_modelled(backward)


@pairing
@pytest.mark.parametrize("only", range(4), ids=NAMES)
def test_model_of_one_gradient(pairing, only):
    inputs, mixtures = case(pairing, 5)
    forward, backward, _ = record(inputs, mixtures, [i == only for i in range(4)])
    run(forward)
    assert_modelled(backward)


@pairing
def test_model_of_mixed_dtypes_and_strides(pairing):
    dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.float64]
    if pairing == "leave_one_out":  # of float64, few rows are summed pair by pair
        dtypes[3] = torch.float32
    inputs, mixtures = case(pairing, 10, dtypes=dtypes)
    inputs = [inputs[0][..., ::2], *(t[..., :5] for t in inputs[1:])]
    forward, backward, _ = record(inputs, mixtures)
    assert_modelled(forward)
    assert_modelled(backward)


@pytest.mark.parametrize("of_roles", [[(1, 7)], [(1, 3), (3, 7)]], ids=["one role", "two"])
def test_variance_reads_each_active_element_once(features, of_roles):
    (_, _, _, stds), (mixture, *_) = case("sub_batch", features)
    with recorded() as launches:
        roles = [(mixture.sample_mask, rows) for rows in of_roles]
        variance(stds, roles, torch.float32, 100.0)
    assert_modelled(launches)
    here = mixture.sample_mask.clone()
    here[0], here[7:] = False, False
    loads = accesses(run(launches), stds, "loads")
    assert torch.equal(loads, here[..., None].expand_as(stds).long())


@pairing
def test_forward_reads_each_active_element_once(pairing, features):
    inputs, mixtures = case(pairing, features)
    forward, _, _ = record(inputs, mixtures)
    assert_read_once(forward, inputs, mixtures)


def many(pairing):
    """Rows of a batch whose gradients are not summed pair by pair."""
    return 24 if pairing == "leave_one_out" else 10


@pytest.mark.parametrize("own", [True, False])
def test_model_of_leave_one_out_of_many(features, own):
    inputs, mixtures = case("leave_one_out", features, own=own, rows=many("leave_one_out"))
    forward, backward, _ = record(inputs, mixtures)
    assert_modelled(forward)
    assert_modelled(backward)


def test_backward_of_a_few_rows_reads_what_contributes(features):
    """Once from memory; again, from the cache, where it meets other rows."""
    inputs, mixtures = case("leave_one_out", features)
    forward, backward, gradients = record(inputs, mixtures)
    assert "gradient_of_few_kernel" in [this.kernel.__name__ for this in backward]
    run(forward)
    found = run(backward)
    here, *_ = roles(inputs[0].shape, mixtures)
    for name, tensor, gradient in zip(NAMES, inputs, gradients, strict=True):
        assert torch.equal(accesses(found, tensor, "loads") > 0, here[..., None].expand_as(tensor))
        assert (accesses(found, gradient, "stores") == 1).all(), name


@pairing
def test_backward_reads_once_and_writes_each_gradient_once(pairing, features):
    inputs, mixtures = case(pairing, features, rows=many(pairing))
    forward, backward, gradients = record(inputs, mixtures)
    run(forward)
    assert_read_once(backward, inputs, mixtures)
    found = run(backward)
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert (accesses(found, gradient, "stores") == 1).all(), name  # zeros too
        assert not accesses(found, gradient, "loads").any(), name


@pairing
def test_no_input_is_read_where_nothing_contributes(pairing):
    inputs, mixtures = case(pairing, 5)
    nobody = torch.zeros_like(mixtures[0].sample_mask)
    mixtures = [mixture._replace(sample_mask=nobody) for mixture in mixtures]
    forward, backward, gradients = record(inputs, mixtures)
    found = run([*forward, *backward])
    assert not any(accesses(found, tensor, "loads").any() for tensor in inputs)
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("pairing", "tensors"),
    [("sub_batch", (2, 5, 5, 8)), ("symmetric", (2, 8, 8, 8)), ("leave_one_out", (2, 8, 8, 8))],
)
def test_floor_in_tensors_of_half_a_batch(pairing, tensors):
    inputs, mixtures = case(pairing, 4)
    half = 5 * 3 * 4 * 4  # bytes
    names = ["eps reads", "forward reads", "backward reads", "gradient writes"]
    parts = floor(*inputs, mixtures, ALL)
    assert parts == dict(zip(names, (half * n for n in tensors), strict=True))
    assert floor(*inputs, mixtures, (False, False, True, True))["gradient writes"] == 4 * half
    assert floor(*inputs, mixtures, ALL, density=0.5)["forward reads"] == tensors[1] * half / 2


@pairing
def test_dense_inputs_and_gradients_move_as_the_floor_says(pairing, features):
    """Apart from shifts; predicted for every position active, without data."""
    inputs, mixtures = case(pairing, features, rows=many(pairing))
    inputs = [t.to("meta") for t in inputs]
    forward, backward, _ = record(inputs, mixtures)
    accumulate = next(la for la in forward if la.kernel.__name__ in ACCUMULATE)
    alone = pairing == "leave_one_out"
    planes = 2 if alone else 3 * len(mixtures)
    read_again = [(planes * accumulate.programs, accumulate.named())]
    for this in (la for la in backward if la.kernel.__name__ == "gradient_kernel"):
        for programs, a in passes(this.programs, this.named()):
            of_components = 2 if alone else 3
            planes = 2 * ("sample_counts" in a) + of_components * ("component_counts" in a)
            read_again.append((planes * programs, a))
    shifts = sum(planes // a["tiles"] * a["E"] * 4 for planes, a in read_again)
    accumulate = total([accumulate], expected)[accumulate.kernel.__name__]
    gradient = total(backward, expected)["gradient_kernel"]
    least = floor(*inputs, mixtures, ALL)
    read = sum(part.read[name] for part in (accumulate, gradient) for name in NAMES)
    assert read == least["forward reads"] + least["backward reads"] + shifts
    assert sum(gradient.written.values()) == least["gradient writes"]


@pytest.mark.parametrize("same_mask", [True, False])
@pytest.mark.parametrize("pairing", ["sub_batch", "symmetric"])
def test_a_call_has_few_launches_and_each_is_modelled(pairing, same_mask, features):
    """Forward 5, and 6 where the batch is split; backward 2."""
    inputs, (mixture, *_) = case(pairing, features)
    mask = mixture.sample_mask
    scoring = scoring_of(mask, pairing, same_mask)
    with recorded() as forward:
        total, terms, state = jensen(inputs, scoring)
    with recorded() as backward:
        jensen_backward((total, terms), inputs, scoring, state, ALL)
    names = [this.kernel.__name__ for this in forward]
    split = ["finish_kernel"] if features > 128 else []
    assert names == [
        *("prepare_kernel", "settle_kernel", "accumulate_kernel"),
        *(*split, "sums_of_pairs_kernel", "reduce_kernel"),
    ]
    assert len(backward) == 2
    if same_mask:  # of an expanded one the counter sees each access in every row
        assert_modelled(forward)
        assert_modelled(backward)
