"""The tables of an `index` artifact, and the functions with which stages read its splits and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from patchsae.pipeline.core.text import nearest
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.tables import Column, TableSchema

IMAGES = TableSchema(
    "images",
    "One row per readable image, in the order of the activations.",
    (
        Column(
            "image",
            pa.int64(),
            "Row number of the image in this table and in the activation array, counted from 0.",
        ),
        Column(
            "source",
            pa.string(),
            "Id of the image in the dataset: its path relative to the dataset's root, or a name.",
        ),
        Column("label", pa.int32(), "Class id, counted from 0; two classes may have the same name."),
        Column("class_name", pa.string(), "Name of the class."),
        Column("split", pa.string(), "Split that the image belongs to."),
        Column("width", pa.int32(), "Width in pixels, before preprocessing."),
        Column("height", pa.int32(), "Height in pixels, before preprocessing."),
        Column("digest", pa.string(), "sha256 of the file's bytes, or of the pixels of a generated image."),
    ),
)


CLASSES = TableSchema(
    "classes",
    "One row per class.",
    (
        Column("class", pa.int32(), "Class id, which is the `label` of its images."),
        Column("class_name", pa.string(), "Name of the class; two classes may have the same name."),
        Column("n_images", pa.int64(), "Number of readable images of the class, over all splits."),
    ),
)


CORRUPT_IMAGES = TableSchema(
    "corrupt_images",
    "Images that could not be decoded and were left out.",
    (
        Column("source", pa.string(), "Id of the image in the dataset."),
        Column("error", pa.string(), "Message of the decoder."),
    ),
)


def split_range(images: Artifact, split: str) -> range:
    """The rows of a split, which are contiguous. Raises UserError, naming the splits, if it has none."""
    rows = images.scan("images").select("image", "split").collect()
    chosen = rows.filter(rows["split"] == split)["image"]
    if chosen.is_empty():
        known = ", ".join(f"`{name}`" for name in rows["split"].unique(maintain_order=True))
        raise UserError(f"split `{split}`: no image has it; this dataset has {known}.")
    return range(int(chosen[0]), int(chosen[-1]) + 1)


def rows_of(
    images: Artifact, split: str, classes: Sequence[int | str] | None = None, limit: int | None = None
) -> np.ndarray:
    """Row numbers of a split's images, ascending: int64 [images].

    `classes`, by name or by id, keeps only the images of these classes. `limit` keeps at most this many
    images, the first ones: the rows of a split are in a fixed pseudo-random order, so they are a random
    sample. Raises UserError if the split or a class does not exist, or no image is left.
    """
    rows = np.array(split_range(images, split), np.int64)
    if classes is not None:
        names = class_names_of(images)
        for one in classes:
            if one not in names and not (isinstance(one, int) and 0 <= one < len(names)):
                raise UserError(f"classes: the dataset has no class `{one}`{nearest(str(one), names)}")
        wanted = {i for i, name in enumerate(names) if i in classes or name in classes}
        rows = rows[np.isin(labels_of(images)[rows], sorted(wanted))]
        if not len(rows):
            raise UserError(
                f"classes: no image of the split `{split}` is of one of {', '.join(map(str, classes))}."
            )
    return rows[:limit]


def labels_of(images: Artifact) -> np.ndarray:
    """The class id of every image of an `index` artifact: int32 [images]."""
    return images.scan("images").select("label").collect()["label"].to_numpy(writable=True)


def class_names_of(images: Artifact) -> list[str]:
    """The names of the classes of an `index` artifact, in the order of their ids."""
    return images.scan("classes").select("class_name").collect()["class_name"].to_list()
