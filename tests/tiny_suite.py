"""A suite of a moment, and contestants that are wrong or slow on purpose."""

import functools

from cases import ESTIMATORS, PAIRINGS

from benchmarks import contestants, suites
from benchmarks.cases import Case, Suite
from benchmarks.contestants import Contestant

TINY = Suite((), 0.0, 1.0, 4, 5, 1e8, "tiny")
ABOUT = {"device": "a machine", "threads": 1, "versions": {"torch": "1"}, "commit": "abc"}
CASES = [
    Case("small", 8, 3, 5, estimator, pairing, dtype, masked)
    for estimator in ESTIMATORS
    for pairing in PAIRINGS
    for dtype, masked in (("float32", 0.0), ("float64", 0.4))
]


@functools.cache
def bench():
    return suites.Bench(TINY, "cpu", ABOUT)


def backend(case, name="reference", repeat=1, factor=1.0):
    """The public function, possibly wrong by a factor, or done several times."""
    function = contestants.loss_of(case)

    def loss(*inputs):
        return factor * sum(function(*inputs) for _ in range(repeat)) / repeat

    return Contestant(name, "backend", lambda inputs: contestants.run_of(case, loss, inputs))


def as_inputs(case):
    return contestants.inputs_of(case, "cpu")
