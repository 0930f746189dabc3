"""Tables of plain text for reports on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], *, to_the_right: bool = False) -> list[str]:
    """Return lines with the cells of ``rows``, all of the same number of cells, under each other.

    Args:
        rows: texts of the cells.
        to_the_right: whether cells stand at the right of their columns, as numbers do.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    place = str.rjust if to_the_right else str.ljust
    lines = ("  ".join(place(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line if to_the_right else line.rstrip() for line in lines]
