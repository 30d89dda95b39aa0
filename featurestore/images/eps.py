"""EPS pictures, drawn by Ghostscript in a cage: no files but its own, little time and memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL.EpsImagePlugin import EpsImageFile

from featurestore.errors import ImageDecodeError
from featurestore.options import get_options

TIMEOUT_S = 30
MEMORY_KIB = 2 * 2**20
OUTPUT_BLOCKS = 4 * 2**20  # of 512 bytes: what the drawing may write to disk
POINTS_PER_INCH = 72
# Limits are set by a shell: code between fork and exec may deadlock in a process with threads.
# macOS knows no limit of memory, hence the silent attempts.
CAGE = (
    f"ulimit -v {MEMORY_KIB} 2>/dev/null; ulimit -t {TIMEOUT_S} 2>/dev/null; "
    f'ulimit -f {OUTPUT_BLOCKS} 2>/dev/null; exec "$@"'
)


def rasterise(data: bytes, dpi: int) -> bytes:
    """Draw an EPS picture.

    Parameters
    ----------
    data : bytes
        The file.
    dpi : int
        Resolution [dots per inch].

    Returns
    -------
    bytes
        A PNG file, RGB, anti-aliased, cropped to the bounding box.

    Raises
    ------
    ImageDecodeError
        If Ghostscript is missing, fails, or exceeds its limits (`reason`).
    """
    program = next(filter(None, map(shutil.which, ("gs", "gswin64c", "gswin32c"))), None)
    if program is None:
        raise _failed(
            "drawing EPS needs Ghostscript, which is not installed (apt install ghostscript, "
            "brew install ghostscript, or conda install ghostscript)"
        )
    _require_small(data, dpi)
    with tempfile.TemporaryDirectory(prefix="featurestore-") as folder:
        source, drawn = Path(folder, "in.eps"), Path(folder, "out.png")
        source.write_bytes(data)
        command = [program, "-dSAFER", "-dBATCH", "-dNOPAUSE", "-dQUIET", "-sDEVICE=png16m"]
        command += [f"-r{dpi}", "-dTextAlphaBits=4", "-dGraphicsAlphaBits=4", "-dEPSCrop"]
        command += [f"-sOutputFile={drawn.name}", source.name]
        _run(command if os.name == "nt" else ["/bin/sh", "-c", CAGE, "sh", *command], folder)
        if not drawn.exists():
            raise _failed("Ghostscript drew nothing")
        return drawn.read_bytes()


def _require_small(data: bytes, dpi: int) -> None:
    try:
        width, height = EpsImageFile(io.BytesIO(data)).size  # reads the header only
    except (OSError, SyntaxError, ValueError) as err:
        raise _failed(f"it is damaged, or PostScript without a bounding box ({err})") from err
    n_pixels = round(width * height * (dpi / POINTS_PER_INCH) ** 2)
    if n_pixels > get_options().max_image_pixels:
        raise _failed(
            f"at {dpi} dpi it has {n_pixels} pixels, more than max_image_pixels="
            f"{get_options().max_image_pixels}; lower eps_dpi="
        )


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Ghostscript's "safe" mode lets drawings read and write the folder for temporary files.
            env={**os.environ, "TMPDIR": folder, "TEMP": folder, "TMP": folder},
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise _failed(f"Ghostscript was stopped after {TIMEOUT_S} s") from err
    except OSError as err:
        raise _failed(f"Ghostscript cannot be started ({err})") from err
    if done.returncode != 0:
        said = " ".join(done.stdout.decode(errors="replace").split())[:200]
        raise _failed(f"Ghostscript failed with status {done.returncode} ({said})")


def _failed(reason: str) -> ImageDecodeError:
    return ImageDecodeError(f"An image cannot be decoded: {reason}.", reason=reason)
