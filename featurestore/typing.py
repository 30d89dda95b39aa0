"""Types that every layer shares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""What canonical JSON can hold; floats are finite."""

Digest: TypeAlias = bytes
"""The 16 bytes of an xxh3_128 hash, big-endian; shown to users as 32 hex digits."""

DIGEST_NBYTES = 16

Precision: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16"]
"""The arithmetic of a forward pass; part of the key."""

StoredDtype: TypeAlias = Literal["float32", "float16"]
"""The dtype in which activations are kept; part of the key."""

Readout: TypeAlias = Literal["flatten", "avgpool"]
"""What is kept of a module's output; ``None`` keeps all of it."""
