"""How ``format-1`` beside this file was made, once: python -m tests.conformance.make_store FOLDER.

It is never made again. A later version that cannot read it has broken a promise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from featurestore.images.read import read_images
from featurestore.keys import want
from featurestore.networks import registry
from featurestore.networks.spec import ModelRecord, ModelSpec
from featurestore.networks.taps import ModuleInfo, OutputInfo
from featurestore.storage.catalog import open_catalog
from featurestore.storage.compaction import compact_column
from featurestore.storage.imagesets import publish_images
from featurestore.storage.index import write_damage
from featurestore.storage.tags import create_tag
from tests.conformance.test_old_stores import COLUMNS, N_IMAGES, picture, values


def main() -> None:
    catalog = open_catalog(Path(sys.argv[1]), "a")
    modules = tuple(
        ModuleInfo(
            name,
            "Conv2d",
            0,
            (OutputInfo(0, (), ("channel", "y", "x")[: len(shape)], shape),),
            10,
            10 * (number + 1),
        )
        for number, (name, shape, _, _) in enumerate(COLUMNS)
    )
    preprocessing = {"decode": {}, "transform": {"resize": 8}}
    spec = ModelSpec("torchvision", "alexnet", {}, "0" * 32, "1" * 32, preprocessing)
    record = ModelRecord(spec, "alexnet", "IMAGENET1K_V1", (3, 8, 8), modules, {})
    catalog.require_writable("a model")
    catalog.create_model(record)
    catalog.create_alias(registry.request("alexnet"), record.key)
    images = read_images(
        [picture(n) for n in range(N_IMAGES)], names=[f"Bild-{n} ☃.png" for n in range(N_IMAGES)]
    ).assign_coords(category=["tool", "animal"] * (N_IMAGES // 2))
    publish_images(catalog, images)
    run = catalog.create_run({"device": "cpu", "batch_size": 8, "n_threads": 1, "environment": {}})
    for name, _, dtype, readout in COLUMNS:
        wanted = want(record, name, readout=readout, precision="fp32", dtype=dtype)  # type: ignore[arg-type]
        column = catalog.column(wanted.key)
        for part in (slice(0, 3), slice(3, 8), slice(6, 10)):  # two rows are there twice
            rows = np.stack([values(name, n) for n in range(N_IMAGES)[part]])
            column.append(
                wanted.feature.to_json(),
                wanted.dims,
                images.digests[part],
                rows,
                dtype=dtype,
                run=run,
            )
        if name == "features.0":
            compact_column(catalog, column)
            key = [(wanted.key, record.label, name, images.digests[:4])]
            create_tag(catalog, "Arbeit-2026", key)
        if name == "features.3":  # one copy of a row that is there twice is marked as damaged
            write_damage(catalog.blobs, column.index.layout, 1, [3], "on purpose")


if __name__ == "__main__":
    main()
