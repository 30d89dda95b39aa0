"""What a decoding process does: ``python -m featurestore.extraction.workers``.

It reads, checks and decodes one picture after another as `featurestore.extraction.decoders` asks
for them, loads no torch, and ends when its input does. Both sides send a prefix with two lengths,
a JSON header and raw bytes; nothing that is received is ever executed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import struct
import sys
from numbers import Real
from pathlib import Path
from typing import IO, Any, TypeAlias

from featurestore.errors import ImageDecodeError
from featurestore.images.content import Files, ImageContent, why_unreadable
from featurestore.images.decode import decode
from featurestore.options import set_options
from featurestore.policy import DecodePolicy

Message: TypeAlias = "tuple[dict[str, Any], bytes]"

PREFIX = struct.Struct("<4sIQ")
MAGIC = b"fsw1"
MOST_HEADER_NBYTES = 2**28  # 64 MiB of text, Pillow's limit, in any spelling
GRACE_S = 2  # how much later than its parent a process gives itself up
CHANGED = "changed on disk since read_images looked at it"


def send(pipe: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Write a message.

    Parameters
    ----------
    pipe : binary file
        Open for writing.
    header : dict
        JSON-able.
    body : bytes
        Raw.
    """
    text = json.dumps(header).encode("ascii")
    pipe.write(PREFIX.pack(MAGIC, len(text), len(body)))
    pipe.write(text)
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Message | None:
    """Read a message.

    Parameters
    ----------
    pipe : binary file
        Open for reading.

    Returns
    -------
    tuple of dict and bytes, or None
        Header and body; None where the other side has ended.

    Raises
    ------
    ValueError
        If it is no message.
    """
    prefix = pipe.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    magic, header_nbytes, body_nbytes = PREFIX.unpack(prefix)
    if magic != MAGIC or header_nbytes > MOST_HEADER_NBYTES:
        raise ValueError("this is no message")
    header = json.loads(pipe.read(header_nbytes))
    body = pipe.read(body_nbytes)
    if not isinstance(header, dict) or len(body) != body_nbytes:
        raise ValueError("the message is not whole")
    return header, body


def serve() -> None:
    """Decode what standard input asks for until it ends; what the processes run."""
    # Whoever stops the run sends these to all its processes; the parent decides what they mean.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A library that prints must not garble the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Where memory runs out, Linux takes this process before the one with the network.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    send(answers, {})
    while (request := receive(sys.stdin.buffer)) is not None:
        header, body = request
        # A parent that was killed can stop nobody: the system ends a decoder that hangs then.
        _give_up_after(header["timeout_s"] + GRACE_S)
        with contextlib.suppress(BrokenPipeError):
            send(answers, *_answer(header, body))
        _give_up_after(0)


def _give_up_after(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer(header: dict[str, Any], body: bytes) -> Message:
    set_options(**{name: header[name] for name in ("max_image_pixels", "memory_budget")})
    try:
        content = ImageContent.of(Files((header["path"],)).read(0) if header["path"] else body)
    except (OSError, ImageDecodeError) as err:
        reason = why_unreadable(err) if isinstance(err, OSError) else err.reason
        return {"unreadable": reason}, b""
    if content.digest.hex() != header["digest"]:
        return {"unreadable": CHANGED}, b""
    try:
        decoded = decode(content, DecodePolicy(**header["policy"]))
    except ImageDecodeError as err:
        return {"undecodable": err.reason}, b""
    facts = {"size": decoded.image.size, "notes": sorted(decoded.notes)}
    return {**facts, "info": to_json(decoded.image.info)}, decoded.image.tobytes()


def to_json(value: Any) -> Any:
    """Spell what Pillow keeps beside the pixels: a transform may look at it.

    Parameters
    ----------
    value : object
        Plain values and containers of them.

    Returns
    -------
    JSON-able
        For `from_json`; fractions become floats.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {"dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
    for kind in (tuple, list, set):
        if isinstance(value, kind):
            return {kind.__name__: [to_json(item) for item in value]}
    return float(value) if isinstance(value, Real) else None


def from_json(value: Any) -> Any:
    """Read what `to_json` wrote.

    Parameters
    ----------
    value : JSON-able
        From a message.

    Returns
    -------
    object
        Equal to what was spelled.
    """
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "bytes":
        return base64.b64decode(items)
    if kind == "dict":
        return {from_json(key): from_json(item) for key, item in items}
    return {"tuple": tuple, "list": list, "set": set}[kind](map(from_json, items))


if __name__ == "__main__":
    serve()
