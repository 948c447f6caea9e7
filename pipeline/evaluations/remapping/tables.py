"""The tables of the evaluation `remapping`, and their columns."""

from __future__ import annotations

import pyarrow as pa

from patchsae.pipeline.evaluations.remapping.groups import ACTIVITIES, GROUPS
from patchsae.storage.tables import Column, TableSchema

_CLASSES = Column(
    "classes",
    pa.string(),
    "The classes of the row: `all`, `base`, `novel`, or `listed` where the statistics count a list of classes. Images "
    "of `base` and `novel` are classified among the classes of that half.",
)
_GROUP_TEXT = {
    "high": "x >= U and y >= U",
    "high_to_low": "x >= U and y < L",
    "low_to_high": "x < L and y >= U",
}
_ACTIVITY_TEXT = {
    "kept": "on both sides",
    "added": "after adaptation alone",
    "removed": "before adaptation alone",
}
_BOUNDS = (
    "where x and y are a latent's tokens above tau in a class before and after adaptation, U the `upper`-th and L the "
    "`lower`-th largest of both together"
)


def _number(name: str, text: str, nullable: bool = False) -> Column:
    return Column(name, pa.float64(), text, nullable=nullable)


def _interval(name: str, of: str, how: str) -> tuple[Column, Column]:
    return (
        _number(f"{name}_ci_low", f"Lower end of the 95 % interval of {of}, {how}.", nullable=True),
        _number(f"{name}_ci_high", f"Upper end of the 95 % interval of {of}, {how}.", nullable=True),
    )


_RESAMPLED = "over resamples of the images of every class; null with `n_bootstrap: 0`"
_GROUP_COLUMNS = tuple(
    column
    for name in GROUPS
    for column in (
        _number(
            name,
            f"Latents with {_GROUP_TEXT[name]}, summed over the classes of the row and divided by all classes of the "
            f"dataset, as in the paper's Table 1 (spec 6.3), {_BOUNDS}.",
        ),
        _number(f"{name}_per_class", f"As {name}, but divided by the number of classes of the row: a mean."),
        *_interval(name, name, _RESAMPLED),
        *_interval(f"{name}_per_class", f"{name}_per_class", _RESAMPLED),
    )
)
REMAPPING = TableSchema(
    "remapping",
    "What adaptation did to the concepts of a dataset: a row for all its classes and for each half, as in the paper's "
    "Table 1. Rows are named by the backbone after adaptation.",
    (
        _CLASSES,
        Column("n_classes", pa.int64(), "Number of classes of the row."),
        Column("n_classes_total", pa.int64(), "Number of classes of the dataset, C."),
        *_GROUP_COLUMNS,
        Column("n", pa.int64(), "Number of images that were classified."),
        _number("accuracy_before", "Share of them that the backbone before adaptation classifies correctly."),
        *_interval("accuracy_before", "accuracy_before", "by Wilson"),
        _number("accuracy_after", "Share of them that the backbone after adaptation classifies correctly."),
        *_interval("accuracy_after", "accuracy_after", "by Wilson"),
        _number(
            "class_mean_accuracy_before", "Unweighted mean of accuracy_before over the classes of the row."
        ),
        _number(
            "class_mean_accuracy_after", "Unweighted mean of accuracy_after over the classes of the row."
        ),
        _number(
            "gain",
            "Table 1's delta: (accuracy_after - accuracy_before) / (1 - accuracy_before); null if the latter is 1.",
            nullable=True,
        ),
        *_interval("gain", "gain", "over resamples of the images; null with `n_bootstrap: 0`"),
        *(
            _number(
                f"{name}_latents",
                f"Latents that are active for a class {_ACTIVITY_TEXT[name]}, mean over the classes of the row; active "
                "means that they fire on at least the share `active_in` of the class's images.",
            )
            for name in ACTIVITIES
        ),
        Column(
            "n_correlated",
            pa.int64(),
            "Number of latents in the correlations: those with the most tokens above tau in the images of the row, on "
            "either side.",
        ),
        _number("pearson", "Pearson correlation of these latents' tokens above tau before and after.", True),
        _number("spearman", "Spearman correlation of the same.", True),
        _number(
            "change",
            "sqrt(sum |D|^2 / sum |x|^2) over the tokens of the counted images, with D = x' - x for the activations x "
            "before and x' after adaptation: how large the change is; null if the tokens cannot be paired.",
            nullable=True,
        ),
        _number(
            "change_explained",
            "1 - sum |D - D_hat|^2 / sum |D|^2, where D_hat is the change of the SAE's reconstruction: the share of the "
            "change that the latents tell of, which may be below 0; null if there is no change.",
            nullable=True,
        ),
        _number(
            "change_left_over",
            "sum |D - D_hat|^2 / sum |D|^2: the share that is in what the SAE leaves over.",
            nullable=True,
        ),
        _number(
            "change_reconstructed",
            "sum |D_hat|^2 / sum |D|^2: the size of the change of the reconstruction.",
            True,
        ),
        _number(
            "change_in_span",
            "sum |P D|^2 / sum |D|^2, where P projects on the span of the decoder rows of all latents that fire: what "
            "the SAE could tell of at best. It is 1 where these rows span all channels.",
            nullable=True,
        ),
    ),
)

