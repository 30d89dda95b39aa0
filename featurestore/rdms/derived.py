"""What an array computed from features says about where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "feature_key"
SOURCE_KEY = "source_feature_key"
STEPS = "derived"


def derived_attrs(attrs: Mapping[Any, Any], step: str) -> dict[str, Any]:
    """Return the attributes of an array whose values were computed from features.

    An array with the attribute ``feature_key`` is taken for the rows of that column as they are
    stored, by tags and by the cache of geometries. What was computed from them goes by another
    name.

    Parameters
    ----------
    attrs : mapping
        Attributes of the features.
    step : str
        What was done, as a call.

    Returns
    -------
    dict
        The same attributes, with the key of the column as ``source_feature_key`` and the steps
        so far, in order and separated by semicolons, as ``derived``.

    Examples
    --------
    >>> derived_attrs({"module": "fc6", "feature_key": "5e1f"}, "centre(over='image')")
    {'module': 'fc6', 'source_feature_key': '5e1f', 'derived': "centre(over='image')"}
    """
    renamed = {SOURCE_KEY if name == KEY else str(name): value for name, value in attrs.items()}
    before = renamed.pop(STEPS, "")
    return renamed | {STEPS: f"{before}; {step}" if before else step}
