"""Which images an RDM holds together, and an order that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from featurestore.errors import InvalidInputError, MemoryBudgetError, did_you_mean
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.structure import extra_dims, pair_dim, second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

METHODS = ("average", "complete", "single", "weighted")
MAX_OPTIMAL = 2_000  # ordering the leaves takes seconds here, and grows faster than n²
N_COPIES = 4  # square, condensed, and what the linkage works on
ASYMMETRY = 1e-4  # of the largest dissimilarity; float32 arithmetic stays far below
N_NAMED = 5


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of images, and the order that puts each of them together.

    Made by `cluster_rdm`. Give it to ``fs.plots.rdm(other, order=clusters)`` to show another RDM
    of the same images in this order.
    """

    labels: xr.DataArray
    """Number of each image's cluster, from 0 in display order; dims ``(image,)``, with the
    images' coordinates, in the RDM's own order."""
    order: tuple[str, ...]
    """Names of the images in display order: the clusters one after the other."""

    @property
    def n_clusters(self) -> int:
        """How many clusters there are."""
        return int(self.labels.max()) + 1

    def __repr__(self) -> str:
        dim = str(self.labels.dims[0])
        sizes = np.bincount(self.labels.values)
        counts = ", ".join(str(size) for size in sizes[:20]) + (", …" if len(sizes) > 20 else "")
        return (
            f"<featurestore.Clusters: {len(self.order)} {dim}s in {self.n_clusters}>\n"
            f"  sizes   {counts}\n"
            f"  metric  {self.labels.attrs['metric']}, {self.labels.attrs['method']} linkage"
        )


def cluster_rdm(rdm: xr.DataArray, n_clusters: int = 5, *, method: str = "average") -> Clusters:
    """Cluster images by their dissimilarities, and put them in an order that shows the clusters.

    Hierarchical clustering (average linkage, or UPGMA: Sokal and Michener 1958, Univ. Kansas Sci.
    Bull. 38:1409), cut where `n_clusters` are left; leaves ordered so that neighbours are alike
    (Bar-Joseph et al. 2001, https://doi.org/10.1093/bioinformatics/17.suppl_1.S22; above 2,000
    images they keep the order of the tree, which costs less). It needs dissimilarities alone;
    k-means would need the features.

    Parameters
    ----------
    rdm : DataArray (image, image_2)
        Dissimilarities, without NaN.
    n_clusters : int
        How many clusters, from 1 to the number of images.
    method : str
        How far two clusters are apart: ``"average"``, ``"complete"``, ``"single"`` or
        ``"weighted"``, as in `scipy.cluster.hierarchy.linkage`.

    Returns
    -------
    Clusters
        Labels by name, and the order. It depends on names and dissimilarities only: the same
        images in another order give the same clusters, labels and order.

    Raises
    ------
    InvalidInputError
        If the RDM has leading dims, repeated names, NaN (`images`: their names), is not symmetric,
        or one of the options is not known.
    MemoryBudgetError
        If four float64 copies of the RDM exceed `memory_budget`.

    Examples
    --------
    >>> import numpy as np
    >>> from featurestore.rdms.structure import make_rdm
    >>> points = np.array([0.0, 5.0, 0.1, 5.2])
    >>> rdm = make_rdm(abs(points[:, None] - points), {"image": ["a", "b", "c", "d"]})
    >>> clusters = cluster_rdm(rdm, 2)
    >>> clusters.order, clusters.labels.values.tolist()
    (('a', 'c', 'b', 'd'), [0, 1, 0, 1])
    """
    dim = _require_one(rdm, method)
    names = [str(name) for name in rdm[dim].values]
    _require_count(n_clusters, len(names), dim)
    # By name, so that ties, and the two directions an order can run, do not hang on the order of
    # the rows.
    by_name = np.argsort(np.array(names, dtype=object), kind="stable")
    distances = _condensed(rdm, dim, by_name)
    numbers, leaves = _cut(distances, len(names), n_clusters, method)
    labels = np.empty(len(names), dtype=np.int64)
    labels[by_name] = numbers
    first = {key: value for key, value in rdm.coords.items() if value.dims == (dim,)}
    attrs = {"metric": str(rdm.attrs.get("metric", "dissimilarity")), "method": method}
    return Clusters(
        xr.DataArray(labels, dims=(dim,), coords=first, name="cluster", attrs=attrs),
        tuple(names[by_name[leaf]] for leaf in leaves),
    )


