"""RDMs in files that other programs read, names included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.options import format_nbytes
from featurestore.rdms.files import KEYED, names_beside
from featurestore.rdms.read import read_rdms
from featurestore.rdms.structure import extra_dims, pair_dim

if TYPE_CHECKING:
    from collections.abc import Callable

NETCDF = ".nc"
NAMED = (".csv", ".tsv", ".txt")  # may name their rows themselves
NAMELESS = (".npy", *KEYED)
NETCDF_NBYTES = 2**31  # of one array in the classic format, which needs no library beyond SciPy


@dataclass(frozen=True, slots=True)
class Destination:
    """A file that an RDM will be written to."""

    path: Path
    write: Callable[[xr.DataArray, Path], None]

    @classmethod
    def of(cls, path: Path, n_rdms: int) -> Destination:
        """Check that it can be written, before anything is computed.

        Parameters
        ----------
        path : Path
            The file; its suffix says the format.
        n_rdms : int
            How many RDMs go into it.

        Returns
        -------
        Destination
            Checked.

        Raises
        ------
        InvalidInputError
            If the suffix is not known or cannot hold several, or the folder does not exist.
        """
        suffix = path.suffix.lower()
        if suffix not in WRITERS:
            raise InvalidInputError(
                f"An RDM cannot be written to {path.name!r}: the suffix says the format, one of "
                f"{', '.join(WRITERS)}.{did_you_mean(suffix, WRITERS)}",
                path=str(path),
            )
        if n_rdms > 1 and suffix != NETCDF:
            raise InvalidInputError(
                f"A {suffix} file cannot say which of {n_rdms} modules an RDM is of. Write them to "
                f"{path.with_suffix(NETCDF).name!r}, or ask for one module."
            )
        if not path.parent.is_dir():
            raise InvalidInputError(f"The folder {str(path.parent)!r} does not exist.")
        return cls(path, WRITERS[suffix])

    def save(self, rdm: xr.DataArray) -> list[Path]:
        """Write the RDM.

        Parameters
        ----------
        rdm : DataArray (…, image, image_2)
            In memory or lazy; it is read whole.

        Returns
        -------
        list of Path
            The files: one, or the array and its names.
        """
        self.write(rdm, self.path)
        names = names_beside(self.path)
        return [self.path] if self.write is not _write_npy else [self.path, names]


def _write_netcdf(rdm: xr.DataArray, path: Path) -> None:
    if rdm.nbytes >= NETCDF_NBYTES:
        raise InvalidInputError(
            f"{rdm.shape} dissimilarities take {format_nbytes(rdm.nbytes)}, more than a file of "
            "this kind holds. They are kept in the store; read them in parts in Python: "
            "store.rdm(…)."
        )
    try:
        rdm.to_netcdf(path, engine="scipy")
    except ValueError as err:  # such as whole numbers beyond 32 bits, in a column of the images
        raise InvalidInputError(f"{path.name!r} cannot hold these labels: {err} Use .csv.") from err


def _write_npy(rdm: xr.DataArray, path: Path) -> None:
    # By a file of its own: NumPy would append its suffix to 'rdm.NPY'.
    with path.open("wb") as file:
        np.save(file, np.asarray(_alone(rdm).values))
    names = rdm[pair_dim(rdm)].values
    for name in names:
        if "\n" in str(name) or "\r" in str(name):
            raise InvalidInputError(f"The name {name!r} has a line break; write to .nc instead.")
    text = "".join(f"{name}\n" for name in names)
    names_beside(path).write_text(text, encoding="utf-8")


def _write_csv(rdm: xr.DataArray, path: Path) -> None:
    frame = _alone(rdm).reset_coords(drop=True).to_pandas()
    # Nothing in the corner: that is how names that are numbers are told from dissimilarities.
    frame.index.name = frame.columns.name = None
    frame.to_csv(path, na_rep="nan")


def _alone(rdm: xr.DataArray) -> xr.DataArray:
    """Return the only RDM of an array that may have leading dims."""
    return rdm.isel(dict.fromkeys(extra_dims(rdm), 0))


WRITERS = {NETCDF: _write_netcdf, ".csv": _write_csv, ".npy": _write_npy}


@dataclass(frozen=True, slots=True)
class Reading:
    """How RDMs are read from files."""

    names: Path | None
    """A list of names, for files that have none."""
    dims: tuple[str, ...]
    """What leading axes are, in files that do not say so."""
    key: str | None
    """Which variable of a file that has several."""

    def read(self, path: Path) -> xr.DataArray:
        """Read a file.

        Parameters
        ----------
        path : Path
            What ``featurestore rdm --out`` wrote, or what `read_rdms` reads.

        Returns
        -------
        DataArray (…, image, image_2)
            In memory.

        Raises
        ------
        FeatureStoreError
            As `read_rdms`.
        """
        suffix = path.suffix.lower()
        if suffix == NETCDF:
            return _read_netcdf(path)
        names = self.names
        if suffix == ".npy" and names_beside(path).is_file():
            return self._labelled(path, None)  # it has names of its own, whatever the others have
        if names is None and suffix in NAMELESS:
            raise InvalidInputError(
                f"{str(path)!r} does not say which image a row is. Give a list of names in the "
                "order of the rows: --names names.csv, with a column 'image', 'file' or 'name', or "
                "a text file with one name per line."
            )
        if suffix in NAMED and names is not None:
            try:
                return self._labelled(path, None)
            except InvalidInputError:
                pass  # it has no names of its own, or the same error follows
        return self._labelled(path, names)

    def _labelled(self, path: Path, names: Path | None) -> xr.DataArray:
        key = self.key if path.suffix.lower() in KEYED else None
        try:
            return read_rdms(path, names=names, key=key)
        except InvalidInputError as err:
            if len(getattr(err, "shape", ())) != len(self.dims):
                raise
            return read_rdms(path, names=names, key=key, dims=self.dims)


def _read_netcdf(path: Path) -> xr.DataArray:
    if not path.is_file():
        raise InvalidInputError(f"There is no file {str(path)!r}.")
    try:
        rdm = xr.load_dataarray(path, engine="scipy")
    except (OSError, ValueError, TypeError) as err:
        raise InvalidInputError(
            f"{str(path)!r} cannot be read: {err}. It would be what 'featurestore rdm --out' wrote."
        ) from err
    pair_dim(rdm)
    return rdm
