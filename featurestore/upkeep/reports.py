"""What checking and housekeeping found and did: values that print themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.options import format_nbytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.storage.check import Finding

MAX_SHOWN = 20
MAX_DRIFT = 1e-2
"""Re-extracted rows that differ by more, relative to the row's largest value, are a finding:
other devices and versions differ by about 1e-3."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How rows of one column compare with the same rows extracted again."""

    model: str
    module: str
    column: str
    """The feature key."""
    n_rows: int
    n_equal: int
    """Rows with the same bits."""
    max_abs: float
    """Largest difference of any value; infinite where one is finite and the other is not."""
    max_rel: float
    """The same, relative to the largest magnitude in its row."""
    then: Mapping[str, Any]
    """Device, batch size, threads and versions of the run that stored the rows."""
    now: Mapping[str, Any]
    """The same of this process."""

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """What differs between then and now."""
        names = dict.fromkeys([*self.then, *self.now])
        return {
            name: (self.then.get(name), self.now.get(name))
            for name in names
            if self.then.get(name) != self.now.get(name)
        }

    def __str__(self) -> str:
        said = f"{self.model} {self.module}: {self.n_equal} of {self.n_rows} rows bit-equal"
        if self.n_equal < self.n_rows:
            said += f", at most {self.max_abs:.3g} off ({self.max_rel:.2g} of the row's largest)"
        if self.changed:
            said += "; " + ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in self.changed.items())
        return said


@dataclass(frozen=True, slots=True)
class PictureChange:
    """A picture that is not what a stored image set says."""

    name: str
    change: str
    """``"changed"``, ``"missing"``, ``"unreadable"`` or ``"new"``."""
    text: str


@dataclass(slots=True)
class VerifyReport:
    """What a check of a store found."""

    store: str
    fast: bool
    findings: list[Finding] = field(default_factory=list)
    n_columns: int = 0
    n_slots: int = 0
    n_rows: int = 0
    nbytes: int = 0
    """Values that were read and compared with their checksums [bytes]."""
    n_skipped: int = 0
    """Slots that an interrupted check had done before."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the images whose rows are lost, by digest."""
    drift: list[Drift] = field(default_factory=list)
    not_redone: dict[str, str] = field(default_factory=dict)
    """Columns that could not be extracted again, and why."""
    pictures: list[PictureChange] = field(default_factory=list)
    n_pictures: int = 0

    @property
    def damage(self) -> list[Finding]:
        """Findings that are worse than unused bytes."""
        return [finding for finding in self.findings if finding.is_damage]

    @property
    def drifted(self) -> list[Drift]:
        """Columns whose rows differ from what is computed now by more than `MAX_DRIFT`."""
        return [drift for drift in self.drift if not drift.max_rel <= MAX_DRIFT]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong that was not mended."""
        return not (
            any(not finding.repaired for finding in self.damage)
            or self.drifted
            or any(picture.change != "new" for picture in self.pictures)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs.

        Returns
        -------
        dict
            JSON-able.
        """
        facts = asdict(self)
        return {**facts, "ok": self.ok}

    def __repr__(self) -> str:
        how = "sizes and small files" if self.fast else f"{format_nbytes(self.nbytes)} of values"
        lines = [
            f"<featurestore.VerifyReport {self.store!r}: {'ok' if self.ok else 'NOT OK'}>",
            f"  {counted(self.n_columns, 'column')}, {counted(self.n_slots, 'slot')}, "
            f"{counted(self.n_rows, 'row')}; {how} checked"
            + (f", {self.n_skipped} slots before the interruption" if self.n_skipped else ""),
        ]
        lines += self._damage_lines()
        unused = [finding for finding in self.findings if not finding.is_damage]
        lines += [f"  unused: {finding.text}" for finding in unused[:MAX_SHOWN]]
        lines += [f"  extracted again: {drift}" for drift in self.drift]
        lines += [f"  not extracted again: {name}: {why}" for name, why in self.not_redone.items()]
        if self.n_pictures:
            counts = Counter(picture.change for picture in self.pictures)
            said = ", ".join(f"{n} {change}" for change, n in counts.items())
            lines.append(
                f"  {counted(self.n_pictures, 'picture')} read again: {said or 'all as stored'}"
            )
        lines += [f"    {p.name}: {p.text}" for p in self.pictures[:MAX_SHOWN]]
        return "\n".join(lines)

    def _damage_lines(self) -> list[str]:
        lines = []
        for finding in self.damage[:MAX_SHOWN]:
            state = "repaired" if finding.repaired else "damaged"
            lines.append(f"  {state}: {finding.path}: {finding.text}")
            names = [name for digest in finding.digests for name in self.names.get(digest, ())]
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"    images: {', '.join(names[:5])}{more}")
        if len(self.damage) > MAX_SHOWN:
            lines.append(f"  and {len(self.damage) - MAX_SHOWN} more; see .findings")
        if any(finding.problem == "rows" for finding in self.damage):
            lines.append(
                "  Rows that are lost count as missing (with repair=True, or once they were "
                "read): get() computes them again, everything else is kept."
            )
        return lines


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What compacting did."""

    n_rows_moved: int
    n_slots_written: int
    n_slots_emptied: int
    n_files_removed: int
    nbytes_freed: int
    """What the removed files took on disk [bytes]."""
    nbytes_waiting: int
    """What goes at the next compaction, once it has been out of use for the grace period
    [bytes]."""

    def __repr__(self) -> str:
        return (
            f"<featurestore.CompactReport: {counted(self.n_slots_emptied, 'slot')} became "
            f"{self.n_slots_written} ({counted(self.n_rows_moved, 'row')} moved), "
            f"{counted(self.n_files_removed, 'file')} removed, "
            f"{format_nbytes(self.nbytes_freed)} freed, "
            f"{format_nbytes(self.nbytes_waiting)} waiting for the grace period>"
        )


@dataclass(frozen=True, slots=True)
class DropReport:
    """What was taken away."""

    columns: tuple[str, ...]
    """Model and module of each column."""
    nbytes_freed: int
    """What it took on disk [bytes]."""
    n_rows_kept: int
    """Rows that stayed, because a tag protects them or shares their slot."""

    def __repr__(self) -> str:
        kept = f", {counted(self.n_rows_kept, 'row')} kept for tags" if self.n_rows_kept else ""
        return (
            f"<featurestore.DropReport: {counted(len(self.columns), 'column')}, "
            f"{format_nbytes(self.nbytes_freed)} freed{kept}>"
        )


def counted(n: int, noun: str) -> str:
    """Spell a number of things.

    Parameters
    ----------
    n : int
        How many.
    noun : str
        What, in the singular.

    Returns
    -------
    str
        Such as ``"1 row"`` or ``"2 rows"``.
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"
