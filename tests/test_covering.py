"""The cases that `make test` chooses: what meets in all of them meets in those."""

import itertools

import pytest
from covering import TOGETHER, chosen

OPTIONS: dict[str, list] = {
    "dtype": ["f32", "f64", "bf16"],
    "pairing": ["sub_batch", "symmetric", "leave_one_out"],
    "estimator": ["jensen", "logsumexp"],
    "combine": [True, False],
    "shape": [(1, 1), (2, 3), (4, 5), (6, 7)],
}


class Collected:
    """As pytest has a test: with its parameters, or with one that holds them."""

    def __init__(self, name, params, as_one):
        self.nodeid, self.options = f"t.py::{name}[{params}]", params
        self.callspec = self
        self.params = {"options": params} if as_one else params


def collected(name, as_one=False, allowed=lambda params: True):
    product = itertools.product(*OPTIONS.values())
    every = (dict(zip(OPTIONS, values, strict=True)) for values in product)
    return [Collected(name, params, as_one) for params in every if allowed(params)]


def meetings(tests, names):
    return {tuple(t.options[name] for name in names) for t in tests}


@pytest.mark.parametrize("as_one", [False, True])
def test_every_two_values_meet_in_fewer_cases(as_one):
    def allowed(params):
        return params["shape"] != (6, 7) or params["dtype"] == "f32"

    tests = collected("whole", as_one), collected("without some", as_one, allowed)
    found = chosen([*tests[0], *tests[1]])
    assert found == [t for of_one in tests for t in of_one if t in found]  # in their order
    for every in tests:
        some = [t for t in every if t in found]
        for names in (*itertools.combinations(OPTIONS, 2), TOGETHER):
            assert meetings(some, names) == meetings(every, names)
        assert len(some) < len(every) / 4


def test_what_has_no_options_or_one_stays_whole():
    class Plain:
        nodeid = "t.py::plain"

    one = [Collected("one", {"dtype": dtype}, False) for dtype in OPTIONS["dtype"]]
    assert chosen([Plain, *one]) == [Plain, *one]
