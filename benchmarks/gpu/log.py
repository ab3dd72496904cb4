"""A plugin of pytest: each result is handed on as soon as it is there, see `_children.emit`.

    python -m pytest -p benchmarks.gpu.log

What was collected comes first, so that tests that never ran can be named.
"""

from typing import Any

import pytest

from ._children import emit


class _Log:
    """Of the process that the user started; workers of xdist report to it."""

    announced = False

    def announce(self, ids: list[str]) -> None:
        if not self.announced:
            self.announced = True
            emit({"collected": ids})

    def pytest_collection_finish(self, session: Any) -> None:
        self.announce([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.announce(ids)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test once: its call, or what kept it from being called."""
        if report.when != "call" and report.passed:
            return
        passed = None if report.skipped else report.passed
        row = {"name": report.nodeid, "passed": passed, "seconds": round(report.duration, 3)}
        emit(row if report.passed else row | {"message": str(report.longrepr)[-2000:]})


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Log())
