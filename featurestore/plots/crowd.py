"""Where pictures and names go that must not cover each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

COVERED = 0.2  # share of the plane that pictures may take
LARGEST_IN, LEAST_IN = 0.8, 0.2
STEPS = 400
NEAR = 0.5  # of an edge; pictures shrink while one in ten would have to move further


def picture_edge(points: Floats, size: tuple[float, float]) -> tuple[float, Floats]:
    """Find how large pictures can be, and where they go.

    Parameters
    ----------
    points : ndarray of shape (n, 2), float64
        Where they belong [inches from the lower left corner].
    size : (float, float)
        Width and height of the plane [inches].

    Returns
    -------
    edge : float
        Of the square pictures [inches].
    places : ndarray of shape (n, 2), float64
        Their middles, moved as little as it takes so that no two overlap.
    """
    edge = largest_edge(len(points), size)
    least = min(edge, LEAST_IN)
    while True:
        places = push_apart(points, edge, size)
        moved = float(np.quantile(np.abs(places - points).max(axis=1), 0.9))
        if moved <= NEAR * edge or edge <= least:
            return edge, places
        edge = max(least, edge * 0.85)


def largest_edge(n: int, size: tuple[float, float]) -> float:
    """Return how large pictures are at most.

    Parameters
    ----------
    n : int
        How many.
    size : (float, float)
        Width and height of the plane [inches].

    Returns
    -------
    float
        Edge of a square picture [inches].
    """
    return min(float(np.sqrt(COVERED * size[0] * size[1] / n)), LARGEST_IN)


def push_apart(points: Floats, edge: float, size: tuple[float, float]) -> Floats:
    """Move squares until no two overlap.

    Parameters
    ----------
    points : ndarray of shape (n, 2), float64
        Their middles [inches].
    edge : float
        Their edge [inches].
    size : (float, float)
        The plane, which they do not leave [inches].

    Returns
    -------
    ndarray of shape (n, 2), float64
        New middles.

    Examples
    --------
    >>> places = push_apart(np.array([[1.0, 1.0], [1.2, 1.0]]), 0.5, (3, 3))
    >>> bool(np.abs(places[0] - places[1]).max() >= 0.5)
    True
    """
    n = len(points)
    turn = np.arange(n) * 2.399963  # the golden angle: even points in one place part at once
    places = points + 1e-3 * edge * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    room = np.maximum(np.array(size) - edge / 2, edge / 2)
    places = np.clip(places, edge / 2, room)
    for _ in range(STEPS):
        gap = places[:, None] - places[None]
        lacking = edge * 1.02 - np.abs(gap)
        hit = (lacking > 0).all(axis=2) & ~np.eye(n, dtype=bool)
        if not hit.any():
            break
        # Along the axis where they overlap less; each moves half of it.
        axis = lacking.argmin(axis=2)
        step = np.zeros_like(gap)
        i, j = np.nonzero(hit)
        along = axis[i, j]
        side = np.where(gap[i, j, along] >= 0, 1.0, -1.0)
        step[i, j, along] = side * lacking[i, j, along] / 2
        # The mean of what its neighbours want, lest a square between many jumps.
        count = np.maximum(1, hit.sum(axis=1))[:, None]
        places = np.clip(places + step.sum(axis=1) / np.sqrt(count), edge / 2, room)
    return places


def place_names(
    points: Floats, boxes: Floats, dot: float, size: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """Find a place for each name beside its dot, where it covers no dot and no other name.

    Parameters
    ----------
    points : ndarray of shape (n, 2), float64
        Dots [inches].
    boxes : ndarray of shape (n, 2), float64
        Width and height of the names [inches].
    dot : float
        Half the width of a dot [inches].
    size : (float, float)
        The plane, which they do not leave [inches].

    Returns
    -------
    list of (float, float) or None
        Lower left corners; None where there is no room.
    """
    taken = [(x - dot, y - dot, x + dot, y + dot) for x, y in points]
    found: list[tuple[float, float] | None] = []
    for (x, y), (width, height) in zip(points, boxes, strict=True):
        near = dot + 0.02
        corners = (
            (x + near, y - height / 2),
            (x - near - width, y - height / 2),
            (x - width / 2, y + near),
            (x - width / 2, y - near - height),
            (x + near, y + near),
            (x - near - width, y + near),
            (x + near, y - near - height),
            (x - near - width, y - near - height),
        )
        place = next(
            (corner for corner in corners if _is_free(corner, (width, height), taken, size)), None
        )
        found.append(place)
        if place is not None:
            taken.append((*place, place[0] + width, place[1] + height))
    return found


def _is_free(
    corner: tuple[float, float],
    box: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    size: tuple[float, float],
) -> bool:
    left, bottom = corner
    right, top = left + box[0], bottom + box[1]
    if left < 0 or bottom < 0 or right > size[0] or top > size[1]:
        return False
    return all(right <= a or left >= c or top <= b or bottom >= d for a, b, c, d in taken)
