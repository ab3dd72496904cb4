"""Settings shared by all tests: few threads, reproducible hypothesis runs."""

import os

# Before anything imports Triton: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "fused_mi",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fused_mi")


@pytest.fixture(autouse=True)
def _two_threads_and_a_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
