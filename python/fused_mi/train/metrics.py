"""One row per step: as CSV, exact enough to compare runs, and for the tracker."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .checkpoint import replacing
from .config import ConfigError, Utility
from .monitor import PREFIX, watched
from .utility import MEASURES

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE_NAME = "metrics.csv"


def columns(utility: Utility) -> tuple[str, ...]:
    """Of a run with this utility; the last one shows that a line is complete."""
    measured = "loss", "utility_loss", *MEASURES[utility], "information", "sigma_mean"
    return "step", *measured, *watched(utility), "tokens_per_second"


class MetricsWriter:
    """Appends rows; opened at step k it drops the later rows, written after the last checkpoint."""

    def __init__(
        self, folder: Path, step: int, columns: Sequence[str], accelerator: Accelerator
    ) -> None:
        path = folder / FILE_NAME
        kept = [row for row in read(folder) if row["step"] <= step] if step else []
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(_text(row) for row in kept)
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, columns)
        self._accelerator = accelerator
        accelerator.init_trackers("events", init_kwargs={"tensorboard": {"purge_step": step + 1}})

    def write(self, row: Mapping[str, float]) -> None:
        self._csv.writerow(_text(row))
        self._file.flush()  # a killed run keeps its curve
        values = {name: value for name, value in row.items() if name != "step"}
        self._accelerator.log(values, int(row["step"]))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._accelerator.end_training()


def read(folder: Path) -> list[dict[str, float]]:
    """All complete rows; a last line cut off by a crash is left out. What was not measured at a
    step is missing in its row.

    Raises:
        ConfigError: it is no such file.
    """
    path = folder / FILE_NAME
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or ["step"]
            always = [name for name in names if not name.startswith(PREFIX)]
            rows = [row for row in reader if all(row.get(name) for name in always)]
        if "step" not in names:
            raise ValueError("it has no steps")
        return [{name: float(row[name]) for name in names if row.get(name)} for row in rows]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: the run cannot go on with its curve") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def _text(row: Mapping[str, float]) -> dict[str, str]:
    # repr of a float is exact, so a resumed curve can be compared bit for bit.
    return {name: str(int(v)) if name == "step" else repr(v) for name, v in row.items()}
