"""From numbers of some shape to square RDMs: condensed or square is decided, never guessed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError, LabelMismatchError
from featurestore.rdms.found import shape_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASYMMETRY = 1e-6  # allowed, of the largest dissimilarity: rounding of float32
ON_DIAGONAL = 1e-5  # likewise: 1 minus a correlation of float32 features is not quite 0
BAND = 512  # rows that are checked at once, so that nothing of n × n is made


def n_compared(n_pairs: int) -> int | None:
    """Return of how many images that many pairs are.

    Parameters
    ----------
    n_pairs : int
        Length of a condensed vector.

    Returns
    -------
    int
        n with n (n − 1) / 2 pairs; none if there is no such n.

    Examples
    --------
    >>> n_compared(4186), n_compared(4187)
    (92, None)
    """
    n = (1 + math.isqrt(1 + 8 * n_pairs)) // 2
    return n if n_pairs > 0 and n * (n - 1) // 2 == n_pairs else None


def as_numbers(values: Any) -> NDArray[Any]:
    """Make an array of float32 or float64.

    Parameters
    ----------
    values : array_like
        Numbers; masked values become NaN.

    Returns
    -------
    ndarray
        float16 and float32 as float32, everything else as float64.

    Raises
    ------
    InvalidInputError
        If these are no real numbers, or no regular array.
    """
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    try:
        array = np.asarray(values)
    except ValueError as err:
        raise InvalidInputError(f"These rows do not make an array of numbers: {err}") from err
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"An RDM has real numbers; this array is of {array.dtype}, shape "
            f"{shape_word(array.shape)}."
        )
    small = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return array.astype(np.float32 if small else np.float64, copy=False)


def as_square(values: NDArray[Any], n_names: int, n_leading: int) -> NDArray[Any]:
    """Make square RDMs of square or condensed ones, and check them.

    Parameters
    ----------
    values : ndarray of shape (…, n, n) or (…, n (n − 1) / 2), float32 or float64
        Dissimilarities. Which of both it is follows from the number of names; where both fit,
        which happens for 3 images only, from the number of leading axes.
    n_names : int
        How many images there are.
    n_leading : int
        How many leading axes the caller speaks of.

    Returns
    -------
    ndarray of shape (…, n, n)
        Exactly symmetric, with a diagonal of zeros; a new array.

    Raises
    ------
    InvalidInputError
        If it has no such shape, is not symmetric, has something else than 0 on the diagonal, or
        is infinite.
    LabelMismatchError
        If the number of names does not fit.
    """
    if _is_square(values, n_names, n_leading):
        square = values.copy()
        for place in np.ndindex(square.shape[:-2]):
            _check(square[place], _where(place))
    else:
        square = _from_condensed(values, n_names)
    if np.isinf(square).any():
        raise InvalidInputError(
            "Some dissimilarities are infinite. Mark what is not known as NaN: such pairs are left "
            "out of comparisons."
        )
    return square


def looks_like_rdm(values: NDArray[Any]) -> bool:
    """Say whether every matrix of a stack is symmetric with zeros on the diagonal.

    Parameters
    ----------
    values : ndarray of shape (…, n, n)
        Numbers.

    Returns
    -------
    bool
        Within the tolerances of `as_square`.
    """
    try:
        for place in np.ndindex(values.shape[:-2]):
            _check(np.array(values[place], dtype=np.float64), "")
    except InvalidInputError:
        return False
    return True


def _is_square(values: NDArray[Any], n_names: int, n_leading: int) -> bool:
    """Decide what the last axes are."""
    shape = values.shape
    sides = {
        "square": shape[-1] if len(shape) > 1 and shape[-1] == shape[-2] else None,
        "condensed": n_compared(shape[-1]) if shape else None,
    }
    fits = [form for form, n in sides.items() if n == n_names and n > 1]
    if not fits:
        raise _no_fit(values, n_names, sides)
    return fits[0] == "square" if len(fits) == 1 else n_leading != len(shape) - 1


def _no_fit(values: NDArray[Any], n_names: int, sides: dict[str, int | None]) -> InvalidInputError:
    """Say why this is no RDM of so many images."""
    shape = shape_word(values.shape)
    possible = [f"{form} for {n} images" for form, n in sides.items() if n is not None and n > 1]
    if possible:
        return LabelMismatchError(
            f"There are {n_names} names, and an RDM of shape {shape} would be "
            f"{', or '.join(possible)}.",
            n_names=n_names,
            shape=values.shape,
        )
    hint = ""
    if values.ndim > 2 and values.shape[0] == values.shape[1]:
        hint = " The RDMs lie along the last axis, as in MATLAB: numpy.moveaxis(values, -1, 0)."
    elif values.ndim == 2 and n_compared(values.shape[0]) == n_names:
        hint = " Each column is one: transpose it."
    return InvalidInputError(
        f"Numbers of shape {shape} are no RDM: the last two axes have not the same length, and the "
        f"last has not n (n − 1) / 2 numbers for any n ({n_names} names make "
        f"{n_names * (n_names - 1) // 2}).{hint}",
        shape=values.shape,
    )


def _from_condensed(values: NDArray[Any], n: int) -> NDArray[Any]:
    square = np.zeros((*values.shape[:-1], n, n), dtype=values.dtype)
    position = 0
    for row in range(n - 1):
        part = values[..., position : position + n - 1 - row]
        square[..., row, row + 1 :] = part
        square[..., row + 1 :, row] = part
        position += n - 1 - row
    return square


def _check(square: NDArray[Any], where: str) -> None:
    """Check one matrix, and set what is only rounding right, in place."""
    np.fill_diagonal(square, _checked_diagonal(square, where))
    scale = _scale(square)
    for low in range(0, len(square), BAND):
        rows, columns = square[low : low + BAND, low:], square[low:, low : low + BAND].T
        if np.array_equal(rows, columns, equal_nan=True):
            continue
        with np.errstate(invalid="ignore"):  # inf − inf
            apart = np.abs(rows - columns)
        apart[np.isnan(rows) & np.isnan(columns)] = 0.0
        if not np.all(apart <= ASYMMETRY * scale):  # NaN: on one side only
            raise _asymmetric(square, low, apart, where)
        mean = (rows + columns) / 2
        square[low : low + BAND, low:] = mean
        square[low:, low : low + BAND] = mean.T


def _checked_diagonal(square: NDArray[Any], where: str) -> float:
    """Return 0, or say why the diagonal is something else."""
    diagonal = np.diagonal(square).copy()
    np.fill_diagonal(square, 0.0)
    known = diagonal[~np.isnan(diagonal)]
    if not len(known) or np.abs(known).max() <= ON_DIAGONAL * _scale(square):
        return 0.0
    np.fill_diagonal(square, diagonal)
    worst = int(np.nanargmax(np.abs(diagonal)))
    hint = "Each image has the dissimilarity 0 to itself."
    if np.ptp(known) <= ON_DIAGONAL * abs(float(known[0])) and known[0] >= np.nanmax(square):
        hint = (
            "It looks like a similarity matrix, whose largest value is on the diagonal: pass "
            f"{known[0]:.6g} − similarity."
        )
    raise InvalidInputError(
        f"The diagonal{where} is not 0: {diagonal[worst]:.6g} at position {worst}. {hint}",
        position=worst,
    )


def _scale(square: NDArray[Any]) -> float:
    """Return the largest finite magnitude."""
    bands = (square[low : low + BAND] for low in range(0, len(square), BAND))
    return max(float(np.max(np.abs(band), where=np.isfinite(band), initial=0.0)) for band in bands)


def _asymmetric(
    square: NDArray[Any], low: int, apart: NDArray[Any], where: str
) -> InvalidInputError:
    """Say where a matrix is not symmetric, and what it may be."""
    flat = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    i, j = (int(x) + low for x in np.unravel_index(flat, apart.shape))
    below = square[np.tril_indices(len(square), -1)]
    above = square[np.triu_indices(len(square), 1)]
    hint = "Average both directions, (rdm + rdm.T) / 2, if that is what you mean."
    for name, empty in (("lower", below), ("upper", above)):
        if not np.nan_to_num(empty).any():
            hint = f"The {name} triangle is empty: fill it with that of the transposed matrix."
    return InvalidInputError(
        f"The matrix{where} is not symmetric: {square[i, j]:.6g} at ({i}, {j}) and "
        f"{square[j, i]:.6g} at ({j}, {i}). {hint}",
        positions=(i, j),
    )


def _where(place: tuple[int, ...]) -> str:
    return f" of RDM {place[0] if len(place) == 1 else place}" if place else ""
