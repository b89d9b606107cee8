"""A report's tables: gathered per image, averaged per row, printed as Markdown, kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from magicfuse_ros.evaluation.metrics import mean

Cell: TypeAlias = str | int | float
Row: TypeAlias = tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """A column's heading, with its unit, and how many decimals its numbers are printed with."""

    name: str
    decimals: int = 2


@dataclass(frozen=True)
class Table:
    """One table of a report."""

    title: str  # what is measured, on what
    columns: tuple[Column, ...]  # the first holds the rows' names
    rows: tuple[Row, ...]  # one cell a column; NaN is printed as an em dash: nothing to measure
    note: str = ""  # how to read it
    source: str = ""  # what made the measured pictures: the engine or PyTorch, on what device

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row} of {self.title!r} has not {len(self.columns)} cells")

    def texts(self) -> tuple[list[str], list[list[str]], str]:
        """Return headings, rows and what stands below, as they are printed."""
        cells = [
            [_print(cell, column) for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]
        below = " ".join(filter(None, (self.note, self.source)))
        return [column.name for column in self.columns], cells, below

    def markdown(self) -> str:
        """Print the table under a heading of its title, its note and source below."""
        names, cells, below = self.texts()
        widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
        rules = [(":" if i == 0 else "-") + "-" * max(1, w - 2) + ("-" if i == 0 else ":")
                 for i, w in enumerate(widths)]  # fmt: skip
        lines = [f"### {self.title}", "", _line(names, widths), _line(rules, widths)]
        lines += [_line(row, widths) for row in cells]
        return "\n".join([*lines, "", *([below, ""] if below else [])])

    def as_json(self) -> dict[str, Any]:
        """Return title, note, source and a mapping for each row; NaN is null, infinity a string."""
        names = [column.name for column in self.columns]
        rows = [dict(zip(names, map(_plain, row), strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "source": self.source, "rows": rows}


class Scores:
    """Scores of many images, by row and column, in the order they first came."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, rows: Sequence[str], **scores: float) -> None:
        """Count an image's scores in each of the rows."""
        for row in rows:
            columns = self._values.setdefault(row, {})
            for name, value in scores.items():
                columns.setdefault(name, []).append(value)

    def rows(self) -> list[str]:
        """Return the rows' names."""
        return list(self._values)

    def values(self, row: str, column: str) -> list[float]:
        """Return what was added, image by image; nothing where nothing was."""
        return self._values.get(row, {}).get(column, [])

    def mean(self, row: str, column: str) -> float:
        """Average over the images that have the score; NaN where none has."""
        return mean(self.values(row, column))


def _print(cell: Cell, column: Column) -> str:
    if isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return "—"
    if math.isinf(cell):
        return "∞" if cell > 0 else "−∞"
    return f"{cell:d}" if isinstance(cell, int) else f"{cell:.{column.decimals}f}"


def _plain(cell: Cell) -> Cell | None:
    if isinstance(cell, float) and math.isnan(cell):
        return None
    return str(cell) if isinstance(cell, float) and math.isinf(cell) else cell


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join([first, *others]) + " |"
