"""Kernels that are checked in the same way: a line of a table for each, and what exceeds limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from _ahead_of_time import Binary
from _targets import ALL, Row, registers_for, resident_warps
from rich.table import Table

LEGEND_OF_ALL = """registers and spilled bytes of a thread; shared bytes of a program; resident
warps of an SM or compute unit;"""


class Part(NamedTuple):
    """What the kernels of a part have of their own."""

    rows: Callable[[list[str]], list[Row]]  # of targets
    least_warps: Callable[[Row], int]  # of an SM that have registers
    most_spilled: Callable[[Row], int]  # bytes
    numbers: Callable[[Row, Binary], Sequence[str]]
    problems: Callable[[Row, Binary], Iterator[str]]  # not of "gfx", which is only reported
    columns: Sequence[str]  # of the numbers
    legend: str

    def table(self) -> Table:
        table = Table("kernel", "target", "inputs", "case")
        for column in ("registers", "spilled", "shared", "warps", *self.columns):
            table.add_column(column, justify="right")
        table.add_column("verdict")
        return table

    def cells(self, row: Row, binary: Binary | str) -> tuple[list[str], bool]:
        """A line of the table, and whether it is within the limits."""
        inputs = " ".join(ALL[dtype] for dtype in row.dtypes)
        if row.in_float64 and "f64" not in inputs:
            inputs += " in f64"
        names = [row.kernel.strip("_").removesuffix("_kernel"), row.target, inputs, row.case]
        if isinstance(binary, str):
            return [*names, *[""] * (4 + len(self.columns)), "does not compile"], False
        wrong = list(self._problems(row, binary))
        warps = resident_warps(row.target, binary)
        numbers = map(str, (binary.registers, binary.spilled, binary.shared, warps))
        line = [*names, *numbers, *self.numbers(row, binary), "; ".join(wrong) or "ok"]
        return line, not wrong

    def _problems(self, row: Row, binary: Binary) -> Iterator[str]:
        if binary.spilled > self.most_spilled(row):
            yield f"{binary.spilled} bytes in local memory"
        if any(kind == "atomic" for kind, _ in binary.accesses):
            yield "atomics"
        if row.target.startswith("gfx"):
            return
        most = registers_for(self.least_warps(row), binary)
        if binary.registers > most:
            yield f"more than {most} registers"
        yield from self.problems(row, binary)
