"""Stage `few_shot`: draws some images of each class, which adapters learn from, and writes the draw as a table.

An image's place in the draw of its class is decided by a digest of the seed and of its name alone. So the draw of 4
images is the first part of that of 16, it is the same whichever other classes are drawn, and another image of the
class moves no other.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.core.text import count
from patchsae.pipeline.images.tables import (
    Classes,
    class_names_of,
    expected_classes,
    expected_rows,
    expected_splits,
    expected_task_classes,
    label_sets_of,
    labels_of,
    rows_of,
    wanted_classes,
)
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes, digest_json
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema, expected_bytes

_VAL = "val"
# As in CoOp (spec 7.4): a validation set of more images per class would not be "few-shot".
_MOST_VAL_SHOTS = 4
_BYTES_PER_ROW = 30

FEW_SHOT = TableSchema(
    "few_shot",
    "One row per drawn image, in the order of the draw.",
    (
        Column("image", pa.int64(), "Row number of the image in the table `images`."),
        Column("source", pa.string(), "Id of the image in the dataset, as in `images`."),
        Column("label", pa.int32(), "Class id of the image."),
        Column("class_name", pa.string(), "Name of the class."),
        Column(
            "shot",
            pa.int32(),
            "The image's number in the draw of its class, counted from 0. With the same seed, a draw of n images per "
            "class is the rows with shot < n of any larger one.",
        ),
        Column(
            "split",
            pa.string(),
            "`train`: to learn from, drawn from the split that the config names. `val`: to choose settings by, drawn "
            "from the dataset's split `val`, at most 4 per class; a dataset without that split has no such rows.",
        ),
    ),
)


class FewShotConfig(Config):
    """Which images of a dataset are drawn."""

    classes: Classes | None = None
    """The classes whose images are drawn; all if not given."""
    shots: Annotated[int, Field(ge=1)] | None = 16
    """How many images of each class are drawn; all if null."""
    seed: int = Field(1, ge=0)
    """Another seed draws other images."""
    split: str = "train"
    """The split that is drawn from."""

    def label(self) -> str:
        """A short name of these settings, for the address of a draw: `base-16-seed1`."""
        chosen = self.classes if isinstance(self.classes, str | None) else digest_json(list(self.classes))[:6]
        shots = "all" if self.shots is None else str(self.shots)
        split = None if self.split == "train" else self.split
        return "-".join(one for one in (chosen, shots, f"seed{self.seed}", split) if one)


def _run(config: FewShotConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    images = inputs["images"]
    rows = _rows(config, images)
    drawn = [_draw(config, images, rows, config.shots).with_columns(split=pl.lit("train"))]
    if _VAL in images.scan("images").select("split").unique().collect()["split"] and config.split != _VAL:
        of_val = rows_of(images, _VAL)
        of_val = of_val[np.isin(labels_of(images)[of_val], wanted_classes(images, config.classes))]
        n_val = config.shots and min(config.shots, _MOST_VAL_SHOTS)
        drawn.append(_draw(config, images, of_val, n_val).with_columns(split=pl.lit(_VAL)))
    table = pl.concat(drawn)
    out.write_table(FEW_SHOT, {column.name: table[column.name] for column in FEW_SHOT.columns})
    return {
        "n_images": len(drawn[0]),
        "n_val": len(table) - len(drawn[0]),
        "n_classes": drawn[0]["label"].n_unique(),
        "draw": digest_json([list(row) for row in table.select("split", "label", "shot", "source").rows()]),
    }


def _rows(config: FewShotConfig, images: Artifact) -> np.ndarray:
    """The rows that are drawn from: int64 [images].

    Raises UserError if a class has fewer images than are asked for, or an image is of several classes.
    """
    rows = rows_of(images, config.split, config.classes)
    n_several = int((label_sets_of(images).counts(rows) > 1).sum())
    if n_several:
        raise UserError(
            f"few_shot: {count(n_several, 'image')} of the split `{config.split}` {'is' if n_several == 1 else 'are'} "
            "of several classes, and an image is drawn for one; choose a split whose images have one class."
        )
    wanted, names = wanted_classes(images, config.classes), class_names_of(images)
    n_images = np.bincount(labels_of(images)[rows], minlength=len(names))[wanted]
    n_few = int((n_images < (config.shots or 0)).sum())
    if n_few:
        fewest = int(n_images.argmin())
        others = f" (so have {count(n_few - 1, 'other class', 'other classes')})" if n_few > 1 else ""
        remedy = f"set shots: {n_images[fewest]}" if n_images[fewest] else "give it images"
        raise UserError(
            f"few_shot: the class `{names[wanted[fewest]]}` has {count(int(n_images[fewest]), 'image')} in the split "
            f"`{config.split}`, fewer than shots: {config.shots}{others}; {remedy}, or list other `classes`."
        )
    return rows


def _draw(config: FewShotConfig, images: Artifact, rows: np.ndarray, shots: int | None) -> pl.DataFrame:
    """The first `shots` of the images `rows` of each class, in the order of the draw."""
    found = images.scan("images").select("image", "source", "label", "class_name").collect()[rows]
    lots = [digest_bytes(f"few_shot:{config.seed}:{source}".encode()) for source in found["source"]]
    ordered = found.with_columns(lot=pl.Series(lots, dtype=pl.String)).sort("label", "lot").drop("lot")
    shot = pl.int_range(pl.len(), dtype=pl.Int32).over("label")
    ordered = ordered.with_columns(shot=shot)
    return ordered if shots is None else ordered.filter(pl.col("shot") < shots)


def rows_of_draw(draw: Artifact, split: str = "train") -> np.ndarray:
    """The row numbers of the images of a draw, ascending: int64 [images].

    `split` is `train` or `val`. It is empty if the dataset has no split `val`.
    """
    rows = draw.scan(FEW_SHOT.name).filter(pl.col("split") == split).select("image").collect()["image"]
    return np.sort(rows.to_numpy())


def _predict(config: FewShotConfig, inputs: Upstreams) -> Prediction:
    images = inputs["images"]
    n_images = expected_rows(images, config.split, config.classes)
    names = expected_classes(images)
    if images.artifact is not None:
        _rows(config, images.artifact)
    if n_images is None or names is None:
        return Prediction()
    task = expected_task_classes(images, config.classes)
    assert task is not None
    n_classes = (
        len(task) if config.classes is None or isinstance(config.classes, str) else len(config.classes)
    )
    n_drawn = n_images if config.shots is None else config.shots * n_classes
    n_val = 0
    if _VAL in (expected_splits(images) or {}) and config.split != _VAL:
        n_val = n_classes * min(config.shots or _MOST_VAL_SHOTS, _MOST_VAL_SHOTS)
    n_bytes = MANIFEST_BYTES + expected_bytes(FEW_SHOT, n_drawn + n_val, _BYTES_PER_ROW)
    facts: dict[str, Any] = {"n_images": n_drawn, "n_val": n_val, "n_classes": n_classes}
    return Prediction(facts, n_bytes, 0, [])


STAGE = Stage(
    name="few_shot",
    version=1,
    section="datasets",
    uses_gpu=False,
    description="The images that adapters learn from, drawn class by class.",
    run=_run,
    predict=_predict,
)
