"""Mutated pictures among good ones, through the public interface.

``python -m benchmarks.fuzz_images --n 10000 --seed 0`` draws small pictures in every format and
mode, damages them, and extracts folders of them with a small network in a process of its own.
Checked after every folder: the process lives, each good picture's row has the bits it has in a
store of good pictures only, each other picture has a row or is named with a reason, and memory
stays bounded. A picture that kills or hangs the process is isolated, made smaller and kept.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import featurestore as fs
from benchmarks.common import peak_nbytes

N_GOOD = 24
PER_FOLDER = 400
WATCHDOG_S = 120.0
START_S = 120.0
MAX_PIXELS = 2**24  # so that memory is bounded by what pictures may need, not by their headers
BOUND_NBYTES = 2**30  # that a process may grow by after its first folder
N_SHRINKS = 60
INTERESTING = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**32 - 1)


# --- pictures ------------------------------------------------------------------------------------


def pixels(rng: np.random.Generator, channels: int = 3) -> np.ndarray:
    """Draw a gradient with some noise, so that every encoder has something to do."""
    height, width = rng.integers(1, 40, 2)
    ramp = np.add.outer(np.arange(height) * 5, np.arange(width) * 3)[:, :, None]
    noise = rng.integers(0, 40, (height, width, channels))
    return ((ramp + noise + 60 * np.arange(channels)) % 256).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(values: np.ndarray, colour: int, *, interlaced: bool = False) -> bytes:
    """Write what Pillow cannot: 16 bits per colour and interlacing."""
    height, width = values.shape[:2]
    depth = 8 * values.dtype.itemsize
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    big_endian = values.dtype.newbyteorder(">")
    lines = b"".join(
        b"\0" + line.astype(big_endian).tobytes() for part in parts if part.size for line in part
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def frames(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> dict[str, object]:
    more = [Image.fromarray(pixels(rng)).resize(size).convert(mode) for _ in range(2)]
    return {"save_all": True, "append_images": more, "duration": 40, "loop": 0}


def _exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "described"
    return tags


def kinds() -> dict[str, Callable[[np.random.Generator], bytes]]:
    """Every accepted format, in its modes and compressions: name to a function that draws one."""

    def pil(mode: str, format: str, **options: object) -> Callable[[np.random.Generator], bytes]:
        def draw(rng: np.random.Generator) -> bytes:
            image = Image.fromarray(pixels(rng, 4), "RGBA" if mode != "CMYK" else "CMYK")
            chosen = dict(options)
            if chosen.pop("animated", False):
                chosen |= frames(rng, mode, image.size)
            image = image.resize((32, 32)) if format == "ICO" else image
            image = image.convert("RGB").quantize(17) if mode == "P" else image.convert(mode)
            return encoded(image, format, **chosen)

        return draw

    def deep(rng: np.random.Generator, channels: int = 1) -> np.ndarray:
        values = pixels(rng, channels).astype(np.uint16) * 257
        return values[:, :, 0] if channels == 1 else values

    def text(kind: bytes, channels: int) -> Callable[[np.random.Generator], bytes]:
        def draw(rng: np.random.Generator) -> bytes:
            values = pixels(rng, channels)
            height, width = values.shape[:2]
            numbers = b" ".join(b"%d" % value for value in values.ravel())
            return kind + b"\n# drawn\n%d %d\n255\n" % (width, height) + numbers

        return draw

    found: dict[str, Callable[[np.random.Generator], bytes]] = {
        "jpeg": pil("RGB", "JPEG"),
        "jpeg grey": pil("L", "JPEG"),
        "jpeg cmyk": pil("CMYK", "JPEG"),
        "jpeg progressive": pil("RGB", "JPEG", progressive=True),
        "jpeg 444 restarts": pil("RGB", "JPEG", subsampling=0, restart_marker_blocks=1),
        "jpeg exif": pil("RGB", "JPEG", exif=_exif(), icc_profile=b"a profile"),
        "png 16 bit": lambda rng: raw_png(deep(rng), 0),
        "png 16 bit rgb": lambda rng: raw_png(deep(rng, 3), 2),
        "png interlaced": lambda rng: raw_png(pixels(rng, 3), 2, interlaced=True),
        "png interlaced rgba": lambda rng: raw_png(pixels(rng, 4), 6, interlaced=True),
        "png animated": pil("RGB", "PNG", animated=True),
        "png palette transparent": pil("P", "PNG", transparency=3),
        "png exif": pil("RGB", "PNG", exif=_exif(), dpi=(72, 72)),
        "gif": pil("P", "GIF"),
        "gif transparent": pil("P", "GIF", transparency=2, interlace=0),
        "gif animated": pil("RGB", "GIF", animated=True),
        "webp": pil("RGB", "WEBP"),
        "webp lossless": pil("RGB", "WEBP", lossless=True),
        "webp alpha": pil("RGBA", "WEBP", exif=_exif()),
        "webp animated": pil("RGB", "WEBP", animated=True),
        "tiff group4": pil("1", "TIFF", compression="group4"),
        "tiff group3": pil("1", "TIFF", compression="group3"),
        "tiff 16 bit": lambda rng: encoded(Image.fromarray(deep(rng)), "TIFF"),
        "tiff float": lambda rng: encoded(Image.fromarray(deep(rng) / np.float32(65535)), "TIFF"),
        "tiff pages": pil("RGB", "TIFF", animated=True),
        "tiff big": pil("RGB", "TIFF", big_tiff=True),
        "bmp": pil("RGB", "BMP"),
        "bmp palette": pil("P", "BMP"),
        "bmp alpha": pil("RGBA", "BMP"),
        "bmp 1 bit": pil("1", "BMP"),
        "ppm": pil("RGB", "PPM"),
        "pgm": pil("L", "PPM"),
        "pbm": pil("1", "PPM"),
        "pfm": lambda rng: encoded(Image.fromarray(deep(rng) / np.float32(65535)), "PPM"),
        "ppm text": text(b"P3", 3),
        "pgm text": text(b"P2", 1),
        "icon": pil("RGBA", "ICO", sizes=[(16, 16), (8, 8)]),
        "icon bmp": pil("RGBA", "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "jp2": pil("RGB", "JPEG2000"),
        "j2k grey": pil("L", "JPEG2000", no_jp2=True),
        "jp2 lossy": pil("RGB", "JPEG2000", irreversible=True, tile_size=(16, 16)),
        "avif": pil("RGB", "AVIF", speed=10),
        "avif alpha": pil("RGBA", "AVIF", speed=10),
    }
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        found[f"png {mode}"] = pil(mode, "PNG")
    for mode in ("L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
        found[f"tiff {mode}"] = pil(mode, "TIFF")
    for name in ("lzw", "adobe_deflate", "deflate", "packbits", "jpeg", "lzma", "zstd"):
        compression = name if name in ("packbits", "jpeg", "lzma", "zstd") else f"tiff_{name}"
        found[f"tiff {name}"] = pil("RGB", "TIFF", compression=compression)
    return found


def draw_all(rng: np.random.Generator) -> dict[str, bytes]:
    """Draw one picture of each kind that this build of Pillow can write."""
    drawn = {}
    for name, draw in kinds().items():
        try:
            drawn[name] = draw(rng)
        except (OSError, ValueError, KeyError, RuntimeError) as err:
            print(f"  not drawn: {name} ({err})", file=sys.stderr)
    return drawn


# --- damage --------------------------------------------------------------------------------------


def _flip(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        data[place] ^= 1 << int(rng.integers(8))


def _run(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 33))
    stop = min(len(data), start + length)
    value = rng.choice([0, 255, -1])
    data[start:stop] = rng.bytes(stop - start) if value < 0 else bytes([value]) * (stop - start)


def _truncate(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    del data[int(rng.integers(1, len(data) + 1)) :]


def _splice(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    start, stop = sorted(int(place) for place in rng.integers(0, len(other) + 1, 2))
    here = int(rng.integers(len(data) + 1))
    gone = int(rng.integers(0, 64)) if rng.random() < 0.5 else 0
    data[here : here + gone] = other[start : min(stop, start + 512)]


def _cut_out(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    start = int(rng.integers(len(data)))
    del data[start : start + int(rng.integers(1, 33))]


def _field(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    """Write a telling number where headers have theirs."""
    width = int(rng.choice([1, 2, 4]))
    place = int(rng.integers(0, max(1, min(len(data), 96) - width)))
    value = int(rng.choice(INTERESTING)) & (2 ** (8 * width) - 1)
    data[place : place + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")


def _length(data: bytearray, rng: np.random.Generator, _other: bytes) -> None:
    """Change the length or a parameter of a chunk, segment, box or tag."""
    marks = [m for m in range(4, len(data) - 8) if _is_mark(data, m)]
    if not marks:
        return _field(data, rng, _other)
    mark = int(rng.choice(marks))
    place = mark + int(rng.choice([-4, 2, 4, 8]))
    width = int(rng.choice([2, 4]))
    value = int(rng.choice(INTERESTING)) + int(rng.integers(-2, 3))
    data[place : place + width] = (value & (2 ** (8 * width) - 1)).to_bytes(
        width, "big" if rng.random() < 0.7 else "little"
    )
    return None


def _is_mark(data: bytearray, place: int) -> bool:
    name = bytes(data[place : place + 4])
    if name.isalpha() and name.isascii():  # PNG chunk, RIFF chunk, box
        return True
    if name[0] == 0xFF and 0xC0 <= name[1] < 0xFF:  # JPEG marker, JPEG 2000 marker
        return True
    return name[1] in (0, 1) and name[3] == 0 and name[2] in range(1, 13)  # TIFF tag


DAMAGES = (_flip, _flip, _run, _truncate, _splice, _cut_out, _field, _field, _length, _length)


def with_true_checksums(data: bytes) -> bytes:
    """Correct a PNG's checksums, or nothing behind the first would ever be reached."""
    made, place = bytearray(data), 8
    while place + 12 <= len(made):
        end = place + 8 + int.from_bytes(made[place : place + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(made)


def mutated(rng: np.random.Generator, drawn: dict[str, bytes]) -> tuple[str, bytes]:
    """Damage one of the drawn pictures."""
    names = list(drawn)
    kind = names[int(rng.integers(len(names)))]
    data = bytearray(drawn[kind])
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        if data:
            other = drawn[names[int(rng.integers(len(names)))] if rng.random() < 0.5 else kind]
            DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng, other)
    made = bytes(data)
    if made.startswith(b"\x89PNG") and rng.random() < 0.8:
        made = with_true_checksums(made)
    return kind, made


def mutations(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damage n pictures; the same for a seed, and none equal to what it was made of."""
    rng = np.random.default_rng(seed)
    drawn = draw_all(rng)
    made = 0
    while made < n:
        if made and made % PER_FOLDER == 0:
            drawn = draw_all(rng)
        kind, data = mutated(rng, drawn)
        if data not in drawn.values():
            made += 1
            yield kind, data


# --- the process under test ----------------------------------------------------------------------


def serve() -> None:
    """Extract the folders that standard input names, one per line, and say what came out."""
    from featurestore.testing.tiny import tiny_network

    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        fs.set_options(
            max_image_pixels=MAX_PIXELS,
            decode_workers=request["decode_workers"],
            cache_dir=Path(request["store"]).parent / "cache",
        )
        store, network = fs.open_store(request["store"]), tiny_network()
        folder = Path(request["folder"])
        images = fs.read_images(folder)
        report = store.extract(
            store.plan(network, "features.3", images), batch_size=16, errors="skip"
        )
        rows = store.get(network, "features.3", images, errors="skip")
        good = rows.sel(image=[name for name in rows["image"].values if name.startswith("good")])
        answer = {
            "failures": report.failures,
            "rows": list(rows["image"].values),
            "good": {str(row["image"].values): row.values.tobytes().hex() for row in good},
            "peak": peak_nbytes(),
        }
        print(json.dumps(answer), file=answers, flush=True)


class Killed(Exception):
    """The process died or hung."""

    def __init__(self, how: str, hung: bool) -> None:
        super().__init__(how)
        self.hung = hung


class Child:
    """The process under test, with a watchdog."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.fuzz_images", "--serve"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer(START_S)

    def extract(self, folder: Path, store: Path, decode_workers: str) -> dict[str, object]:
        request = {
            "folder": str(folder),
            "store": str(store),
            "decode_workers": decode_workers,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer(WATCHDOG_S))

    def _answer(self, timeout_s: float) -> str:
        hung = threading.Event()

        def bite() -> None:
            hung.set()
            self._process.kill()

        watchdog = threading.Timer(timeout_s, bite)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if line:
            return line
        status = self._process.wait()
        raise Killed(
            "no answer in time" if hung.is_set() else f"exit status {status}", hung.is_set()
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


# --- the run -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of all folders."""

    n: int = 0
    decoded: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    wrong: list[str] = field(default_factory=list)
    """Good rows that differ, pictures that are neither decoded nor named."""
    seconds: float = 0.0
    slowest_folder_s: float = 0.0
    grown_nbytes: int = 0
    kept: list[str] = field(default_factory=list)


def run(
    n: int,
    seed: int,
    *,
    decode_workers: str = "threads",
    keep: Path | None = None,
    say: Callable[[str], object] = lambda _text: None,
) -> Outcome:
    """Extract n damaged pictures; see the module."""
    outcome, started = Outcome(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="featurestore-fuzz-") as place:
        run_in = _Run(Path(place), decode_workers, keep, outcome)
        try:
            pending: list[tuple[str, bytes]] = []
            for mutation in mutations(n, seed):
                pending.append(mutation)
                if len(pending) == PER_FOLDER:
                    run_in.folder(pending)
                    say(_line(outcome, started))
                    pending = []
            if pending:
                run_in.folder(pending)
        finally:
            run_in.close()
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Run:
    def __init__(
        self, place: Path, decode_workers: str, keep: Path | None, outcome: Outcome
    ) -> None:
        self._place, self._decode_workers, self._keep = place, decode_workers, keep
        self.outcome = outcome
        self._number = 0
        self._good = self._draw_good()
        self._child = Child()
        answer = self._extract([])
        self._expected: dict[str, str] = answer["good"]
        assert set(self._expected) == set(self._good)
        self._first_peak = 0

    def _draw_good(self) -> dict[str, bytes]:
        rng = np.random.default_rng(12345)
        good = {}
        for number in range(N_GOOD):
            format = ("PNG", "JPEG", "WEBP", "TIFF")[number % 4]
            image = Image.fromarray(pixels(rng)).resize((24, 20))
            good[f"good {number:02d}.{format.lower()}"] = encoded(image, format)
        return good

    def folder(self, mutations: list[tuple[str, bytes]]) -> None:
        """Extract a folder and check what came of it; if it killed, extract its halves."""
        started = time.perf_counter()
        try:
            answer = self._extract(mutations)
        except Killed as err:
            self._child.close()
            self._child = Child()
            if len(mutations) > 1:
                half = len(mutations) // 2
                self.folder(mutations[:half])
                self.folder(mutations[half:])
            else:
                self._killed(mutations[0], err)
            return
        self._check(answer, mutations)
        self.outcome.slowest_folder_s = max(
            self.outcome.slowest_folder_s, time.perf_counter() - started
        )

    def _extract(self, mutations: list[tuple[str, bytes]]) -> dict[str, object]:
        self._number += 1
        folder = self._place / f"{self._number}"
        folder.mkdir()
        for name, data in self._good.items():
            (folder / name).write_bytes(data)
        for number, (_, data) in enumerate(mutations):
            # The suffix says picture, so that none is overlooked.
            (folder / f"bad {number:04d}.png").write_bytes(data)
        return self._child.extract(folder, folder.with_suffix(".fstore"), self._decode_workers)

    def _check(self, answer: dict[str, object], mutations: list[tuple[str, bytes]]) -> None:
        outcome, failures, rows = self.outcome, answer["failures"], set(answer["rows"])
        for name, row in self._expected.items():
            if answer["good"].get(name) != row:
                outcome.wrong.append(f"folder {self._number}: {name} has another row")
        for number, (kind, data) in enumerate(mutations):
            name = f"bad {number:04d}.png"
            outcome.n += 1
            outcome.decoded += name in rows
            outcome.refused += name in failures
            if (name in rows) == (name in failures) or (name in failures and not failures[name]):
                outcome.wrong.append(f"{name} ({kind}) is neither decoded nor named")
                self._save(kind, data)
        if not self._first_peak:
            self._first_peak = answer["peak"]
        outcome.grown_nbytes = max(outcome.grown_nbytes, answer["peak"] - self._first_peak)

    def _killed(self, mutation: tuple[str, bytes], error: Killed) -> None:
        self.outcome.n += 1
        self.outcome.hangs += error.hung
        self.outcome.crashes += not error.hung
        kind, data = mutation
        self._save(kind, data if error.hung else shrunk(data))

    def _save(self, kind: str, data: bytes) -> None:
        if self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            path = self._keep / f"{kind.replace(' ', '-')}-{zlib.crc32(data):08x}"
            path.write_bytes(data)
            self.outcome.kept.append(path.name)

    def close(self) -> None:
        self._child.close()


DECODE = """
import sys
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode
from featurestore.policy import DecodePolicy
try:
    decode(ImageContent.of(sys.stdin.buffer.read()), DecodePolicy())
except Exception:
    pass
"""


def kills(data: bytes) -> bool:
    """Say whether a picture kills a process that does nothing but decode it."""
    done = subprocess.run([sys.executable, "-c", DECODE], input=data, check=False)
    return done.returncode != 0


def shrunk(data: bytes) -> bytes:
    """Leave out what a picture does not need to kill its decoder."""
    if not kills(data):
        return data
    trials, size = 0, len(data) // 2
    while size and trials < N_SHRINKS:
        for start in range(len(data) - size, -1, -size):
            trials += 1
            shorter = data[:start] + data[start + size :]
            if kills(shorter):
                data = shorter
            if trials >= N_SHRINKS:
                break
        size //= 2
    return data


def _line(outcome: Outcome, started: float) -> str:
    counts = {key: value for key, value in asdict(outcome).items() if isinstance(value, int)}
    return f"{time.perf_counter() - started:7.1f} s  {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decode-workers", choices=("threads", "processes"), default="threads")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    kinds_drawn = collections.Counter(kind for kind, _ in mutations(arguments.n, arguments.seed))
    print(f"{arguments.n} damaged pictures of {len(kinds_drawn)} kinds, seed {arguments.seed}")
    outcome = run(
        arguments.n,
        arguments.seed,
        decode_workers=arguments.decode_workers,
        keep=arguments.keep,
        say=lambda text: print(text, flush=True),
    )
    for name, value in asdict(outcome).items():
        print(f"  {name:<17} {value}")
    if outcome.wrong or outcome.crashes or outcome.hangs or outcome.grown_nbytes > BOUND_NBYTES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
