"""The tables of an `index` artifact, and the functions with which stages read its splits and classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator

from patchsae.pipeline.core.prediction import Upstream
from patchsae.pipeline.core.text import nearest
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.tables import Column, TableSchema

# The entry `splits` of the summary of an index: `train 4,000`, without the comma.
_SPLIT = re.compile(r"(.+?) (\d+)(?:, |$)")

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
        Column(
            "label",
            pa.int32(),
            "Class id, counted from 0; two classes may have the same name. Of an image of several classes: one of "
            "them, and all are in `image_labels`.",
        ),
        Column("class_name", pa.string(), "Name of the class."),
        Column("split", pa.string(), "Split that the image belongs to."),
        Column("width", pa.int32(), "Width in pixels, as the image is shown, before preprocessing."),
        Column("height", pa.int32(), "Height in pixels, as the image is shown, before preprocessing."),
        Column("digest", pa.string(), "sha256 of the file's bytes, or of the pixels of a generated image."),
        Column(
            "treatment",
            pa.string(),
            "What was done to the stored pixels: `orientation 6` (turned or mirrored as that EXIF tag says), "
            "`background white` (transparent pixels were put on it), both, or an empty text, never null, if nothing "
            "was done.",
        ),
    ),
)
LATER_COLUMNS = {"treatment": ""}
"""The columns of `images` that an index of version 0.1 or earlier lacks -> what they would hold. It used all pixels
as they are stored."""


CLASSES = TableSchema(
    "classes",
    "One row per class.",
    (
        Column("class", pa.int32(), "Class id, which is the `label` of its images."),
        Column("class_name", pa.string(), "Name of the class; two classes may have the same name."),
        Column(
            "n_images",
            pa.int64(),
            "Number of readable images of the class, over all splits. An image of several classes counts in each.",
        ),
    ),
)


IMAGE_LABELS = TableSchema(
    "image_labels",
    "One row per image and class that it is of. Only a dataset with images of several classes has this table.",
    (
        Column("image", pa.int64(), "Row number of the image in the table `images`."),
        Column("label", pa.int32(), "Class id, which is the `class` of the table `classes`."),
        Column("class_name", pa.string(), "Name of the class."),
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


def _no_single_class(classes: Any) -> Any:
    """Refuses what is neither a group nor a list of classes, before pydantic tries both and complains about both."""
    is_list = isinstance(classes, list | tuple) and all(isinstance(one, int | str) for one in classes)
    if classes not in ("base", "novel") and not (is_list and classes):
        raise ValueError("is no choice of classes; write base, novel, or a list such as [cat, dog]")
    return classes


Group = Literal["base", "novel"]
Classes = Annotated[Group | tuple[int | str, ...], BeforeValidator(_no_single_class)]
"""Which classes of a dataset are used.

