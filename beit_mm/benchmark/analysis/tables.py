"""Tables of text: aligned for a terminal, as Markdown, as CSV; and which endings a file to write may have."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..publish import check_out_file
from . import AnalysisError

Cells = Sequence[Sequence[str]]


def _widths(header: Sequence[str], rows: Cells) -> list[int]:
    return [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]


def _line(cells: Sequence[str], widths: Sequence[int], between: str) -> str:
    first, *rest = (f'{cell:{"<" if i == 0 else ">"}{width}}' for i, (cell, width) in enumerate(zip(cells, widths)))
    return between.join([first, *rest])


def aligned(header: Sequence[str], rows: Cells) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = _widths(header, rows)
    return '\n'.join(_line(cells, widths, '  ').rstrip() for cells in (header, *rows))


def markdown(header: Sequence[str], rows: Cells) -> str:
    """The same as a Markdown table."""
    widths = _widths(header, rows)
    rule = '|'.join(['-' * (widths[0] + 2), *('-' * (width + 1) + ':' for width in widths[1:])])
    lines = [f'| {_line(cells, widths, " | ")} |' for cells in (header, *rows)]
    return '\n'.join([lines[0], f'|{rule}|', *lines[1:]]) + '\n'


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Rows of anything, below their header."""
    with open(path, 'w', newline='') as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def target(out: str | Path, endings: Sequence[str]) -> Path:
    """The file to write, its folder made. Raises AnalysisError for an ending that is none of these."""
    path = Path(out)
    if path.suffix.lower() not in endings:
        raise AnalysisError(f'--out {out}: give a file that ends in {" or ".join(endings)}')
    check_out_file(path)
    return path
