"""Tables that a store shows: plain lists of records that print well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import CorruptDataError
from featurestore.keys import spell_tap
from featurestore.networks.taps import Tap
from featurestore.options import format_nbytes
from featurestore.storage.imagesets import ImageSetInfo
from featurestore.storage.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from featurestore.networks.spec import ModelRecord
    from featurestore.storage.catalog import Catalog
    from featurestore.storage.layout import ColumnLayout


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column of a store."""

    model: str
    weights: str
    module: str
    readout: str
    """``"none"`` if everything is kept."""
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    precision: str
    n_images: int
    nbytes: int
    """What it takes on disk [bytes]."""
    key: str
    """The feature key."""

    @classmethod
    def of(
        cls, record: ModelRecord | None, layout: ColumnLayout, n_images: int, nbytes: int
    ) -> ColumnInfo:
        """Describe a column.

        Parameters
        ----------
        record : ModelRecord, optional
            Its model; ``None`` if the record is lost.
        layout : ColumnLayout
            The column.
        n_images : int
            Images with a row.
        nbytes : int
            Size on disk [bytes].

        Returns
        -------
        ColumnInfo
            Its description.
        """
        feature: Any = layout.feature
        tap = Tap(str(feature["module"]), int(feature["call"]), tuple(feature["path"]))
        return cls(
            model=record.label if record else str(feature["model"]),
            weights=record.weights_label if record else "?",
            module=spell_tap(record, tap) if record else str(tap),
            readout=str(feature["readout"] or "none"),
            dims=layout.dims,
            shape=layout.shape,
            dtype=layout.dtype,
            precision=str(feature["precision"]),
            n_images=n_images,
            nbytes=nbytes,
            key=layout.key,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the description for programs.

        Returns
        -------
        dict
            JSON-able.
        """
        return asdict(self)


def describe_columns(catalog: Catalog) -> Iterator[ColumnInfo]:
    """Describe the columns of a store that hold something.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Yields
    ------
    ColumnInfo
        In no particular order.
    """
    for layout in catalog.layouts():
        try:
            record = catalog.model(str(layout.feature["model"]))
        except CorruptDataError:
            record = None  # its columns are listed all the same
        column = catalog.column(layout.key)
        info = ColumnInfo.of(record, layout, column.n_rows(), column.nbytes())
        if info.n_images or info.nbytes:  # else it was dropped
            yield info


class ColumnTable(list[ColumnInfo]):
    """Columns of a store, by model and module.

    Parameters
    ----------
    columns : iterable of ColumnInfo
        In any order.
    """

    def __init__(self, columns: Iterable[ColumnInfo]) -> None:
        super().__init__(sorted(columns, key=lambda c: (c.model, c.weights, c.module, c.key)))

    def __repr__(self) -> str:
        if not self:
            return "<no columns yet>"
        rows = [
            (
                column.model,
                column.weights,
                column.module,
                column.readout,
                "x".join(str(n) for n in column.shape),
                column.dtype if column.precision == "fp32" else
                f"{column.dtype} ({column.precision})",
                str(column.n_images),
                format_nbytes(column.nbytes),
            )
            for column in self
        ]  # fmt: skip
        header = ("model", "weights", "module", "readout", "shape", "dtype", "images", "on disk")
        return format_table(header, rows, right=(6, 7))


class ImageSetTable(list[ImageSetInfo]):
    """Image sets that a store was asked about, oldest first."""

    def __repr__(self) -> str:
        if not self:
            return "<no images yet>"
        rows = [(i.label, str(i.n_images), i.created, i.key[:12]) for i in self]
        return format_table(("label", "images", "first asked for", "key"), rows, right=(1,))


class TagTable(list[Tag]):
    """Tags of a store, oldest first."""

    def __repr__(self) -> str:
        if not self:
            return "<no tags yet>"
        rows = [(t.name, str(len(t.rows)), str(t.n_rows), t.created) for t in self]
        return format_table(("tag", "columns", "rows", "made"), rows, right=(1, 2))


def printable(text: str) -> str:
    r"""Spell out what would steer a terminal: names may come from a stranger's store.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        The same on one line, control characters as escapes.

    Examples
    --------
    >>> printable("grün\x1b[2J")
    'grün\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """Lay out a table in plain text.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        One text per column.
    right : sequence of int
        Columns that are aligned to the right.

    Returns
    -------
    str
        Lines without trailing spaces.

    Examples
    --------
    >>> print(format_table(("name", "n"), [("a", "1"), ("bcdef", "20")], right=(1,)))
    name    n
    a       1
    bcdef  20
    """
    header = [printable(cell) for cell in header]
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
