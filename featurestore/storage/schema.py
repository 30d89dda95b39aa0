"""What documents must look like before anything in them is used.

A checksum shows that a document is what somebody wrote, not that it makes sense: a store may come
from a stranger. So every field has its type and its bounds here, and documents that are known by
their content are compared with the key in their name. Bounds are far above what is ever written.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from featurestore.canonical import digest_of
from featurestore.errors import CorruptDataError
from featurestore.storage.layout import FORMAT, MARKER, MAX_ROWS_PER_SLOT, require_format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any], bool]

MAX_ROW_VALUES = 2**31  # 8 GiB per image; the widest modules of today's networks have 2**27
MAX_CHUNK_VALUES = 2**26  # what one inner chunk may decompress to: 256 MiB; we write 2**19
MAX_CHUNKS = 2**22  # per slot: an index of 64 MiB
MAX_AXES = 16
MAX_CALLS = 2**31
MAX_COUNT = 2**62

_HEX = re.compile(r"[0-9a-f]{32}")
_N_SHOWN = 60


def require_document(document: Mapping[str, Any], path: str) -> None:
    """Refuse a document that means nothing.

    Parameters
    ----------
    document : mapping
        As it was read, without its checksum.
    path : str
        Where it lies in the store; says which kind it is. Other kinds are not looked at.

    Raises
    ------
    CorruptDataError
        If a field is missing, has another type or exceeds its bounds, or the document belongs to
        another key than the one in its name.
    FormatVersionError
        If it was written in a newer format; what is newer must not be taken for damage.
    """
    kind, _, name = path.partition("/")
    fields = _KINDS.get(kind)
    if fields is None:
        return
    found = document.get("format")
    if type(found) is int and found > FORMAT:
        require_format(document, path)
    key = name.partition("/")[0].removesuffix(".json")
    wrong = "format" if type(found) is not int or found != FORMAT else _misfit(document, fields)
    if not wrong and not _is_about(kind, document, key):
        wrong = "key"
    if wrong:
        value: Any = document
        for step in wrong.split("."):
            value = value.get(step) if isinstance(value, dict) else {}
        shown = repr(value)
        shown = shown if len(shown) <= _N_SHOWN else f"{shown[:_N_SHOWN]}…"
        reason = (
            "it belongs to another key than the one in its name"
            if wrong == "key"
            else f"its {wrong!r} is {shown}"
        )
        raise CorruptDataError(
            f"{path} in the store makes no sense: {reason}. It was not written by featurestore, "
            "or was changed since. Nothing of it is used; if the store is yours, open it with "
            "mode='a' and ask again: it is written anew.",
            path=path,
            field=wrong,
            images=[],
        )


def is_feature(feature: object) -> bool:
    """Say whether something is what a feature key can be made from.

    Parameters
    ----------
    feature : object
        `ColumnLayout.feature`, as it was read.

    Returns
    -------
    bool
        Whether every part is there and has its type.
    """
    return isinstance(feature, dict) and not _misfit(feature, _FEATURE)


def _misfit(document: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Return the dotted name of the first field that does not fit, or nothing."""
    for name, check in fields.items():
        optional = name.endswith("?")
        name = name.removesuffix("?")
        if name not in document:
            if optional:
                continue
            return name
        value = document[name]
        if isinstance(check, dict):
            inner = _misfit(value, check) if isinstance(value, dict) else None
            if inner is None:
                return name
            if inner:
                return f"{name}.{inner}"
        elif not check(value):
            return name
    return _contradiction(document, fields)


