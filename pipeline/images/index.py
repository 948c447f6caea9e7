"""Stage `index`: makes an immutable table of the images of a dataset, whose files may change later.

Rows are sorted by split, and in a split by a hash of the source. That is a fixed pseudo-random order, so any
contiguous range of a split's activations is a random sample of the split.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.prefetch import thread_pool
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.core.text import count
from patchsae.pipeline.images.changes import changed_content, changed_images
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.images.files import names, reason
from patchsae.pipeline.images.pixels import Thumbnail
from patchsae.pipeline.images.speed import images_probe
from patchsae.pipeline.images.tables import CLASSES, CORRUPT_IMAGES, IMAGE_LABELS, IMAGES
from patchsae.pipeline.images.thumbnails import THUMBNAILS, columns, expected_thumbnail_bytes, to_arrays
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import canonical_json, digest_bytes
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import expected_bytes

_IMAGES_PER_PART = 4096
_SHOWN_ERRORS = 3
_Row = Mapping[str, Any]
# The digest of an image, which does not compress well, and its name.
_BYTES_PER_ROW = 60
_SCRATCH_PER_ROW = 110


def ordered(records: Sequence[Record]) -> list[Record]:
    """The records sorted by split, in the order in which splits first appear, and then by sha256(source)."""
    splits = {split: rank for rank, split in enumerate(dict.fromkeys(record.split for record in records))}
    return sorted(records, key=lambda record: (splits[record.split], digest_bytes(record.source.encode())))


def inspect(dataset: Dataset, record: Record, side: int = 0) -> tuple[dict[str, Any], Thumbnail | None]:
    """The digest, width, height and treatment of an image, or an `error` that says why it cannot be read.

    With `side`, its thumbnail of that longest side comes with them.

    Raises UserError if the machine has too little memory. Counting the image as corrupt would make the result
    depend on the machine.
    """
    try:
        data = dataset.read(record)
        facts, thumbnail = dataset.inspect_small(data, side) if side else (dataset.inspect(data), None)
    except OSError as error:
        return {"error": reason(error)}, None
    except MemoryError:
        raise UserError(
            f"{record.source}: reading and decoding it needs more memory than is free; free some, or take "
            "this image away."
        ) from None
    return {"digest": digest_bytes(data), **vars(facts)}, thumbnail


def content_identity(class_names: Sequence[str], rows: Sequence[_Row]) -> str:
    """sha256 over the class names and what decides each image's pixels, label and split, in the order of the rows.

    An image of one class whose pixels are used as they are stored counts with its label, split and digest, as in
    version 1 of the stage, which knew no others. So datasets of such images alone keep their identity, and what was
    made from them. All labels of an image of several classes count too, and so does the treatment of an image.
    """
    digest = hashlib.sha256(canonical_json(list(class_names)).encode())
    for row in rows:
        several = [list(row["labels"])] if row.get("labels") else []
        treatment = [row["treatment"]] if row.get("treatment") else []
        counted = [row["label"], row["split"], row["digest"], *several, *treatment]
        digest.update(canonical_json(counted).encode())
    return digest.hexdigest()


def _run(config: DatasetConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    dataset = config.build()
    records = ordered(dataset.records())
    side = config.thumbnail_side(len(records))
    found = _inspect_all(dataset, records, side, out, runtime)
    rows = [{**vars(record), **facts} for record, facts in zip(records, found, strict=True)]
    corrupt = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    if corrupt and config.on_corrupt == "error":
        raise UserError(
            f"{len(corrupt)} of {len(records)} images cannot be read ({_shown(corrupt)}); "
            "replace them, or set on_corrupt: exclude."
        )
    if not rows:
        raise UserError(f"none of the {len(records):,} images can be read ({_shown(corrupt)}); replace them.")
    class_names = dataset.class_names()
    counts = _count(rows, len(class_names))
    out.write_table(
        IMAGES,
        {"image": range(len(rows)), **{c.name: [row[c.name] for row in rows] for c in IMAGES.columns[1:]}},
    )
    out.write_table(
        CLASSES, {"class": range(len(class_names)), "class_name": class_names, "n_images": counts}
    )
    if any(row["labels"] for row in rows):
        pairs = [(image, label) for image, row in enumerate(rows) for label in _labels(row)]
        out.write_table(
            IMAGE_LABELS,
            {
                "image": [image for image, _ in pairs],
                "label": [label for _, label in pairs],
                "class_name": [class_names[label] for _, label in pairs],
            },
        )
    out.write_table(
        CORRUPT_IMAGES,
        {"source": [row["source"] for row in corrupt], "error": [row["error"] for row in corrupt]},
    )
    if side:
        _write_thumbnails(found, out)
    out.identity = content_identity(class_names, rows)
    return {
        "n_images": len(rows),
        "n_classes": len(class_names),
        "n_corrupt": len(corrupt),
        "splits": ", ".join(
            f"{split} {sum(row['split'] == split for row in rows)}"
            for split in dict.fromkeys(r.split for r in records)
        ),
        **_noteworthy(corrupt, rows, [name for name, n in zip(class_names, counts, strict=True) if not n]),
        **_absent(rows, class_names),
    }


def _shown(corrupt: Sequence[_Row]) -> str:
    first = sorted(corrupt, key=lambda row: row["source"])[:_SHOWN_ERRORS]
    return "; ".join(f"{names([row['source']])}: {row['error']}" for row in first)


def _noteworthy(corrupt: Sequence[_Row], rows: Sequence[_Row], empty: Sequence[str]) -> Summary:
    """The entries of the summary that `remarks` makes sentences of; those of which there are none are left out."""
    of_digest: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        of_digest[row["digest"]].append(row)
    same = [group for group in of_digest.values() if len(group) > 1]
    in_two_splits = [group for group in same if _differs(group, "split")]
    in_two_classes = [group for group in same if _differs(group, "label")]
    others = [group for group in same if not (_differs(group, "split") or _differs(group, "label"))]
    found: dict[str, int | str] = {
        "corrupt": names(sorted(row["source"] for row in corrupt)),
        "n_empty_classes": len(empty),
        "empty_classes": names(empty),
        "n_turned": sum("orientation" in row["treatment"] for row in rows),
        "n_on_background": sum("background" in row["treatment"] for row in rows),
        "n_duplicates": sum(len(group) - 1 for group in others),
        "duplicates": _pairs(others),
        "n_in_two_splits": len(in_two_splits),
        "in_two_splits": _pairs(in_two_splits),
        "n_in_two_classes": len(in_two_classes),
        "in_two_classes": _pairs(in_two_classes),
    }
    return {name: value for name, value in found.items() if value}


def _absent(rows: Sequence[_Row], class_names: Sequence[str]) -> Summary:
    """The classes that have images, but none in one of the splits, as entries of the summary; none if there are
    none."""
    of_split: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        of_split[row["split"]].update(_labels(row))
    present = set().union(*of_split.values())
    absent = {split: sorted(present - labels) for split, labels in of_split.items() if present - labels}
    if not absent:
        return {}
    told = (f"`{split}` ({names(class_names[i] for i in labels)})" for split, labels in absent.items())
    return {"n_absent_classes": len(set().union(*absent.values())), "absent_classes": ", ".join(told)}


def _differs(group: Iterable[_Row], column: str) -> bool:
    return len({row[column] for row in group}) > 1


def _pairs(groups: Iterable[Sequence[_Row]]) -> str:
    """The first few groups of equal images, as `a/1.jpg = b/1.jpg`."""
    return names(sorted(" = ".join(sorted(names([row["source"]]) for row in group)[:3]) for group in groups))


def remarks(summary: Summary) -> list[str]:
    """What a user should know of the images of an index, as sentences without a stop."""
    n, found = {name: value for name, value in summary.items() if isinstance(value, int)}, []
    if n.get("n_corrupt"):
        total = count(n["n_images"] + n["n_corrupt"], "image")
        found.append(
            f"{n['n_corrupt']:,} of {total} cannot be read and {'was' if n['n_corrupt'] == 1 else 'were'} left "
            f"out: {summary.get('corrupt', '')} (the table `corrupt_images` says why)"
        )
    if "n_empty_classes" in n:
        several = count(n["n_empty_classes"], "class has", "classes have")
        found.append(f"{several} no image that can be read: {summary['empty_classes']}")
    if "n_absent_classes" in n:
        several = count(n["n_absent_classes"], "class has", "classes have")
        found.append(f"{several} no image in one of the splits: {summary['absent_classes']}")
    if "n_turned" in n:
        several = count(n["n_turned"], "image is", "images are")
        found.append(f"{several} turned upright as the EXIF orientation says")
    if "n_on_background" in n:
        several = count(n["n_on_background"], "image has", "images have")
        found.append(f"{several} transparent pixels, which are put on the `background`")
    if "n_in_two_splits" in n:
        several = count(n["n_in_two_splits"], "image is", "images are")
        found.append(
            f"{several} in more than one split, byte for byte, so that what one split measures was seen in the "
            f"other: {summary['in_two_splits']}"
        )
    if "n_in_two_classes" in n:
        several = count(n["n_in_two_classes"], "image is", "images are")
        found.append(f"{several} in more than one class, byte for byte: {summary['in_two_classes']}")
    if "n_duplicates" in n:
        several = count(n["n_duplicates"], "image is a copy", "images are copies")
        found.append(f"{several} of another one, byte for byte: {summary['duplicates']}")
    return found


def _count(rows: Sequence[Mapping[str, Any]], n_classes: int) -> list[int]:
    counts = [0] * n_classes
    for row in rows:
        for label in _labels(row):
            counts[label] += 1
    return counts


def _labels(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of all classes of an image."""
    return row["labels"] or (row["label"],)