REMAPPING_LATENTS = TableSchema(
    "remapping_latents",
    "The members of the groups, and the latents that are added or removed, class by class.",
    (
        Column("class", pa.int32(), "Class id."),
        Column("class_name", pa.string(), "Name of the class."),
        Column("latent", pa.int32(), "Latent id."),
        Column("x", pa.int64(), "Tokens of the class on which the latent is above tau, before adaptation."),
        Column("y", pa.int64(), "Tokens of the class on which the latent is above tau, after adaptation."),
        Column(
            "group",
            pa.string(),
            "`high`, `high_to_low` or `low_to_high` of this class; null if it is in none.",
            nullable=True,
        ),
        Column(
            "activity",
            pa.string(),
            "`kept`, `added` or `removed`: active for the class on both sides, after alone, or before alone; null if on "
            "neither.",
            nullable=True,
        ),
    ),
)

REMAPPING_PREDICTIONS = TableSchema(
    "remapping_predictions",
    "What the images of each class are classified as by both backbones, as they are and with the top k latents of the "
    "class alone (the paper's Figure 6). The latents are the same for both.",
    (
        _CLASSES,
        Column("model", pa.string(), "`before` or `after` adaptation: the backbone that classifies."),
        Column(
            "k",
            pa.int32(),
            "Number of latents that are on, those of `ranked_by` with the most tokens above tau in the class; the "
            "number of all latents for the reconstruction; null for the activations as they are.",
            nullable=True,
        ),
        Column("class", pa.int32(), "Class id of the images."),
        Column("class_name", pa.string(), "Name of that class."),
        Column("predicted", pa.int32(), "Class id that they are classified as."),
        Column("predicted_name", pa.string(), "Name of that class."),
        Column("n", pa.int64(), "Number of images."),
    ),
)

REMAPPING_SENSITIVITY = TableSchema(
    "remapping_sensitivity",
    "The groups with other thresholds tau and other bounds.",
    (
        _CLASSES,
        _number("tau", "Tokens count if the latent is above it."),
        Column("upper", pa.int32(), "U is this largest count of both sides together."),
        Column("lower", pa.int32(), "L is this largest count."),
        *(
            column
            for name in GROUPS
            for column in (
                _number(name, f"As {name} of the table `remapping`."),
                _number(f"{name}_per_class", f"As {name}_per_class of the table `remapping`."),
            )
        ),
    ),
)
TABLES = (REMAPPING, REMAPPING_LATENTS, REMAPPING_PREDICTIONS, REMAPPING_SENSITIVITY)
