"""What is measured: tables of cases, by suite. A case knows no contestant and no clock."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

ALL = ("means", "stds", "clean", "noisy")
FLOATING = (0, 1, 3, 4)  # of ALL among (mu, sigma, mask, x, y)
FROZEN_CLEAN = ("means", "stds", "noisy")  # an encoder that is not trained
TRAINING = "training step"
BOTH = ("jensen", "logsumexp")  # estimators
PAIRINGS = ("sub_batch", "symmetric", "leave_one_out")
OPERATIONS = ("mutual information", "entropy")
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Case:
    """One call of a public function and its gradients."""

    group: str  # of the table: a workload, a sweep, a kind of option
    B: int
    S: int
    E: int
    estimator: str = "jensen"
    pairing: str = "sub_batch"
    dtype: str = "float32"
    masked: float = 0.0  # share of the positions
    wanted: tuple[str, ...] = ALL  # gradients; none: the forward pass only
    op: str = "mutual information"
    offset: float = 0.0  # of every 64th feature, as embeddings have it
    few: int = 0  # of an entropy, samples, the first rows; 0: half of them
    compiled: bool = False  # with contestants that compile

    @property
    def name(self) -> str:
        """Unique within a suite."""
        parts = [self.estimator, self.pairing, "x".join(map(str, self.shape)), self.dtype]
        parts += [f"{self.masked:.0%} masked"] if self.masked else []
        parts += ["wants " + ("+".join(self.wanted) or "none")] if self.wanted != ALL else []
        parts += [self.op] if self.op != OPERATIONS[0] else []
        parts += [f"{self.samples} samples"] if self.few else []
        parts += [f"offset {self.offset:g}"] if self.offset else []
        return f"{self.group}: {', '.join(parts)}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.B, self.S, self.E

    @property
    def elements(self) -> int:
        return self.B * self.S * self.E

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.dtype]

    @property
    def samples(self) -> int:
        """N."""
        return self.B if self.pairing == "leave_one_out" else self.few or self.B // 2

    @property
    def components(self) -> int:
        """M, without itself."""
        return self.B - 1 if self.pairing == "leave_one_out" else self.B - self.samples

    @property
    def pair_elements(self) -> int:
        """N * M * S * E."""
        return self.samples * self.components * self.S * self.E

    @property
    def active(self) -> int:
        """Positions of each row that the mask leaves."""
        return max(1, round((1 - self.masked) * self.S))

    @property
    def information(self) -> bool:
        return self.op == OPERATIONS[0]

    @property
    def directions(self) -> list[tuple[slice, slice]]:
        """Rows of the samples, and of the components, of each direction."""
        first, second = slice(0, self.samples), slice(self.samples, self.B)
        if self.pairing == "leave_one_out":
            return [(first, first)]
        return [(first, second), (second, first)][: 2 if self.pairing == "symmetric" else 1]


class Suite(NamedTuple):
    """How long to look at its cases."""

    cases: tuple[Case, ...]
    warm_up: float  # seconds per contestant
    seconds: float  # per contestant, after which the least number of samples is enough
    least: int
    most: int
    most_work: float  # pairs times features of a contestant that goes through all of them
    train: str = ""  # the encoder of the training step
    block: float = 0.0  # seconds of passes that make a sample with warm caches

    def named(self, text: str) -> list[Case]:
        """Those whose name has the text, each once."""
        by_name = {case.name: case for case in self.cases}
        return [case for name, case in by_name.items() if text.lower() in name.lower()]

    def trains(self, text: str) -> bool:
        """Whether there is a training step that has the text in its name."""
        return bool(self.train) and text.lower() in TRAINING


def _sweeps(batches, positions, features, base) -> Iterator[Case]:
    """One dimension at a time; `base` (B, S, E) has the others."""
    b, s, e = base
    for estimator in BOTH:
        yield from (Case("sweep B", n, 1, e, estimator) for n in batches)
        yield from (Case("sweep S", b, n, e, estimator) for n in positions)
        yield from (Case("sweep E", b, s, n, estimator) for n in features)


def _options(shape, dtypes) -> Iterator[Case]:
    """Everything that changes what a pass has to do, on one shape."""
    for estimator in BOTH:
        changes: list[dict[str, Any]] = [{"masked": share} for share in (0.0, 0.5, 0.9)]
        changes += [{"pairing": pairing} for pairing in ("symmetric", "leave_one_out")]
        changes += [{"dtype": dtype} for dtype in dtypes]
        changes += [{"wanted": wanted} for wanted in (FROZEN_CLEAN, ("noisy",), ())]
        changes += [{"offset": 1e3}]
        b, s, e = shape
        at = Case("options", b, s, e, estimator)
        yield from (dataclasses.replace(at, **change) for change in changes)


def _workloads(sentences: int, llm: tuple[int, int, int], rows: int, images: int) -> Iterator[Case]:
    """What the suites of real sizes have in common."""
    for estimator in BOTH:
        yield Case("MiniLM", sentences, 128, 384, estimator, compiled=True)
        yield Case("LLM", *llm, estimator)
        yield Case("representation", rows, 1, 128, estimator, compiled=True)
        yield Case("images", images, 196, 768, estimator, compiled=estimator == BOTH[0])
    yield Case("LLM", *llm, dtype="bfloat16")
    yield from (Case("representation", 65536, 1, features) for features in (128, 1024))
    yield Case("representation", rows, 1, 1024, "logsumexp")
    yield Case("representation", rows, 1, 128, "logsumexp", op="entropy")
    yield Case("images", images, 1024, 3)


def _rectangles(samples: int, components: int, features: int) -> Iterator[Case]:
    """Few samples against many components: all tokens, and rows of earlier steps, which take no
    gradient."""
    at = Case("vocabulary", samples + components, 1, features, "logsumexp", op="entropy")
    at = dataclasses.replace(at, few=samples)
    yield at
    yield dataclasses.replace(at, group="memory bank", wanted=("noisy",))


_QUICK = (
    Case("MiniLM", 64, 128, 384, compiled=True),
    Case("MiniLM", 16, 128, 384, "logsumexp", compiled=True),
    Case("LLM", 8, 64, 4096, compiled=True),
    Case("LLM", 8, 64, 4096, "logsumexp", compiled=True),
    Case("representation", 1024, 1, 128, compiled=True),
    Case("representation", 1024, 1, 128, "logsumexp", compiled=True),
    Case("representation", 65536, 1, 128, compiled=True),
    Case("representation", 1024, 1, 128, "logsumexp", op="entropy"),
    Case("images", 64, 1024, 3, compiled=True),
    *_options((32, 16, 384), ("bfloat16", "float16", "float64")),
    *_sweeps((256, 1024, 4096), (4, 16, 64), (64, 256, 1024), (32, 16, 128)),
)
_FULL = (
    *_workloads(64, (16, 512, 4096), 4096, 64),
    *_rectangles(256, 16384, 576),
    Case("MiniLM", 512, 128, 384),
    *_options((64, 64, 384), ("bfloat16", "float16", "float64")),
    *_sweeps((256, 1024, 4096, 16384), (4, 16, 64, 256), (64, 256, 1024, 4096), (64, 16, 256)),
)
_LARGE = ((4096, 16, 768), (65536, 1, 64), (8, 512, 4096))
_GPU = (  # the most wanted first: time may end before the list
    *(
        Case(group, *shape, estimator, dtype=dtype, compiled=True)
        for dtype in ("float32", "bfloat16")
        for estimator in BOTH
        for group, shape in (("BERT", (512, 128, 768)), ("LLM", (64, 512, 4096)))
    ),
    Case("LLM", 64, 16, 4096, "logsumexp", compiled=True),
    *(Case("large", *shape, dtype=d) for shape in _LARGE for d in ("float32", "bfloat16")),
    *_workloads(512, (64, 512, 4096), 8192, 256),
    Case("LLM", 8, 512, 4096, "logsumexp", dtype="bfloat16", compiled=True),
    Case("representation", 65536, 1, 512),
    Case("representation", 65536, 1, 128, "logsumexp"),
    *_rectangles(2048, 49152, 576),
    *_options((256, 128, 768), ("bfloat16", "float16", "float64")),
    *_sweeps((1024, 4096, 16384), (8, 32, 128, 512), (128, 512, 2048, 8192), (256, 32, 512)),
)
_CHANGES: tuple[dict[str, Any], ...] = ({}, {"dtype": "bfloat16"}, {"wanted": FROZEN_CLEAN})
_CHANGES += ({"masked": 0.5}, {"masked": 0.1})
_CPU = (  # what the targets of the CPU kernels are about
    *(Case("jensen kernels", 128, 64, 768, **change) for change in _CHANGES),
    *(Case("jensen kernels", 16, 512, 2048, **change) for change in _CHANGES),
    Case("page faults", 24, 512, 2048),
    Case("pairs kernels", 128, 64, 768, "logsumexp", compiled=True),
    *(Case("pairs kernels", *shape, "logsumexp") for shape in ((512, 64, 768), (128, 768, 64))),
    *(Case("pairs", *shape, "logsumexp", masked=0.1) for shape in ((32, 64, 768), (128, 8, 768))),
    *(Case("representation", b, 1, 128) for b in (512, 2048)),
    *(Case("sweep B", 1 << n, 1, 128) for n in range(11, 17)),
    *_rectangles(256, 8192, 576),
)
_SMALL = (  # where a call costs what the Python around it costs
    *(Case("small", *shape) for shape in ((2, 1, 1), (8, 4, 64), (32, 4, 128), (64, 128, 384))),
    *(Case("small", b, 1, 128) for b in (1024, 2048)),
    *(Case("small", *shape, "logsumexp") for shape in ((2, 1, 1), (32, 4, 128))),
)
SUITES = {
    "quick": Suite(_QUICK, 0.05, 0.15, 5, 12, 6e7, "tiny"),
    "full": Suite(_FULL, 0.5, 3.0, 7, 60, 1e10, "MiniLM"),
    "cpu": Suite(_CPU, 0.1, 1.0, 7, 30, 4e9, "tiny"),
    "gpu": Suite(_GPU, 0.3, 1.0, 9, 60, 1e13, "MiniLM"),
    "small": Suite(_SMALL, 0.05, 0.2, 30, 30, 1e7, block=5e-3),
}
