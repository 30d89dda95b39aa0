"""Which models there are, and who loads them. Imports a source only when it is asked for."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import InvalidInputError, ModelNotFoundError, did_you_mean
from featurestore.filehash import file_digest
from featurestore.networks.preprocess import as_preprocess
from featurestore.networks.spec import ModelRequest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from featurestore.networks.network import Network, Source
    from featurestore.typing import PathLike

GROUP = "featurestore.sources"
DEFAULT_SOURCE = "torchvision"
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")

# torch.hub's convention (name-<first digits of sha256>.pth) or the whole hash as a fragment.
URL_HASH = re.compile(r"(?:#sha256=([0-9a-fA-F]{64})|-([0-9a-f]{8,64})\.[A-Za-z]+)$")


def sources() -> list[str]:
    """List the sources that are installed.

    Returns
    -------
    list of str
        Names, sorted; nothing is imported.
    """
    return sorted(_entry_points())


def load_source(name: str) -> Source:
    """Import one source.

    Parameters
    ----------
    name : str
        Its name, such as ``"torchvision"``.

    Returns
    -------
    Source
        Ready to list and to load.

    Raises
    ------
    ModelNotFoundError
        If there is no such source.
    MissingDependencyError
        If the library behind it is not installed.
    """
    found = _entry_points()
    if name not in found:
        raise ModelNotFoundError(
            f"There is no source {name!r}.{did_you_mean(name, found)} Installed sources: "
            f"{', '.join(sorted(found)) or 'none'}. Others register under the entry point group "
            f"{GROUP!r}.",
            source=name,
            choices=sorted(found),
        )
    source: Source = found[name].load()()
    return source


def request(
    model: str,
    *,
    weights: PathLike | None = "DEFAULT",
    seed: int = 0,
    preprocess: Any = None,
) -> ModelRequest:
    """Say which model is meant, without loading anything.

    Parameters
    ----------
    model : str
        ``"source/name"``; models of torchvision need no prefix.
    weights : str, path or None
        ``"DEFAULT"``, a published member such as ``"IMAGENET1K_V2"``, ``"random"`` (or
        ``None``), a checkpoint file, or an ``https`` URL that carries a hash.
    seed : int
        Seed of random weights; ignored for any others.
    preprocess : Preprocess or callable, optional
        Changes to the published preprocessing, from `fs.preprocess`.

    Returns
    -------
    ModelRequest
        What is asked for, by value.

    Raises
    ------
    InvalidInputError
        If the weights or the seed mean nothing, or a URL carries no hash.
    IdentityError
        If a callable was given without an id.
    """
    source, name = _split(model)
    label, path = _weights(weights)
    changed = as_preprocess(preprocess)
    return ModelRequest(
        source=source,
        name=name,
        weights=label,
        seed=_seed(seed) if label == "random" else None,
        preprocess=changed.to_json() or None,
        weights_path=path,
        transform=changed.transform,
    )


def load(request: ModelRequest) -> Network:
    """Load a model through its source.

    Parameters
    ----------
    request : ModelRequest
        From `request`.

    Returns
    -------
    Network
        In host memory.

    Raises
    ------
    ModelNotFoundError
        If there is no such source, model or weights.
    InvalidInputError
        If the weights do not fit, or the preprocessing cannot be honoured.
    """
    return load_source(request.source).load(request)


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _split(model: object) -> tuple[str, str]:
    if not isinstance(model, str) or not model.strip("/ "):
        raise InvalidInputError(
            f"model={model!r} is not a name; write 'alexnet' or 'source/name', or wrap your own "
            "network with fs.wrap."
        )
    source, slash, name = model.partition("/")
    return (source, name) if slash else (DEFAULT_SOURCE, model)


def _seed(seed: object) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed={seed!r} is not an integer from 0 to 2**63 - 1.")
    return seed


def _weights(weights: PathLike | None) -> tuple[str, str | None]:
    if weights is None:
        return "random", None
    if isinstance(weights, str):
        if weights.startswith(("https://", "http://")):
            return _url(weights), None
        if not _is_path(weights):
            return _member(weights), None
    elif not isinstance(weights, os.PathLike):
        raise InvalidInputError(
            f"weights={weights!r} is a {type(weights).__name__}; give a name, a path, a URL "
            "with a hash, or 'random'."
        )
    path = Path(weights).expanduser()
    if not path.is_file():
        raise InvalidInputError(f"weights={str(weights)!r} is no file ({path.absolute()}).")
    return f"file:{file_digest(path).hex()}", str(path)


def _is_path(text: str) -> bool:
    if text.lower() in ("default", "random", "none"):
        return False  # even where a file of that name lies about
    looks = text.lower().endswith(CHECKPOINT_SUFFIXES) or "/" in text or os.sep in text
    return looks or Path(text).is_file()


def _member(word: str) -> str:
    if word.lower() in ("random", "none"):
        return "random"
    if not word:
        raise InvalidInputError("weights='' means nothing; use 'DEFAULT', 'random' or a file.")
    # "AlexNet_Weights.IMAGENET1K_V1" is how torchvision prints a member.
    enum, dot, member = word.partition(".")
    word = member if dot and enum.lower().endswith("weights") else word
    return "DEFAULT" if word.upper() == "DEFAULT" else word


def _url(url: str) -> str:
    if not url.startswith("https://"):
        raise InvalidInputError(f"weights={url!r} would be fetched without encryption; use https.")
    if URL_HASH.search(url) is None:
        raise InvalidInputError(
            f"weights={url!r} carries no hash, so what it serves tomorrow may be something else. "
            "Append '#sha256=<64 hex digits>', or use a name like 'model-<8 or more digits>.pth'."
        )
    return url
