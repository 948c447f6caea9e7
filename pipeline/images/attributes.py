"""Stage `attributes`: what the images of an index are labelled with beside their classes.

A dataset may sort its images in several ways: the shapes world by shape, colour, texture and background. One of
them is the classes, which are in the index. The others are here, so that a dataset without them has no such
artifact, and an index does not change when a dataset gets an attribute.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import LabelSets
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_json
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema, expected_bytes

_NAME = re.compile(r"[a-z][a-z0-9_]*")

ATTRIBUTES = TableSchema(
    "attributes",
    "One row per value of every attribute that the images have beside their classes.",
    (
        Column("attribute", pa.string(), "Name of the attribute."),
        Column("label", pa.int32(), "Id of the value, counted from 0 in each attribute."),
        Column("value", pa.string(), "Name of the value."),
        Column("n_images", pa.int64(), "Number of images that have the value, over all splits."),
    ),
)
IMAGE_ATTRIBUTES = TableSchema(
    "image_attributes",
    "One row per image, attribute and value that the image has.",
    (
        Column("attribute", pa.string(), "Name of the attribute."),
        Column("image", pa.int64(), "Row number of the image in the table `images`."),
        Column("label", pa.int32(), "Id of the value."),
        Column("value", pa.string(), "Name of the value."),
    ),
)


class AttributesConfig(Config):
    """The config of the stage. Which images are in the index is an input."""

    dataset: DatasetConfig


def _run(config: AttributesConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    dataset = config.dataset.build()
    sources = inputs["images"].scan("images").select("source").collect()["source"].to_list()
    values: dict[str, list[Any]] = {column.name: [] for column in ATTRIBUTES.columns}
    labelled: dict[str, list[Any]] = {column.name: [] for column in IMAGE_ATTRIBUTES.columns}
    for attribute in config.dataset.attributes():
        if not _NAME.fullmatch(attribute):
            raise UserError(
                f"attribute `{attribute}`: a name has lower-case letters, digits and `_`, and begins with a "
                "letter; rename it."
            )
        names = dataset.attribute_values(attribute)
        counts = np.zeros(len(names), np.int64)
        for image, source in enumerate(sources):
            labels = dataset.attribute_labels(attribute, source)
            if not labels:
                raise UserError(f"{source}: has no value of the attribute `{attribute}`; give it one.")
            counts[list(labels)] += 1
            labelled["image"] += [image] * len(labels)
            labelled["label"] += labels
        n_rows = len(labelled["image"]) - len(labelled["attribute"])
        labelled["attribute"] += [attribute] * n_rows
        labelled["value"] += [names[label] for label in labelled["label"][-n_rows:]]
        values["attribute"] += [attribute] * len(names)
        values["label"] += range(len(names))
        values["value"] += names
        values["n_images"] += counts.tolist()
    out.write_table(ATTRIBUTES, values)
    out.write_table(IMAGE_ATTRIBUTES, labelled)
    out.identity = digest_json([values["attribute"], values["value"], labelled["image"], labelled["label"]])
    return {"n_images": len(sources), "n_attributes": len(config.dataset.attributes())}


def attribute_values_of(attributes: Artifact, attribute: str) -> list[str]:
    """The names of an attribute's values, in the order of their ids."""
    rows = attributes.scan(ATTRIBUTES.name).filter(pl.col("attribute") == attribute).collect()
    return rows["value"].to_list()


def attribute_sets_of(attributes: Artifact, attribute: str) -> LabelSets:
    """The values of an attribute that every image of the index has."""
    rows = attributes.scan(IMAGE_ATTRIBUTES.name).filter(pl.col("attribute") == attribute).collect()
    n_images = int(attributes.manifest.summary["n_images"] or 0)
    return LabelSets(rows["image"].to_numpy(), rows["label"].to_numpy(), n_images)


def _predict(config: AttributesConfig, inputs: Upstreams) -> Prediction:
    n_images = inputs["images"].n_images
    if n_images is None:
        return Prediction()
    dataset = config.dataset.build()
    values = {one: tuple(dataset.attribute_values(one)) for one in config.dataset.attributes()}
    n_bytes = (
        MANIFEST_BYTES
        + expected_bytes(ATTRIBUTES, sum(map(len, values.values())), 12)
        + expected_bytes(IMAGE_ATTRIBUTES, n_images * len(values), 2)
    )
    facts = {"n_images": n_images, **{f"values of {one}": names for one, names in values.items()}}
    return Prediction(facts, n_bytes, 0, [])


STAGE = Stage(
    name="attributes",
    version=1,
    section="datasets",
    uses_gpu=False,
    description="What images are labelled with beside their classes.",
    run=_run,
    source=lambda config: config.dataset.source(),
    identified_by_content=True,
    predict=_predict,
)