def _contradiction(document: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    if fields is _LAYOUT:
        return _layout_contradiction(document)
    if fields is _OUTPUT and not document["problem"]:
        # What cannot be kept is described as it was found; what can be has one name per axis.
        if len(document["dims"]) != len(document["shape"]):
            return "dims"
        if not _is_shape(document["shape"]):
            return "shape"
    return ""


def _layout_contradiction(layout: Mapping[str, Any]) -> str:
    shape, chunk = layout["shape"], layout["chunk_shape"]
    if len(layout["dims"]) != len(shape):
        return "dims"
    per_slot, chunk_rows = layout["rows_per_slot"], layout["chunk_rows"]
    if chunk_rows > per_slot or chunk_rows * math.prod(chunk) > MAX_CHUNK_VALUES:
        return "chunk_rows"
    fits = len(chunk) == len(shape) and all(c <= n for c, n in zip(chunk, shape, strict=True))
    if not fits:
        return "chunk_shape"
    per_row = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    if per_row * (per_slot // chunk_rows) > MAX_CHUNKS:
        return "chunk_shape"
    return ""


def _is_about(kind: str, document: Mapping[str, Any], key: str) -> bool:
    """Say whether a document is the one that its name promises."""
    if kind == "models":
        return bool(document["key"] == key == digest_of("model", document["spec"]))
    if kind == "aliases":
        return key == digest_of("alias", document["request"])
    if kind == "runs":
        return bool(document["run"] == key)
    if kind in ("imagesets", "layouts", "columns"):
        return bool(document["key"] == key)
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(most: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_power_of_two(most: int) -> Check:
    return lambda value: type(value) is int and 1 <= value <= most and value & (value - 1) == 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    sized = isinstance(value, list) and len(value) <= MAX_AXES
    return (
        sized
        and all(type(n) is int and 1 <= n <= MAX_ROW_VALUES for n in value)
        and math.prod(value) <= MAX_ROW_VALUES
    )


def _is_row_shape(value: Any) -> bool:
    return _is_shape(value) and bool(value)


def _are_dims(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_AXES
        and all(isinstance(dim, str) and dim.isidentifier() and dim != "image" for dim in value)
        and len(set(value)) == len(value)
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(step, str) or _is_count(MAX_COUNT)(step) for step in value
    )


def _is_word(*words: object) -> Check:
    return lambda value: any(type(value) is type(word) and value == word for word in words)


def _is_list(check: Check, most: int | None = None) -> Check:
    return lambda value: (
        isinstance(value, list)
        and (most is None or len(value) <= most)
        and all(check(item) for item in value)
    )


def _are_fields(fields: Mapping[str, Any]) -> Check:
    return lambda value: isinstance(value, dict) and not _misfit(value, fields)


def _is_seed(value: Any) -> bool:
    return value is None or _is_count(2**63)(value)


def _is_probe(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(sketch, list) and sketch and all(_is_number(item) for item in sketch)
        for sketch in value.values()
    )


_FEATURE: dict[str, Any] = {
    "model": _is_key,
    "module": _is_text,
    "call": _is_count(MAX_CALLS),
    "path": _is_path,
    "readout": lambda value: value is None or _is_text(value),
    "precision": _is_text,
    "dtype": _is_word("float32", "float16"),
}

_LAYOUT: dict[str, Any] = {
    "key": _is_key,
    "feature": _is_dict,
    "dtype": _is_word("float32", "float16"),
    "dims": _are_dims,
    "shape": _is_row_shape,
    "rows_per_slot": _is_power_of_two(MAX_ROWS_PER_SLOT),
    "chunk_rows": _is_power_of_two(MAX_ROWS_PER_SLOT),
    "chunk_shape": _is_row_shape,
    "compressed": _is_bool,
}

_OUTPUT: dict[str, Any] = {
    "call": _is_count(MAX_CALLS),
    "path": _is_path,
    "dims": _are_dims,
    "shape": _is_list(_is_count(MAX_COUNT)),
    "batch_axis": _is_count(1024),
    "order": _is_list(_is_count(1024)),
    "problem": _is_text,
}

_MODULE: dict[str, Any] = {
    "name": _is_text,
    "type": _is_text,
    "n_parameters": _is_count(MAX_COUNT),
    "outputs": _is_list(_are_fields(_OUTPUT)),
    "flops?": _is_count(MAX_COUNT),
    "flops_until?": _is_count(MAX_COUNT),
}

_MODEL: dict[str, Any] = {
    "key": _is_key,
    "spec": {
        "source": _is_text,
        "architecture": _is_text,
        "arguments": _is_dict,
        "structure": _is_text,
        "weights": _is_text,
        "preprocessing": _is_dict,
    },
    "label": _is_text,
    "weights_label": _is_text,
    "input_shape": _is_shape,
    "modules": _is_list(_are_fields(_MODULE)),
    "probe": _is_probe,
    "row_depends_on_batch": _is_bool,
    "licence": _is_text,
    "citation": _is_text,
    "n_parameters": _is_count(MAX_COUNT),
}

_KINDS: dict[str, dict[str, Any]] = {
    MARKER: {"store": _is_text, "created": _is_text},
    "models": _MODEL,
    "aliases": {
        "model": _is_key,
        "request": {
            "source": _is_text,
            "name": _is_text,
            "weights": _is_text,
            "seed": _is_seed,
            "preprocess": lambda value: value is None or _is_dict(value),
        },
    },
    "runs": {"run": _is_key, "started": _is_text},
    "imagesets": {"key": _is_key, "created": _is_text, "record": _is_dict},
    "layouts": _LAYOUT,
    "columns": _LAYOUT,
}
