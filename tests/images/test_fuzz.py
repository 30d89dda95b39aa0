"""The fuzzer in short; `python -m benchmarks.fuzz_images` runs thousands."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks.fuzz_images import draw_all, mutations, run
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode
from featurestore.policy import DecodePolicy


def test_damaged_pictures_are_decoded_or_named_and_good_rows_keep_their_bits():
    outcome = run(300, seed=1)
    assert outcome.wrong == []
    assert (outcome.crashes, outcome.hangs) == (0, 0)
    assert outcome.n == outcome.decoded + outcome.refused == 300
    assert min(outcome.decoded, outcome.refused) > 30  # both ways are gone


def test_every_drawn_picture_is_valid_before_it_is_damaged():
    for name, data in draw_all(np.random.default_rng(0)).items():
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        decoded = decode(ImageContent.of(data), DecodePolicy(sixteen_bit="clip"))  # as Pillow does
        assert decoded.image.tobytes() == expected.tobytes(), name


def test_mutations_repeat_with_the_seed():
    assert list(mutations(50, 3)) == list(mutations(50, 3))
    assert list(mutations(50, 3)) != list(mutations(50, 4))