def _write_thumbnails(found: Sequence[Mapping[str, Any]], out: Builder) -> None:
    """Writes the table `thumbnails`, a file for each part."""
    first = 0
    for part, start in enumerate(range(0, len(found), _IMAGES_PER_PART)):
        out.write_table(THUMBNAILS, columns(out.scratch.part(part), first), part)
        first += sum("error" not in facts for facts in found[start : start + _IMAGES_PER_PART])


def _inspect_all(
    dataset: Dataset, records: Sequence[Record], side: int, out: Builder, runtime: Runtime
) -> list[dict[str, Any]]:
    """The facts that `inspect` returns for every record. Parts that are already done are read from scratch, and
    thumbnails stay there.

    The artifact's key contains the source's fingerprint, so a finished part is never of another state of the
    source.
    """
    starts = range(0, len(records), _IMAGES_PER_PART)
    missing = set(out.ledger.drop_unsound(len(starts)))
    if side:
        # An index that an earlier version left unfinished has none.
        missing |= {part for part in range(len(starts)) if not out.scratch.has_part(part)}
    facts: list[dict[str, Any]] = []
    n_corrupt = 0
    n_done = sum(part not in missing for part in range(len(starts))) * _IMAGES_PER_PART
    with (
        thread_pool(os.cpu_count(), "index") as pool,
        runtime.reporter.bar("index", len(records), "images", min(n_done, len(records))) as bar,
    ):
        for part, start in enumerate(starts):
            if part in missing:
                found, thumbnails = [], []
                for one, thumbnail in pool.map(
                    lambda record: inspect(dataset, record, side), records[start : start + _IMAGES_PER_PART]
                ):
                    found.append(one)
                    thumbnails.append(thumbnail)
                    n_corrupt += "error" in one
                    bar.advance(note=f"({n_corrupt:,} cannot be read)" if n_corrupt else "")
                files = [out.scratch.write_part(part, to_arrays(thumbnails))] if side else []
                out.ledger.record(part, [*files, out.scratch.write_json(part, found)])
            facts += out.scratch.json(part)
    return facts


