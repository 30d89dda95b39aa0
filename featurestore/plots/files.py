"""Which files pictures are saved to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import InvalidInputError, did_you_mean

if TYPE_CHECKING:
    from featurestore.typing import PathLike

FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".svg": "svg", ".pdf": "pdf"}
# No date in the file: the same picture gives the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
    "jpg": {},
}


@dataclass(frozen=True)
class Target:
    """Where a picture goes once it is drawn."""

    path: Path | None
    dpi: int

    @classmethod
    def of(cls, path: PathLike | None, dpi: int) -> Target:
        """Check that a file can be written, before anything is computed.

        Parameters
        ----------
        path : str or os.PathLike, optional
            The file; its suffix says the format.
        dpi : int
            Resolution of PNG and JPG [dots per inch].

        Returns
        -------
        Target
            Checked.

        Raises
        ------
        InvalidInputError
            If the suffix is not known, the folder does not exist, or `dpi` is no resolution.
        """
        if not 1 <= dpi <= 10_000:
            raise InvalidInputError(f"dpi={dpi!r} is not a resolution from 1 to 10,000.")
        if path is None:
            return cls(None, dpi)
        file = Path(path).expanduser()
        if file.suffix.lower() not in FORMATS:
            near = did_you_mean(file.suffix.lower(), FORMATS)
            raise InvalidInputError(
                f"A picture cannot be saved as {file.name!r}: the suffix says the format, one of "
                f"{', '.join(FORMATS)}.{near}",
                path=str(file),
            )
        if not file.parent.is_dir():
            raise InvalidInputError(
                f"The folder {str(file.parent)!r} does not exist. Make it first: "
                f"Path({str(file.parent)!r}).mkdir(parents=True).",
                path=str(file),
            )
        return cls(file, dpi)

    def save(self, figure: Any) -> None:
        """Write a figure to the file, if there is to be one.

        Parameters
        ----------
        figure : matplotlib.figure.Figure
            The whole figure.
        """
        if self.path is None:
            return
        kind = FORMATS[self.path.suffix.lower()]
        options: dict[str, Any] = {"pil_kwargs": {"quality": 95}} if kind == "jpg" else {}
        figure.savefig(
            self.path, format=kind, dpi=self.dpi, metadata=METADATA[kind] or None, **options
        )
