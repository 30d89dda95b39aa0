"""What ``featurestore compare`` finds, for people and programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.plots.bars import compare as draw_bars
from featurestore.plots.files import Target
from featurestore.plots.grid import matrix as draw_matrix
from featurestore.rdms.structure import extra_dims, make_rdm, pair_dim, second
from featurestore.rsa.align import MIN_IMAGES, require_join
from featurestore.rsa.ceiling import noise_ceiling
from featurestore.rsa.compare import compare_rdms
from featurestore.tables import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featurestore.cli.rdm_files import Reading

DPI = 200
ROW, SUBJECT = "rdm", "subject"


def require_drawable(path: Path | None) -> None:
    """Refuse a picture that cannot be drawn, before anything is computed.

    Parameters
    ----------
    path : Path, optional
        The file; its suffix says the format.

    Raises
    ------
    InvalidInputError
        If it cannot be written.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if path is not None:
        import_optional("matplotlib", "plot")
        Target.of(path, DPI)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of RDMs, and what can be expected of them."""

    scores: xr.DataArray
    """Dims ``(rdm, …)`` with those of the target, or ``(rdm, rdm_2)``."""
    ceiling: xr.Dataset | None
    """What `noise_ceiling` says of the target's subjects."""
    target: str
    """The file that the others were compared with; empty if there was one only."""

    @classmethod
    def of(cls, paths: Sequence[Path], reading: Reading, *, method: str, join: str) -> Comparison:
        """Read RDMs and compare them.

        Parameters
        ----------
        paths : sequence of Path
            The last is what the others are compared with.
        reading : Reading
            How files are read.
        method : str
            As for `compare_rdms`.
        join : str
            As for `compare_rdms`; of all files.

        Returns
        -------
        Comparison
            The scores.

        Raises
        ------
        FeatureStoreError
            As `compare_rdms` and `read_rdms`.
        """
        require_join(join)
        rdms = [reading.read(path) for path in paths]
        if join == "inner":
            rdms = _in_all(rdms)
        if len(rdms) == 1:
            return cls(_with_each_other(rdms[0], paths[0], method), None, "")
        names = [path.stem if _is_unique(path, paths) else str(path) for path in paths]
        *firsts, target = rdms
        rows = [
            compare_rdms(_listed(rdm, name), target, method=method)
            for rdm, name in zip(firsts, names, strict=False)
        ]
        scores = xr.concat(rows, ROW, combine_attrs="drop_conflicts")
        has_subjects = target.sizes.get(SUBJECT, 0) > 1
        ceiling = noise_ceiling(target, method=method) if has_subjects else None
        return cls(scores, ceiling, str(paths[-1]))

    def draw(self, path: Path) -> None:
        """Draw the scores.

        Parameters
        ----------
        path : Path
            The file.
        """
        if not self.target:
            draw_matrix(self.scores, path=path, dpi=DPI)
            return
        one = self.ceiling is not None and not self.ceiling["lower"].ndim
        ceiling = self.ceiling if one else None
        title = f"with {PurePath(self.target).stem}"
        draw_bars(
            self.scores, dim=ROW, over=SUBJECT, ceiling=ceiling, title=title, path=path, dpi=DPI
        )

    def __repr__(self) -> str:
        facts = self.scores.attrs
        lines = [self._matrix() if not self.target else self._table()]
        lines.append(f"{facts['method']}, {facts['n_images']} images, {facts['n_pairs']} pairs")
        if self._n_dropped():
            lines[-1] += f"; up to {self._n_dropped()} pairs have no value (NaN) and are left out"
        if self._n_subjects():
            lines[-1] += f"; mean over {self._n_subjects()} subjects"
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the scores for programs.

        Returns
        -------
        dict
            JSON-able; a score that cannot be computed is none.
        """
        facts = self.scores.attrs
        head = {name: facts[name] for name in ("method", "n_images", "n_pairs")}
        head["n_dropped"] = self._n_dropped()
        if not self.target:
            labels = self.scores[ROW].values.tolist()
            return head | {
                "rdms": labels,
                "scores": [[_or_none(x) for x in row] for row in self.scores.values.tolist()],
            }
        mean, error = self._means()
        found = []
        for place in np.ndindex(mean.shape):
            row = {
                dim: _plain(mean[dim].values[k]) for dim, k in zip(mean.dims, place, strict=True)
            }
            row["score"] = _or_none(float(mean.values[place]))
            if error is not None:
                row["standard_error"] = _or_none(float(error.values[place]))
            found.append(row)
        out = head | {"target": self.target, "n_subjects": self._n_subjects(), "scores": found}
        if self.ceiling is not None:
            out["noise_ceiling"] = {
                name: self.ceiling[name].values.tolist() for name in ("lower", "upper")
            }
        return out

    def _means(self) -> tuple[xr.DataArray, xr.DataArray | None]:
        """Return the mean over subjects, and its standard error where there are several."""
        if SUBJECT not in self.scores.dims:
            return self.scores, None
        mean = self.scores.mean(SUBJECT, skipna=False)
        n = self._n_subjects()
        spread = self.scores.std(SUBJECT, ddof=1, skipna=False) if n > 1 else None
        return mean, None if spread is None else spread / math.sqrt(n)

    def _n_subjects(self) -> int:
        return int(self.scores.sizes.get(SUBJECT, 0))

    def _n_dropped(self) -> int:
        """Return how many pairs some comparison left out."""
        if "n_dropped" in self.scores.coords:
            return int(self.scores["n_dropped"].max())
        return int(self.scores.attrs["n_dropped"])

    def _table(self) -> str:
        mean, error = self._means()
        others = [str(dim) for dim in mean.dims if dim != ROW]
        labels = [_labels(mean, dim) for dim in others]
        header = [ROW]
        for words in product(*labels):
            header += [", ".join(words) or f"with {PurePath(self.target).stem}"]
            header += [] if error is None else ["± SEM"]
        rows = []
        for k, name in enumerate(_labels(mean, ROW)):
            cells = [f"{x:.3f}" for x in mean.values[k].ravel()]
            if error is not None:
                cells = [*_alternating(cells, [f"{x:.3f}" for x in error.values[k].ravel()])]
            rows.append([name, *cells])
        if self.ceiling is not None:
            ends = zip(*(self.ceiling[name].values.ravel() for name in ("lower", "upper")),
                       strict=True)  # fmt: skip
            bounds = [f"{low:.3f} to {high:.3f}" for low, high in ends]
            rows.append(["noise ceiling", *_alternating(bounds, [""] * len(bounds))])
        return format_table(header, rows, right=range(1, len(header)))

    def _matrix(self) -> str:
        labels = _labels(self.scores, ROW)
        rows = [
            [label, *(f"{x:.3f}" for x in row)]
            for label, row in zip(labels, self.scores.values, strict=True)
        ]
        return format_table([ROW, *labels], rows, right=range(1, len(labels) + 1))


def _with_each_other(rdms: xr.DataArray, path: Path, method: str) -> xr.DataArray:
    if rdms.ndim == 2 or rdms.size == rdms.shape[-1] ** 2:
        raise InvalidInputError(
            f"{str(path)!r} holds one RDM, and there is nothing to compare it with. Give another "
            "file."
        )
    return compare_rdms(_listed(rdms, ""), method=method)


def _listed(rdms: xr.DataArray, name: str) -> xr.DataArray:
    """Put all RDMs of a file along one dim, labelled."""
    dim, extra = pair_dim(rdms), extra_dims(rdms)
    labels = [
        " ".join(part for part in (name, *words) if part)
        for words in product(*(_labels(rdms, one) for one in extra))
    ]
    n = rdms.sizes[dim]
    values = rdms.transpose(*extra, dim, second(dim)).values.reshape(-1, n, n)
    along = {key: coord for key, coord in rdms.coords.items() if coord.dims == (dim,)}
    return make_rdm(
        values, along, dim, extra={ROW: np.array(labels, object)}, attrs=dict(rdms.attrs)
    )


def _labels(array: xr.DataArray, dim: str) -> list[str]:
    if dim in array.coords:
        return [str(label) for label in array[dim].values]
    return [f"{dim} {k}" for k in range(array.sizes[dim])]


def _in_all(rdms: Sequence[xr.DataArray]) -> list[xr.DataArray]:
    """Keep the images that all have, in the order of the last."""
    dim = pair_dim(rdms[-1])
    shared = set(rdms[-1][dim].values.tolist())
    for one in rdms:
        shared &= set(one[pair_dim(one)].values.tolist())
    kept = [name for name in rdms[-1][dim].values.tolist() if name in shared]
    if len(kept) < MIN_IMAGES:
        raise InvalidInputError(
            f"{len(kept)} images are in all {len(rdms)} files; {MIN_IMAGES} or more are needed."
        )
    return [one.sel({pair_dim(one): kept, second(pair_dim(one)): kept}) for one in rdms]


def _is_unique(path: Path, paths: Sequence[Path]) -> bool:
    return sum(path.stem == other.stem for other in paths) == 1


def _alternating(cells: Sequence[str], others: Sequence[str]) -> list[str]:
    return [cell for pair in zip(cells, others, strict=True) for cell in pair]


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