def _predict(config: DatasetConfig, inputs: Upstreams) -> Prediction:
    source = inputs["source"].source
    n_images = config.expected_images() if source is None else source.n_images
    if n_images is None:
        return Prediction()
    n_classes = len(source.class_names or ()) if source is not None else 0
    n_thumbnail_bytes = n_images * expected_thumbnail_bytes(config.thumbnail_side(n_images))
    n_bytes = (
        MANIFEST_BYTES
        + expected_bytes(IMAGES, n_images, _BYTES_PER_ROW)
        + expected_bytes(CLASSES, n_classes, 16)
        + expected_bytes(CORRUPT_IMAGES, 0, 0)
        + round(n_thumbnail_bytes)
    )
    effort = [(images_probe(config, source, decode=False), n_images)] if source is not None else None
    return Prediction(
        {"n_images": n_images, "n_classes": n_classes},
        n_bytes,
        _SCRATCH_PER_ROW * n_images + round(n_thumbnail_bytes),
        effort,
    )


STAGE = Stage(
    name="index",
    version=2,
    section="datasets",
    uses_gpu=False,
    description="The images of every dataset, as an immutable table.",
    run=_run,
    source=lambda config: config.source(),
    identified_by_content=True,
    predict=_predict,
    changed_source=changed_images,
    changed_content=changed_content,
    changes={
        2: "turns images by their EXIF orientation and puts transparent ones on a background; what follows is done "
        "again only if an image is one of these"
    },
    remarks=remarks,
)
