"""One spelling for every value that takes part in a key.

Keys are digests of canonical JSON: sorted names, no white space, UTF-8, shortest float spelling.
What has no canonical form (sets, objects, NaN) is refused, never guessed: ``repr``, pickle and
``hash()`` differ between versions, processes and machines.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import xxhash

from featurestore.errors import IdentityError

if TYPE_CHECKING:
    from featurestore.typing import Digest, Json


def canonical_json(value: Json) -> bytes:
    """Spell a value in the one way that keys are made from.

    Parameters
    ----------
    value : JSON-able
        ``None``, booleans, integers, finite floats, strings, lists or tuples, dicts with string
        names. ``1`` and ``1.0`` are two values.

    Returns
    -------
    bytes
        UTF-8 text without white space, names sorted by code point.

    Raises
    ------
    IdentityError
        If the value holds something without a canonical form.

    Examples
    --------
    >>> canonical_json({"b": (1, 2.0), "a": None})
    b'{"a":null,"b":[1,2.0]}'
    """
    try:
        _require_canonical(value, "value")
    except RecursionError as err:
        raise IdentityError("The value contains itself, or is nested too deeply.") from err
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def digest_of(kind: str, value: Json) -> str:
    """Return the digest of a value, in a name space of its own.

    Parameters
    ----------
    kind : str
        What the digest stands for, such as ``"model"``; equal values of two kinds differ.
    value : JSON-able
        What is identified.

    Returns
    -------
    str
        32 hex digits (xxh3_128).
    """
    return xxhash.xxh3_128_hexdigest(canonical_json([f"featurestore:{kind}", value]))


def digest_bytes(kind: str, value: Json) -> Digest:
    """Return `digest_of` as 16 bytes.

    Parameters
    ----------
    kind : str
        What the digest stands for.
    value : JSON-able
        What is identified.

    Returns
    -------
    bytes
        16 bytes, big-endian.
    """
    return bytes.fromhex(digest_of(kind, value))


def _require_canonical(value: object, where: str) -> None:
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_canonical(item, f"{where}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise IdentityError(f"{where} has the name {name!r}, which is not a string.")
            _require_canonical(name, f"a name in {where}")
            _require_canonical(item, f"{where}[{name!r}]")
    else:
        _require_canonical_scalar(value, where)


def _require_canonical_scalar(value: object, where: str) -> None:
    if value is None or type(value) in (bool, int):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise IdentityError(f"{where} is {value!r}, which has no canonical form.")
    elif type(value) is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as err:
            raise IdentityError(f"{where} is not valid Unicode: {value!r}.") from err
    else:
        raise IdentityError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which has no "
            "canonical form; use None, booleans, numbers, strings, lists and dicts."
        )
