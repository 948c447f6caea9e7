"""Stage `index`: makes an immutable table of the images of a dataset, whose files may change later.

Rows are sorted by split, and in a split by a hash of the source. That is a fixed pseudo-random order, so any
contiguous range of a split's activations is a random sample of the split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.images.files import reason
from patchsae.pipeline.images.tables import CLASSES, CORRUPT_IMAGES, IMAGE_LABELS, IMAGES
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import canonical_json, digest_bytes
from patchsae.storage.manifest import Summary

_IMAGES_PER_PART = 4096
_SHOWN_ERRORS = 3


def ordered(records: Sequence[Record]) -> list[Record]:
    """The records sorted by split, in the order in which splits first appear, and then by sha256(source)."""
    splits = {split: rank for rank, split in enumerate(dict.fromkeys(record.split for record in records))}
    return sorted(records, key=lambda record: (splits[record.split], digest_bytes(record.source.encode())))


def inspect(dataset: Dataset, record: Record) -> dict[str, Any]:
    """The digest, width and height of an image, or an `error` that says why it cannot be read.

    Raises UserError if the machine has too little memory. Counting the image as corrupt would make the result
    depend on the machine.
    """
    try:
        data = dataset.read(record)
        image = dataset.decode(data)
    except OSError as error:
        return {"error": reason(error)}
    except MemoryError:
        raise UserError(
            f"{record.source}: reading and decoding it needs more memory than is free; free some, or take "
            "this image away."
        ) from None
    return {"digest": digest_bytes(data), "width": image.width, "height": image.height}


def content_identity(class_names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over the class names and the label, split and digest of each image, in the order of the rows.

    Of an image of several classes all labels go in too.
    """
    digest = hashlib.sha256(canonical_json(list(class_names)).encode())
    for row in rows:
        several = [list(row["labels"])] if row.get("labels") else []
        digest.update(canonical_json([row["label"], row["split"], row["digest"], *several]).encode())
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
    out.write_table(
        IMAGES,
        {"image": range(len(rows)), **{c.name: [row[c.name] for row in rows] for c in IMAGES.columns[1:]}},
    )
    out.write_table(CLASSES, {"class": range(len(names)), "class_name": names, "n_images": counts})
    if any(row["labels"] for row in rows):
        pairs = [(image, label) for image, row in enumerate(rows) for label in _labels(row)]
        out.write_table(
            IMAGE_LABELS,
            {
                "image": [image for image, _ in pairs],
                "label": [label for _, label in pairs],
                "class_name": [names[label] for _, label in pairs],
            },
        )
    out.write_table(
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
        for label in _labels(row):
            counts[label] += 1
    return counts


def _labels(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of all classes of an image."""
    return row["labels"] or (row["label"],)


def _inspect_all(
    dataset: Dataset, records: Sequence[Record], out: Builder, runtime: Runtime
) -> list[dict[str, Any]]:
    """What `inspect` returns for every record. Parts that are already done are read from scratch.

    The artifact's key contains the source's fingerprint, so a finished part is never of another state of the
    source.
    """
    starts = range(0, len(records), _IMAGES_PER_PART)
    missing = set(out.ledger.drop_unsound(len(starts)))
    facts: list[dict[str, Any]] = []
    n_done = sum(part not in missing for part in range(len(starts))) * _IMAGES_PER_PART
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        runtime.reporter.bar("index", len(records), "images", min(n_done, len(records))) as bar,
    ):
        for part, start in enumerate(starts):
            if part in missing:
                found = []
                for one in pool.map(
                    lambda record: inspect(dataset, record), records[start : start + _IMAGES_PER_PART]
                ):
                    found.append(one)
                    bar.advance()
                out.ledger.record(part, [out.scratch.write_json(part, found)])
            facts += out.scratch.json(part)
    return facts


STAGE = Stage(
    name="index",
    version=1,
    section="datasets",
    uses_gpu=False,
    description="The images of every dataset, as an immutable table.",
    run=_run,
    source=lambda config: config.source(),
    identified_by_content=True,
)
