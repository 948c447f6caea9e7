"""Stage `index`: a mutable image source becomes an immutable table.

Rows are ordered by split and, inside a split, by a hash of the source: a fixed pseudo-random order, so that any
contiguous range of the activations is a fair sample of its split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.datasets.base import Dataset, DatasetConfig, Record
from pipeline.stage import Inputs, Runtime, Stage
from storage import tables
from storage.artifacts import PARTS, Artifact, Builder, Summary
from storage.atomic import write_atomic
from storage.errors import UserError
from storage.keys import canonical_json, digest_bytes
from storage.tables import Column, TableSchema

_IMAGES_PER_PART = 4096
_SHOWN_ERRORS = 3

IMAGES = TableSchema(
    "images",
    "One row per readable image; its number is its row in the activations.",
    (
        Column("image", pa.int64(), "Row number, and row of the activation array."),
        Column(
            "source", pa.string(), "Stable id inside the dataset: a path relative to its root, or a name."
        ),
        Column("label", pa.int32(), "Class id, counted from 0; two classes may share a name."),
        Column("class_name", pa.string(), "Name of the class."),
        Column("split", pa.string(), "Split the image belongs to."),
        Column("width", pa.int32(), "Width in pixels, before preprocessing."),
        Column("height", pa.int32(), "Height in pixels, before preprocessing."),
        Column("digest", pa.string(), "sha256 of the file's bytes, or of the pixels of a generated image."),
    ),
)
CLASSES = TableSchema(
    "classes",
    "One row per class.",
    (
        Column("class", pa.int32(), "Class id; `label` of the images."),
        Column("class_name", pa.string(), "Name of the class; need not be unique."),
        Column("n_images", pa.int64(), "Readable images of the class, over all splits."),
    ),
)
CORRUPT_IMAGES = TableSchema(
    "corrupt_images",
    "Images that could not be decoded and were left out.",
    (
        Column("source", pa.string(), "Id inside the dataset."),
        Column("error", pa.string(), "What the decoder said."),
    ),
)


def ordered(records: Sequence[Record]) -> list[Record]:
    """Splits in order of appearance, images of a split in the order of sha256(source)."""
    splits = {split: rank for rank, split in enumerate(dict.fromkeys(record.split for record in records))}
    return sorted(records, key=lambda record: (splits[record.split], digest_bytes(record.source.encode())))


def inspect(dataset: Dataset, record: Record) -> dict[str, Any]:
    """Digest and size of an image, or the reason it cannot be read."""
    try:
        data = dataset.read(record)
        image = dataset.decode(data)
    except OSError as error:
        return {"error": str(error) or type(error).__name__}
    return {"digest": digest_bytes(data), "width": image.width, "height": image.height}


def content_identity(class_names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over class names and, per image in order, label, split and digest."""
    digest = hashlib.sha256(canonical_json(list(class_names)).encode())
    for row in rows:
        digest.update(canonical_json([row["label"], row["split"], row["digest"]]).encode())
    return digest.hexdigest()


def _run(config: DatasetConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    dataset = config.build()
    records = ordered(dataset.records())
    found = _inspect_all(dataset, records, out, runtime)
    rows = [{**vars(record), **facts} for record, facts in zip(records, found, strict=True)]
    corrupt = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    if corrupt and config.on_corrupt == "error":
        shown = "; ".join(f"{row['source']}: {row['error']}" for row in corrupt[:_SHOWN_ERRORS])
        raise UserError(
            f"{len(corrupt)} of {len(records)} images cannot be read ({shown}); "
            "replace them, or set on_corrupt: exclude."
        )
    names = dataset.class_names()
    counts = _count(rows, len(names))
    for label, n_images in enumerate(counts):
        if n_images == 0:
            raise UserError(
                f"class `{names[label]}` (label {label}) has no readable image; add one or drop the class."
            )
    tables.write(
        out,
        IMAGES,
        {"image": range(len(rows)), **{c.name: [row[c.name] for row in rows] for c in IMAGES.columns[1:]}},
    )
    tables.write(out, CLASSES, {"class": range(len(names)), "class_name": names, "n_images": counts})
    tables.write(
        out,
        CORRUPT_IMAGES,
        {"source": [row["source"] for row in corrupt], "error": [row["error"] for row in corrupt]},
    )
    out.identity = content_identity(names, rows)
    return {
        "n_images": len(rows),
        "n_classes": len(names),
        "n_corrupt": len(corrupt),
        "splits": ", ".join(
            f"{split} {sum(row['split'] == split for row in rows)}"
            for split in dict.fromkeys(r.split for r in records)
        ),
    }


def _count(rows: Sequence[Mapping[str, Any]], n_classes: int) -> list[int]:
    counts = [0] * n_classes
    for row in rows:
        counts[row["label"]] += 1
    return counts


def _inspect_all(
    dataset: Dataset, records: Sequence[Record], out: Builder, runtime: Runtime
) -> list[dict[str, Any]]:
    """Facts per record, from finished parts where there are any. A part belongs to one state of the source."""
    starts = range(0, len(records), _IMAGES_PER_PART)
    missing = set(out.ledger.missing(len(starts)))
    facts: list[dict[str, Any]] = []
    n_done = sum(part not in missing for part in range(len(starts))) * _IMAGES_PER_PART
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        runtime.reporter.bar("index", len(records), "images", min(n_done, len(records))) as bar,
    ):
        for part, start in enumerate(starts):
            path = out.path / PARTS / f"index-{part:06d}.json"
            if part in missing:
                found = []
                for one in pool.map(
                    lambda record: inspect(dataset, record), records[start : start + _IMAGES_PER_PART]
                ):
                    found.append(one)
                    bar.advance()
                write_atomic(path, canonical_json(found).encode())
                out.ledger.record(part, [path])
            facts += json.loads(path.read_bytes())
    return facts


def split_range(images: Artifact, split: str) -> range:
    """The rows of a split, which are contiguous. Raises UserError, naming the splits, if it has none."""
    rows = tables.of(images, "images").select("image", "split").collect()
    chosen = rows.filter(rows["split"] == split)["image"]
    if chosen.is_empty():
        known = ", ".join(f"`{name}`" for name in rows["split"].unique(maintain_order=True))
        raise UserError(f"split `{split}`: no image has it; this dataset has {known}.")
    return range(int(chosen[0]), int(chosen[-1]) + 1)


STAGE = Stage(
    "index",
    1,
    _run,
    fingerprint=lambda config: config.build().fingerprint(),
    identified_by_content=True,
)
