"""Weights behind a URL that says what their bytes hash to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch

from featurestore.errors import InvalidInputError, ModelNotFoundError
from featurestore.networks.registry import URL_HASH
from featurestore.options import get_options


def fetch(url: str) -> Path:
    """Download weights whose URL carries their hash, unless they are there already.

    Parameters
    ----------
    url : str
        Ends in ``#sha256=<64 hex digits>``, or names a file ``name-<digits>.pth``.

    Returns
    -------
    Path
        A file whose bytes have been checked.

    Raises
    ------
    InvalidInputError
        If the bytes have another hash.
    ModelNotFoundError
        If they cannot be downloaded.
    """
    digits = url_hash(url)
    path = cached_path(url.partition("#")[0])
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = get_options().progress is not False
        try:
            torch.hub.download_url_to_file(url.partition("#")[0], str(path), digits, progress)
        except (URLError, OSError) as err:
            raise download_failed(url, path) from err
        except RuntimeError as err:
            raise InvalidInputError(f"{url} does not serve what its hash promises: {err}.") from err
    require_hash(path, digits)
    return path


def url_hash(url: str) -> str | None:
    """Return the digits of SHA-256 that a URL promises.

    Parameters
    ----------
    url : str
        A URL.

    Returns
    -------
    str or None
        All 64, or the first few; ``None`` if it promises nothing.
    """
    match = URL_HASH.search(url)
    return None if match is None else (match[1] or match[2]).lower()


def cached_path(url: str) -> Path:
    """Return where torch keeps the download of a URL.

    Parameters
    ----------
    url : str
        Without fragment.

    Returns
    -------
    Path
        It need not exist.
    """
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def require_hash(path: Path, digits: str | None) -> None:
    """Refuse a cached file that is not what its name promises; torch checks only downloads.

    Parameters
    ----------
    path : Path
        A file.
    digits : str or None
        First digits of its SHA-256.

    Raises
    ------
    InvalidInputError
        If they differ.
    """
    if digits is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        raise InvalidInputError(
            f"{str(path)!r} is damaged or something else: its SHA-256 starts with "
            f"{found[: len(digits)]}, not {digits}. Delete it and try again."
        )


def download_failed(what: str, path: Path) -> ModelNotFoundError:
    """Say what to do where there is no network.

    Parameters
    ----------
    what : str
        What was to be downloaded.
    path : Path
        Where the file would be kept.

    Returns
    -------
    ModelNotFoundError
        To be raised.
    """
    return ModelNotFoundError(
        f"{what} could not be downloaded, and {str(path)!r} does not exist. Download it on a "
        "machine with network access and put it there (TORCH_HOME moves the folder), pass a "
        "checkpoint file as weights=, or use weights='random'.",
        path=str(path),
    )
