"""Tables of scores as text, Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import NamedTuple

NOTHING = "-"


class Spread(NamedTuple):
    """What several runs have in the mean, and how far they are apart."""

    mean: float
    deviation: float | None  # standard deviation of the sample (n - 1); None of a single value
    n: int
    signed: bool = False  # a difference is shown with its sign

    def in_text(self, plus_minus: str) -> str:
        """65.19 +- 0.73 (3)."""
        middle = f"{self.mean:+.2f}" if self.signed else f"{self.mean:.2f}"
        return middle + ("" if self.deviation is None else f" {plus_minus} {self.deviation:.2f}") + f" ({self.n})"


def spread_of(values: Sequence[float], *, signed: bool = False) -> Spread | None:
    """Mean, standard deviation and number of values; None where there is none."""
    if not values:
        return None
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values), signed)


Cell = str | Spread | None
"""What stands in a table; None: nothing was measured."""


class Table(NamedTuple):
    """Cells under a head; the first column names the rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def as_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Columns of equal width, for a terminal."""
    parts = []
    for table in tables:
        cells = [table.head, *(tuple(_shown(cell, "+-") for cell in row) for row in table.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.head))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
        left = [f"{row[0]:<{widths[0]}}{line[widths[0] :]}" for row, line in zip(cells, lines, strict=True)]
        parts.append("\n".join([*([table.caption, ""] if table.caption else []), *left]))
    return "\n\n".join([*parts, *(["\n".join(notes).strip("\n")] if notes else [])])


def as_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables of GitHub's Markdown."""
    parts = []
    for table in tables:
        rows = [table.head, ("---",) * len(table.head)]
        body = [tuple(_markdown(_shown(cell, "±")) for cell in row) for row in table.rows]
        lines = [f"| {' | '.join(row)} |" for row in (tuple(map(_markdown, rows[0])), rows[1], *body)]
        parts.append("\n".join([*([table.caption, ""] if table.caption else []), *lines]))
    listed = "\n".join(f"- {_markdown(note.strip())}" for note in notes if note.strip())
    return "\n\n".join([*parts, *([listed] if listed else [])])


def as_csv(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """One table whose first column is the caption; mean, standard deviation and n apart, and empty where nothing is.

    Notes have no place in it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spread = {i for t in tables for row in t.rows for i, cell in enumerate(row) if isinstance(cell, Spread)}
    for number, table in enumerate(tables):
        if not number:
            heads = ([f"{h} mean", f"{h} sd", f"{h} n"] if i in spread else [h] for i, h in enumerate(table.head))
            writer.writerow(["table", *(name for head in heads for name in head)])
        for row in table.rows:
            parts = (_numbers(cell) if i in spread else [_bare(cell)] for i, cell in enumerate(row))
            writer.writerow([table.caption, *(part for cell in parts for part in cell)])
    return file.getvalue().rstrip("\n")


def as_latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables that need no package; notes are comments."""
    parts = []
    for table in tables:
        lines = [f"% {_one_line(table.caption)}"] if table.caption else []
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", "\\hline"]
        lines += [" & ".join(map(_latex, table.head)) + " \\\\", "\\hline"]
        lines += [" & ".join(_latex_cell(cell) for cell in row) + " \\\\" for row in table.rows]
        parts.append("\n".join([*lines, "\\hline", "\\end{tabular}"]))
    comments = [f"% {_one_line(note)}" for note in notes if note.strip()]
    return "\n\n".join([*parts, *(["\n".join(comments)] if comments else [])])


FORMATS: dict[str, Callable[[Sequence[Table], Sequence[str]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}
"""What writes tables and notes, by the name of the format."""


def _shown(cell: Cell, plus_minus: str) -> str:
    if cell is None:
        return NOTHING
    return cell.in_text(plus_minus) if isinstance(cell, Spread) else cell


def _markdown(text: str) -> str:
    """Text in which nothing is a mark: `*`, `_`, `|` and the like stand for themselves."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_|<>[]" else letter for letter in text)
    return _one_line(escaped)


def _bare(cell: Cell) -> str:
    return "" if cell is None or cell == NOTHING else str(cell)


def _numbers(cell: Cell) -> list[str]:
    """Mean, deviation and n of a cell."""
    if not isinstance(cell, Spread):
        return ["", "", "0"]
    return [f"{cell.mean:.4f}", "" if cell.deviation is None else f"{cell.deviation:.4f}", str(cell.n)]


_OF_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _latex(text: str) -> str:
    """Text in which nothing is a command."""
    return _one_line("".join(_OF_LATEX.get(letter, letter) for letter in text))


def _latex_cell(cell: Cell) -> str:
    if not isinstance(cell, Spread):
        return _latex(_shown(cell, ""))
    numbers, n = cell.in_text("\\pm").rsplit(" ", 1)
    return f"${numbers}$ {n}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
