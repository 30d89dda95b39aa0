"""Kernels between images: what CKA compares, and what kernel ridge is fitted with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy.spatial.distance import squareform

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.rdms.centred import (
    centred_products,
    double_centred,
    require_finite,
    require_memory,
)
from featurestore.rdms.derived import derived_attrs
from featurestore.rdms.gram import gram
from featurestore.rdms.structure import make_rdm

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.rdms.gram import Gram

Kernel = Literal["linear", "rbf"]


def kernel_matrix(
    features: xr.DataArray,
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
    centre: bool = True,
    dim: str = "image",
) -> xr.DataArray:
    """Return the kernel between images, for ridge regression and other methods that take one.

    A ridge regression on the features and a kernel ridge on their linear kernel predict the same;
    the second never needs the features again and costs the same for 3 million as for 3,000.

    Parameters
    ----------
    features : DataArray (image, …)
        Real numbers, in memory or lazy. All dims but `dim` count as features.
    kernel : str
        ``"linear"``, inner products, or ``"rbf"``, ``exp(−d² / (2 width²))`` of Euclidean
        distances.
    bandwidth : float
        Width of ``"rbf"``, relative to the median distance between two of these images.
    centre : bool
        Whether features have the mean over *all* these images taken off (in the space that the
        kernel stands for). Where some images are held out, that lets them take part in the
        training: give false, and centre with the training images alone, as below.
    dim : str
        What a row is.

    Returns
    -------
    DataArray (image, image_2)
        The kernel, float64, with all coordinates of the images on both axes. Provenance is kept;
        ``feature_key`` is now ``source_feature_key``. Of ``"rbf"``, the attribute ``width`` is in
        the units of the features.

    Raises
    ------
    InvalidInputError
        If features are not finite, `kernel` is not known, or more than half of the distances are
        0, so that they have no width.
    MemoryBudgetError
        If four matrices of n × n exceed `memory_budget`: n = 8,000 needs 2 GiB.

    Notes
    -----
    Costs one reading of the features; none where the store keeps their geometry.

    Select training and test images by name, and let scikit-learn centre with the training images
    (here `brain` has a row for each image of `train`)::

        k = fs.kernel_matrix(acts, centre=False)
        fit = k.sel(image=train, image_2=train).values
        new = k.sel(image=test, image_2=train).values
        ridge = make_pipeline(KernelCenterer(), KernelRidge(alpha=10.0, kernel="precomputed"))
        mean = brain.mean(axis=0)
        predicted = ridge.fit(fit, brain - mean).predict(new) + mean

    `himalaya.kernel_ridge.KernelRidgeCV(kernel="precomputed")` takes the same two matrices.

    References
    ----------
    Saunders, Gammerman and Vovk (1998), ICML, 515–521 (kernel ridge).
    Schölkopf, Smola and Müller (1998), Neural Computation 10, doi:10.1162/089976698300017467
    (centring a kernel).
    """
    require_kernel(kernel, bandwidth)
    if dim in getattr(features, "dims", ()):
        require_memory(features.sizes[dim], dim, "A kernel")
    geometry = gram(features, dim)
    require_finite(geometry)
    step = f"kernel_matrix(kernel={kernel!r}, centre={centre})"
    attrs = derived_attrs(geometry.attrs, step) | {
        "kernel": kernel,
        "n_features": geometry.n_features,
    }
    if kernel == "linear":
        values = centred_products(geometry) if centre else _products(geometry)
    else:
        width = rbf_width(geometry, bandwidth)
        attrs |= {"bandwidth": float(bandwidth), "width": width}
        values = rbf_minus_one(geometry, width)
        values = double_centred(values) if centre else values + 1.0
    return make_rdm(values, geometry.coords, geometry.dim, name="kernel", attrs=attrs)


def require_kernel(kernel: str, bandwidth: float) -> None:
    """Refuse kernels that do not exist.

    Parameters
    ----------
    kernel : str
        Its name.
    bandwidth : float
        Its relative width.

    Raises
    ------
    InvalidInputError
        If there is no kernel of that name or the width is not a number above 0.
    """
    if kernel not in get_args(Kernel):
        near = did_you_mean(str(kernel), get_args(Kernel))
        raise InvalidInputError(f"kernel={kernel!r} is not known; it is 'linear' or 'rbf'.{near}")
    if not 0 < bandwidth < np.inf:
        raise InvalidInputError(
            f"bandwidth={bandwidth!r} must be a number above 0: the width of the RBF kernel, "
            "relative to the median distance."
        )


def rbf_width(geometry: Gram, bandwidth: float, what: str = "the features") -> float:
    """Return the width of an RBF kernel.

    Parameters
    ----------
    geometry : Gram
        The geometry; finite.
    bandwidth : float
        The width relative to the median distance between two images.
    what : str
        What the geometry is of, for the message.

    Returns
    -------
    float
        The width, in the units of the features.

    Raises
    ------
    InvalidInputError
        If the median distance is 0.
    """
    squared = squareform(geometry.sqeuclidean, checks=False)
    median = float(np.median(np.sqrt(squared, out=squared), overwrite_input=True))
    if not median > 0:
        raise InvalidInputError(
            f"Half or more of the pairs of {geometry.dim}s have the same features in {what}, so "
            "their median distance is 0 and an RBF kernel has no width. Use kernel='linear'."
        )
    return bandwidth * median


def rbf_minus_one(geometry: Gram, width: float) -> NDArray[np.float64]:
    """Return ``exp(−d² / (2 width²)) − 1``, which a wide kernel does not round away.

    Centring removes the constant.

    Parameters
    ----------
    geometry : Gram
        The geometry; finite.
    width : float
        From `rbf_width`.

    Returns
    -------
    ndarray of shape (n, n), float64
        Symmetric, from −1 to 0; diagonal 0.
    """
    out: NDArray[np.float64] = geometry.sqeuclidean * (-0.5 / width**2)
    np.expm1(out, out=out)
    return out


def _products(geometry: Gram) -> NDArray[np.float64]:
    """Return ``x·y``, the law of cosines."""
    norms = geometry.norms_sq
    out: NDArray[np.float64] = norms[:, None] + norms
    out -= geometry.sqeuclidean
    out *= 0.5
    return out
