"""The pictures of ``featurestore rdm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.plots.files import Target
from featurestore.plots.heatmap import rdm as draw_one
from featurestore.plots.panels import gallery
from featurestore.plots.shading import require_scaling
from featurestore.rdms.cluster import cluster_rdm

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

DPI = 200
SCALING, MAX_IMAGES = "rank", 200  # unless another is asked for
N_CLUSTERS, PER_CLUSTER = 5, 3  # so many at most; images in each at least, on average


@dataclass(frozen=True)
class Picture:
    """How an RDM, or several, will be drawn."""

    path: Path
    order: str | None
    options: dict[str, Any]

    @classmethod
    def of(
        cls, path: Path | None, n_rdms: int, *, order: str | None, scaling: str, max_images: int,
        thumbnails: bool,
    ) -> Picture | None:  # fmt: skip
        """Refuse what cannot be drawn, before anything is computed.

        Parameters
        ----------
        path : Path, optional
            The file; its suffix says the format. Nothing is drawn if not given.
        n_rdms : int
            How many.
        order : str, optional
            A coordinate, ``"cluster"`` or ``"none"``; by category, where there are several, if
            not given.
        scaling : str
            ``"rank"`` or ``"raw"``.
        max_images : int
            How many are shown at most.
        thumbnails : bool
            Whether pictures stand on the axes.

        Returns
        -------
        Picture or None
            Checked.

        Raises
        ------
        InvalidInputError
            If an option is not known, or the file cannot be written.
        MissingDependencyError
            If matplotlib is not installed.
        """
        if path is None:
            if (order, scaling, max_images, thumbnails) != (None, SCALING, MAX_IMAGES, False):
                raise InvalidInputError(
                    "--order, --scaling, --max-images and --thumbnails say how --plot draws. Add "
                    "--plot rdm.png."
                )
            return None
        import_optional("matplotlib", "plot")
        Target.of(path, DPI)
        require_scaling(scaling)
        options: dict[str, Any] = {"scaling": scaling, "max_images": max_images}
        if thumbnails:
            if n_rdms > 1:
                raise InvalidInputError("Several modules are drawn without --thumbnails.")
            options["thumbnails"] = True
        return cls(path, order, options)

    def draw(self, rdm: xr.DataArray) -> None:
        """Draw one RDM, or a panel for each module.

        Parameters
        ----------
        rdm : DataArray (image, image_2) or (module, image, image_2)
            Dissimilarities.
        """
        draw = draw_one if rdm.ndim == 2 else gallery
        order = self._order(rdm if rdm.ndim == 2 else rdm[0])
        draw(rdm, order=order, path=self.path, dpi=DPI, **self.options)

    def _order(self, rdm: xr.DataArray) -> Any:
        if self.order == "cluster":
            return cluster_rdm(rdm, max(1, min(N_CLUSTERS, len(rdm) // PER_CLUSTER)))
        if self.order is not None:
            return None if self.order == "none" else self.order
        several = "category" in rdm.coords and len(set(rdm["category"].values.tolist())) > 1
        return "category" if several else None
