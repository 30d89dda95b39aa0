"""Inner products around the mean of the images, from what is between the images.

Distances do not see where the origin lies, so nothing is lost to a large common mean: centring
the kernel of inner products would subtract numbers that agree in all but their last digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.kernel import RESERVE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rdms.gram import Gram


COPIES = 4  # matrices of n × n that are alive at once, such as distances, products and vectors


def working_nbytes(n: int) -> int:
    """Return what is held while one geometry is worked on.

    Parameters
    ----------
    n : int
        How many images.

    Returns
    -------
    int
        Its matrices and what reading features needs [bytes].
    """
    return COPIES * 8 * n**2 + RESERVE


def require_memory(n: int, dim: str, what: str) -> None:
    """Refuse more images than memory allows, before anything is read.

    Parameters
    ----------
    n : int
        How many.
    dim : str
        What they are.
    what : str
        What is to be done, for the message.

    Raises
    ------
    MemoryBudgetError
        If it does not fit.
    """
    needed, budget = working_nbytes(n), get_options().memory_budget
    if needed > budget:
        raise MemoryBudgetError(
            f"{what} of {n} {dim}s needs {format_nbytes(needed)}, and memory_budget is "
            f"{format_nbytes(budget)}. Select fewer {dim}s, or raise it with "
            "fs.set_options(memory_budget='…').",
            projected_nbytes=needed,
            allowed_nbytes=budget,
        )


def require_finite(gram: Gram, what: str = "the features") -> None:
    """Refuse a geometry with images that are not finite.

    Parameters
    ----------
    gram : Gram
        The geometry.
    what : str
        What it is of, for the message.

    Raises
    ------
    InvalidInputError
        If features of some images are not finite; names them.
    """
    bad = ~np.isfinite(gram.norms_sq)
    if not bad.any():
        return
    names = [str(name) for name in np.asarray(names_of(gram))[bad]]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise InvalidInputError(
        f"{what[:1].upper()}{what[1:]} of {len(names)} of {len(bad)} {gram.dim}s are not finite "
        f"(NaN or Inf): {shown}. All results would be NaN. Leave these {gram.dim}s out, for "
        f"example features.drop_sel({gram.dim}=names).",
        images=names,
    )


def names_of(gram: Gram) -> NDArray[np.object_]:
    """Return the names along the dim of a geometry.

    Parameters
    ----------
    gram : Gram
        The geometry.

    Returns
    -------
    ndarray of shape (n,), object
        Its labels.
    """
    given = gram.coords[gram.dim]
    return np.asarray(getattr(given, "values", given), object)


def double_centred(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the means of rows and columns off a symmetric matrix: ``J M J``.

    Parameters
    ----------
    matrix : ndarray of shape (n, n), float64
        Symmetric; stays as it is.

    Returns
    -------
    ndarray of shape (n, n), float64
        Symmetric to the last bit; rows and columns sum to 0.
    """
    means = matrix.mean(axis=0)
    # The sum first: it is the same for (i, j) and (j, i), and so is what comes out.
    out: NDArray[np.float64] = means[:, None] + means
    np.subtract(matrix, out, out=out)
    out += means.mean()
    return out


def centred_products(gram: Gram) -> NDArray[np.float64]:
    """Return the inner products of features that have mean 0 over the images: ``−½ J D J``.

    Parameters
    ----------
    gram : Gram
        The geometry; finite.

    Returns
    -------
    ndarray of shape (n, n), float64
        What `centre` and a matrix product would give, without the features.
    """
    out = double_centred(gram.sqeuclidean)
    out *= -0.5
    return out
