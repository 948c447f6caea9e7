"""The tables of the evaluation `adaptation`."""

from __future__ import annotations

import pyarrow as pa

from patchsae.pipeline.evaluations.remapping.tables import REMAPPING
from patchsae.storage.tables import Column, TableSchema

# `n_classes` is the paper's C here, and the classes of a row are its group.
RENAMED = {"n_classes": "n_group", "n_classes_total": "n_classes"}
ABOUT = (
    Column("adapter", pa.string(), "Name of the adapter in the experiment."),
    Column("kind", pa.string(), "Its kind, such as `maple`."),
    Column("dataset", pa.string(), "The dataset that it is adapted to, by its name in the experiment."),
    Column(
        "trained_on",
        pa.string(),
        "The classes that it learned from: `base`, `novel`, `all`, or `listed`.",
    ),
    Column(
        "shots", pa.int32(), "How many images of each class it learned from; null for all.", nullable=True
    ),
    Column("seed", pa.int32(), "Its seed."),
)
ADAPTATION = TableSchema(
    "adaptation",
    "What adaptation did to the concepts of datasets: one row per adapter and half of its dataset's classes, and one "
    "for all classes.",
    (
        *ABOUT,
        *(
            Column(
                RENAMED.get(column.name, column.name),
                column.type,
                column.description,
                nullable=column.nullable,
            )
            for column in REMAPPING.columns
        ),
    ),
)
ADAPTATION_SEEDS = TableSchema(
    "adaptation_seeds",
    "The numbers of `adaptation` over adapters that differ in the seed alone: one row per method, dataset and half of "
    "the classes, and per quantity.",
    (
        *(column for column in ABOUT if column.name not in ("adapter", "seed")),
        Column("classes", pa.string(), "`base`, `novel` or `all`, as in `adaptation`."),
        Column("quantity", pa.string(), "The column of `adaptation`, such as `accuracy_after`."),
        Column("n_seeds", pa.int32(), "Number of adapters."),
        Column("mean", pa.float64(), "Mean over the adapters.", nullable=True),
        Column(
            "standard_deviation",
            pa.float64(),
            "Standard deviation between them, with the divisor n_seeds - 1; null for one adapter.",
            nullable=True,
        ),
        Column(
            "ci_low",
            pa.float64(),
            "Lower end of the 95 % interval of the mean, over images and seeds: mean - sqrt((t s)^2 / n_seeds + w^2), "
            "where s is the standard deviation, t Student's quantile of n_seeds - 1 degrees of freedom, and w half the "
            "mean width of the intervals over images. Adapters share the images, so w is not divided. Null where "
            "`adaptation` has no interval and there is one adapter.",
            nullable=True,
        ),
        Column("ci_high", pa.float64(), "Upper end of that interval.", nullable=True),
    ),
)