`base` and `novel` are the first and the second half of its classes (spec 7.4), and a task: an image is classified
among the classes of its half alone. A list of names or ids keeps the images of these classes, which are classified
among all classes. A class whose name is `base` is `[base]`.
"""


def task_classes(images: Artifact, classes: Classes | None) -> np.ndarray:
    """The ids of the classes that the images of `classes` are classified among, ascending: int64.

    Of the n classes that have images in any split, the first ceil(n / 2) are `base` and the others `novel`. All
    classes of the dataset for a list, or None. Raises UserError if n is 1, so that there are no halves.
    """
    n_images = images.scan("classes").select("n_images").collect()["n_images"].to_numpy()
    return _task(np.flatnonzero(n_images), class_names_of(images), classes)


def wanted_classes(images: Artifact, classes: Classes | None) -> np.ndarray:
    """The ids of the classes whose images are used, ascending: int64.

    Raises UserError if there is no such class, or if there are no halves.
    """
    if classes is None or isinstance(classes, str):
        return task_classes(images, classes)
    return np.array(_wanted(class_names_of(images), classes))


def expected_task_classes(images: Upstream, classes: Classes | None) -> np.ndarray | None:
    """`task_classes` before the images are indexed; None if the classes are not known.

    It takes every class to have images.
    """
    if images.artifact is not None:
        return task_classes(images.artifact, classes)
    names = expected_classes(images)
    return None if names is None else _task(np.arange(len(names)), names, classes)


def _task(with_images: np.ndarray, names: Sequence[str], classes: Classes | None) -> np.ndarray:
    if not isinstance(classes, str):
        return np.arange(len(names))
    if len(with_images) < 2:
        raise UserError(
            f"classes `{classes}`: the dataset has images of one class only (`{names[with_images[0]]}`), and base and "
            "novel are two halves of its classes; leave `classes` out."
        )
    n_base = -(-len(with_images) // 2)
    return with_images[:n_base] if classes == "base" else with_images[n_base:]


def split_range(images: Artifact, split: str) -> range:
    """The rows of a split, which are contiguous. Raises UserError, naming the splits, if it has none."""
    rows = images.scan("images").select("image", "split").collect()
    chosen = rows.filter(rows["split"] == split)["image"]
    if chosen.is_empty():
        raise _no_split(split, rows["split"].unique(maintain_order=True))
    return range(int(chosen[0]), int(chosen[-1]) + 1)


def _no_split(split: str, known: Iterable[str]) -> UserError:
    names = ", ".join(f"`{name}`" for name in known)
    return UserError(f"split `{split}`: no image has it; this dataset has {names}.")


def rows_of(
    images: Artifact, split: str, classes: Classes | None = None, limit: int | None = None
) -> np.ndarray:
    """Row numbers of a split's images, ascending: int64 [images].

    `classes` keeps only the images of these classes, given by name, by id, or as `base` or `novel`. `limit`
    keeps at most this many images, the first ones: the rows of a split are in a fixed pseudo-random order, so
    they are a random sample. Raises UserError if the split or a class does not exist, if no image is left, or
    if a class of `base` or `novel` has no image in the split.
    """
    rows = np.array(split_range(images, split), np.int64)
    if classes is not None:
        wanted, names = wanted_classes(images, classes), class_names_of(images)
        position, label = label_sets_of(images).pairs(rows)
        present = np.bincount(label, minlength=len(names)) > 0
        if isinstance(classes, str) and len(missing := wanted[~present[wanted]]):
            name = names[missing[0]]
            raise UserError(
                f"classes `{classes}`: the class `{name}` has no image in the split `{split}`"
                f"{f', nor have {len(missing) - 1} more' if len(missing) > 1 else ''}; choose a split with images of "
                "every class, or list `classes`."
            )
        is_wanted, is_kept = np.zeros(len(names), bool), np.zeros(len(rows), bool)
        is_wanted[wanted] = True
        is_kept[position[is_wanted[label]]] = True
        rows = rows[is_kept]
        if not len(rows):
            raise UserError(
                f"classes: no image of the split `{split}` is of one of {', '.join(map(str, classes))}."
            )
    return rows[:limit]


def _wanted(names: Sequence[str], classes: Sequence[int | str]) -> list[int]:
    """The ids of classes that are given by name or id. Raises UserError if there is no such class."""
    for one in classes:
        if one not in names and not (isinstance(one, int) and 0 <= one < len(names)):
            raise UserError(f"classes: the dataset has no class `{one}`{nearest(str(one), names)}")
    return [i for i, name in enumerate(names) if i in classes or name in classes]


def expected_rows(
    images: Upstream, split: str, classes: Classes | None = None, limit: int | None = None
) -> int | None:
    """How many rows `rows_of` will give: about, before the images are indexed; None if that is not known.

    Raises UserError, as `rows_of` does, if the split or a class is known not to exist.
    """
    splits = expected_splits(images)
    if splits is None:
        return None
    if split not in splits:
        if images.artifact is not None:
            split_range(images.artifact, split)
        raise _no_split(split, splits)
    n = splits[split]
    if classes is not None and images.artifact is not None:
        n = len(rows_of(images.artifact, split, classes))
    elif classes is not None and (names := expected_classes(images)):
        is_group = isinstance(classes, str)
        chosen = _task(np.arange(len(names)), names, classes) if is_group else _wanted(names, classes)
        n = -(-n * len(chosen) // len(names))
    return n if limit is None else min(n, limit)


def expected_splits(images: Upstream) -> Mapping[str, int] | None:
    """The number of images of each split, from the summary of the index or from the images themselves."""
    if images.artifact is not None:
        told = str(images.artifact.manifest.summary["splits"])
        return {split: int(n) for split, n in _SPLIT.findall(told)}
    return None if images.source is None else images.source.splits


def expected_classes(images: Upstream) -> Sequence[str] | None:
    """The names of the classes, from the index or from the images themselves; None if they are not known."""
    if images.artifact is not None:
        return class_names_of(images.artifact)
    return None if images.source is None else images.source.class_names


def labels_of(images: Artifact) -> np.ndarray:
    """The class id of every image of an `index` artifact: int32 [images]."""
    return images.scan("images").select("label").collect()["label"].to_numpy(writable=True)


class LabelSets:
    """The class ids of every image of an index. Most images are of one class, some datasets' of several."""

    def __init__(self, image: np.ndarray, label: np.ndarray, n_images: int) -> None:
        """`image` ascends and has every image from 0 to `n_images - 1` at least once; `label` has its class ids."""
        self._ends = np.searchsorted(image, np.arange(n_images + 1))
        self._labels = label

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """The number of classes of each of the images `rows`: int64 [images]."""
        return self._ends[rows + 1] - self._ends[rows]

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every class of each of the images `rows`: (position in `rows`, class id), both int64 [pairs]."""
        n = self.counts(rows)
        position = np.repeat(np.arange(len(rows)), n)
        nth = np.arange(len(position)) - np.repeat(np.cumsum(n) - n, n)
        return position, self._labels[self._ends[rows][position] + nth].astype(np.int64)

    def mask(self, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Whether each of the images `rows` is of each of the ascending class ids `classes`: bool [images, classes]."""
        position, label = self.pairs(rows)
        place = np.searchsorted(classes, label)
        is_asked = classes[np.minimum(place, len(classes) - 1)] == label
        found = np.zeros((len(rows), len(classes)), bool)
        found[position[is_asked], place[is_asked]] = True
        return found


def label_sets_of(images: Artifact) -> LabelSets:
    """The classes of every image of an `index` artifact."""
    labels = labels_of(images)
    if not images.table_files(IMAGE_LABELS.name):
        return LabelSets(np.arange(len(labels)), labels, len(labels))
    rows = (
        images.scan(IMAGE_LABELS.name).select("image", "label").sort("image", maintain_order=True).collect()
    )
    return LabelSets(rows["image"].to_numpy(), rows["label"].to_numpy(), len(labels))


def class_names_of(images: Artifact) -> list[str]:
    """The names of the classes of an `index` artifact, in the order of their ids."""
    return images.scan("classes").select("class_name").collect()["class_name"].to_list()
