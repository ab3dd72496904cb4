"""Settings shared by all tests: few threads, reproducible hypothesis runs, the forced backend."""

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


def pytest_collection_modifyitems(config, items):
    """With a backend forced by the environment, keep what it is to serve: Jensen has Triton
    kernels, the pairs have none yet."""
    if os.environ.get("FUSED_MI_BACKEND") != "triton":
        return
    served = [
        item
        for item in items
        if item.get_closest_marker("every_backend")
        and not item.get_closest_marker("pairs")
        and "logsumexp" not in item.nodeid
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in served])
    items[:] = served
