"""RDMs in text files: square with or without names, condensed, or one pair per line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.rdms.found import FoundValues, shape_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Table = list[list[str]]

MISSING = frozenset({"", "na", "nan", "n/a"})
PAIR_COLUMNS = 3  # one image, the other, their dissimilarity


def read_table(path: str) -> list[list[str]]:
    """Read a text file as rows of cells.

    Parameters
    ----------
    path : str
        A file whose cells are separated by tabs, semicolons, commas or blanks.

    Returns
    -------
    list of list of str
        Rows of equal length, without surrounding blanks; empty lines are left out.

    Raises
    ------
    InvalidInputError
        If it is no text, empty, or ragged.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InvalidInputError(f"{path!r} is no text file (UTF-8): {err}") from err
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InvalidInputError(f"{path!r} is empty.")
    separator = next((mark for mark in "\t;," if mark in lines[0]), None)
    if separator is None:
        rows = [line.split() for line in lines]
    else:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if len(rows) > 1 and len(rows[0]) == len(rows[1]) - 1 and not all(map(_is_number, rows[0])):
        rows[0].insert(0, "")  # R writes nothing above the names of rows
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise InvalidInputError(
                f"{path!r}: line {number + 1} has {len(row)} cells, line 1 has {len(rows[0])}."
            )
    return rows


def read_text_rdm(path: str) -> FoundValues:
    """Read the RDM in a text file.

    Parameters
    ----------
    path : str
        A square table, with names in the first row, the first column, both or neither; or three
        columns, with the names of two images and their dissimilarity; or a condensed RDM, in one
        row or column, or several, one per row.

    Returns
    -------
    FoundValues
        The numbers, and the names if the file has any; columns in the order of the rows.

    Raises
    ------
    InvalidInputError
        If a cell is no number, names repeat, rows and columns are not named alike, or pairs lack.
    """
    rows = read_table(path)
    header, index = _has_header(rows), _has_index(rows)
    if len(rows[0]) == PAIR_COLUMNS and _is_list_of_pairs(rows, header=header):
        return _from_pairs(path, rows[1:] if header else rows)
    body = [row[1:] if index else row for row in (rows[1:] if header else rows)]
    values = _numbers(path, body, first_row=int(header), first_column=int(index))
    row_names = [row[0] for row in rows[int(header) :]] if index else None
    column_names = rows[0][int(index) :] if header else None
    if values.shape[0] == 1 or values.shape[1] == 1:
        return FoundValues(values.ravel())
    if header or index:
        return _named(path, values, row_names, column_names)
    return FoundValues(values)


def _named(
    path: str,
    values: NDArray[Any],
    row_names: list[str] | None,
    column_names: list[str] | None,
) -> FoundValues:
    """Bring the columns of a square table into the order of its rows."""
    names = row_names or column_names or []
    if values.shape[0] != values.shape[1]:
        raise InvalidInputError(
            f"{path!r} has names and {shape_word(values.shape)} numbers, which is not square. "
            "Write a square table, or three columns: two names and their dissimilarity."
        )
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{path!r} names {repeated!r} more than once.")
    if row_names and column_names and row_names != column_names:
        places = {name: place for place, name in enumerate(column_names)}
        if set(places) != set(row_names):
            only = [name for name in row_names if name not in places]
            raise InvalidInputError(
                f"{path!r}: the first row and the first column do not name the same images; "
                f"{', '.join(map(repr, only[:3]))} are only in the column."
            )
        values = values[:, [places[name] for name in row_names]]
    return FoundValues(values, tuple(names))


def _has_header(rows: Table) -> bool:
    """Say whether the first row is names."""
    if len(rows[0]) == PAIR_COLUMNS and not _is_number(rows[0][1]):
        return not _is_number(rows[0][2])
    cells = rows[0][1:] or rows[0]
    return any(not _is_number(cell) for cell in cells) or _corner_tells(rows)


def _has_index(rows: Table) -> bool:
    """Say whether the first column is names."""
    cells = [row[0] for row in rows[1:]] or [rows[0][0]]
    if len(rows[0]) == 1:
        return False
    return any(not _is_number(cell) for cell in cells) or _corner_tells(rows)


def _corner_tells(rows: Table) -> bool:
    """Say whether the first row and column are names, which may be numbers.

    A word in their corner shows it, or nothing; but a table that leaves its whole diagonal empty
    has no names.
    """
    if len(rows) != len(rows[0]) or len(rows) < 2:
        return False
    corner, edges = rows[0][0], rows[0][1:] + [row[0] for row in rows[1:]]
    if not all(map(_is_number, edges)):
        return False
    return not _is_number(corner) or (not corner and all(edges) and bool(rows[1][1]))


def _is_list_of_pairs(rows: Table, *, header: bool) -> bool:
    body = rows[1:] if header else rows
    if header and (not rows[0][0] or sorted(rows[0][1:]) == sorted(row[0] for row in body)):
        return False  # two images, named in the first row and column
    named = any(not _is_number(row[1]) for row in body)  # in a square table a column of numbers
    return named or (header and len(body) != PAIR_COLUMNS)


def _from_pairs(path: str, rows: Table) -> FoundValues:
    """Make a square table of one pair per line, given once or in both directions."""
    firsts, seconds = [row[0] for row in rows], [row[1] for row in rows]
    names = list(dict.fromkeys(name for pair in zip(firsts, seconds, strict=True) for name in pair))
    names = _first_column_first(firsts, names)
    places = {name: place for place, name in enumerate(names)}
    values = _numbers(path, [[row[2]] for row in rows], first_row=0, first_column=2).ravel()
    square = np.zeros((len(names), len(names)))
    seen = np.eye(len(names), dtype=bool)
    given = np.zeros_like(seen)
    for first, other, value in zip(firsts, seconds, values, strict=True):
        i, j = places[first], places[other]
        if given[i, j] and not np.array_equal(square[i, j], value, equal_nan=True):
            raise InvalidInputError(
                f"{path!r} gives {first!r} and {other!r} two dissimilarities: {square[i, j]:.6g} "
                f"and {value:.6g}."
            )
        for place in ((i, j), (j, i)):
            square[place], seen[place], given[place] = value, True, True
    if not seen.all():
        i, j = np.argwhere(~seen)[0]
        raise InvalidInputError(
            f"{path!r} lacks {int((~seen).sum()) // 2} pairs of its {len(names)} images, such as "
            f"{names[i]!r} and {names[j]!r}. Write NaN where a dissimilarity is not known."
        )
    return FoundValues(square, tuple(names))


def _first_column_first(firsts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Order names as they lead their pairs, which is the order of the images in most files."""
    leading = dict.fromkeys(firsts)
    return [*leading, *(name for name in names if name not in leading)]


def _numbers(path: str, rows: Table, *, first_row: int, first_column: int) -> NDArray[np.float64]:
    out = np.empty((len(rows), len(rows[0])))
    for number, row in enumerate(rows):
        try:
            out[number] = [np.nan if cell.lower() in MISSING else cell for cell in row]
        except ValueError as err:
            bad = next(n for n, cell in enumerate(row) if not _is_number(cell))
            raise InvalidInputError(
                f"{path!r}: {row[bad]!r} in row {number + first_row + 1}, column "
                f"{bad + first_column + 1}, is no number. Decimals are written with a point."
            ) from err
    return out


def _is_number(cell: str) -> bool:
    if cell.lower() in MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
