"""One row per step: as CSV, exact enough to compare runs, and as TensorBoard events."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from .checkpoint import replacing
from .config import ConfigError
from .monitor import COLUMNS as WATCHED

FILE_NAME = "metrics.csv"
ALWAYS = (
    *("step", "loss", "utility_loss", "cosine", "found", "information", "sigma_mean"),
    "tokens_per_second",
)
COLUMNS = (*ALWAYS[:-1], *WATCHED, ALWAYS[-1])  # the last one shows that a line is complete


class MetricsWriter:
    """Appends rows; opened at step k it drops the later rows, written after the last checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / FILE_NAME
        kept = [row for row in read(folder) if row["step"] <= step] if step else []
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(_text(row) for row in kept)
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        self._csv.writerow(_text(row))
        self._file.flush()  # a killed run keeps its curve
        for name in COLUMNS[1:]:
            if name in row:
                self._events.add_scalar(name, row[name], int(row["step"]))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()


def read(folder: Path) -> list[dict[str, float]]:
    """All complete rows; a last line cut off by a crash is left out. What was not measured at a
    step is missing in its row.

    Raises:
        ConfigError: it is no such file.
    """
    path = folder / FILE_NAME
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in ALWAYS)]
        return [{name: float(row[name]) for name in COLUMNS if row.get(name)} for row in rows]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: the run cannot go on with its curve") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def _text(row: Mapping[str, float]) -> dict[str, str]:
    # repr of a float is exact, so a resumed curve can be compared bit for bit.
    found = (name for name in COLUMNS if name in row)
    return {name: str(int(row[name])) if name == "step" else repr(row[name]) for name in found}