def _cut(
    distances: NDArray[np.float64], n: int, n_clusters: int, method: str
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the cluster of each image and the images in display order."""
    if n == 1:
        return np.zeros(1, dtype=np.int64), [0]
    tree = hierarchy.linkage(distances, method=cast("Any", method))
    if n <= MAX_OPTIMAL:
        tree = hierarchy.optimal_leaf_ordering(tree, distances)
    leaves = hierarchy.leaves_list(tree).tolist()
    if leaves[0] > leaves[-1]:  # an order says the same backwards
        leaves.reverse()
    found = hierarchy.cut_tree(tree, [n_clusters]).ravel()
    number = {cluster: k for k, cluster in enumerate(dict.fromkeys(found[leaves].tolist()))}
    return np.array([number[cluster] for cluster in found.tolist()], dtype=np.int64), leaves


def _condensed(rdm: xr.DataArray, dim: str, order: NDArray[np.intp]) -> NDArray[np.float64]:
    """Read the pairs in an order, as SciPy wants them."""
    n = len(order)
    needed, budget = N_COPIES * n * n * 8, get_options().memory_budget
    if needed > budget:
        raise MemoryBudgetError(
            f"Clustering {n:,} {dim}s takes about {format_nbytes(needed)}, and memory_budget is "
            f"{format_nbytes(budget)}. Choose fewer {dim}s, or raise it with "
            "fs.set_options(memory_budget='…').",
            projected_nbytes=needed,
            allowed_nbytes=budget,
        )
    values = np.asarray(rdm.values, dtype=np.float64)[np.ix_(order, order)]
    names = rdm[dim].values[order]
    _require_values(values, names, dim)
    return squareform((values + values.T) / 2, checks=False)


def _require_values(values: NDArray[np.float64], names: NDArray[Any], dim: str) -> None:
    missing = ~np.isfinite(values)
    np.fill_diagonal(missing, val=False)
    if missing.any():
        alone = missing.sum(axis=0) == max(1, len(values) - 1)
        bad = [str(name) for name in names[alone if alone.any() else missing.any(axis=0)]]
        raise InvalidInputError(
            f"The RDM has no finite dissimilarity for some pairs of {_some(bad)}, so it is not "
            f"known where they belong. Leave them out: rdm.drop_sel({dim}=names, "
            f"{second(dim)}=names).",
            images=bad,
        )
    scale = np.abs(values).max(initial=0)
    apart = np.abs(values - values.T)
    if apart.max(initial=0) > ASYMMETRY * scale:
        i, j = np.unravel_index(int(apart.argmax()), apart.shape)
        raise InvalidInputError(
            f"The RDM is not symmetric: {names[i]!r} to {names[j]!r} is {values[i, j]:g}, and back "
            f"it is {values[j, i]:g}."
        )


def _require_one(rdm: xr.DataArray, method: str) -> str:
    dim = pair_dim(rdm)
    if extra := extra_dims(rdm):
        raise InvalidInputError(
            f"The RDM has more dims than two: {', '.join(extra)}. Choose one of them, for example "
            f"rdm.isel({extra[0]}=0), or average: rdm.mean({extra[0]!r}).",
            dims=rdm.dims,
        )
    if method not in METHODS:
        near = did_you_mean(str(method), METHODS)
        raise InvalidInputError(
            f"There is no method {method!r} to cluster. There are {', '.join(METHODS)}.{near}",
            method=method,
        )
    names = rdm[dim].values
    _, counts = np.unique(names.astype(str), return_counts=True)
    if (counts > 1).any():
        twice = next(str(name) for name in names if (names == name).sum() > 1)
        raise InvalidInputError(
            f"{twice!r} stands for several rows, and clusters are told apart by name. Average the "
            f"features first: features.groupby({dim!r}).mean().",
            name=twice,
        )
    return dim


def _require_count(n_clusters: Any, n: int, dim: str) -> None:
    whole = isinstance(n_clusters, int | np.integer) and not isinstance(n_clusters, bool)
    if not whole or not 1 <= n_clusters <= n:
        raise InvalidInputError(
            f"n_clusters={n_clusters!r} cannot be: there are {n} {dim}s, so it would be a whole "
            f"number from 1 to {n}.",
            n_clusters=n_clusters,
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:N_NAMED]))
    return shown + (f" and {len(names) - N_NAMED:,} more" if len(names) > N_NAMED else "")
