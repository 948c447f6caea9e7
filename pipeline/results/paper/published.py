"""The published figures: `figures()`, the tables they are of, and the settings of the SAEs of Table 2.

Accuracies, gains and harmonic means are in percent. Groups of latents are numbers of latents per class.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

_FOLDER = Path(__file__).parent

CELL = ("table", "dataset", "method", "classes", "quantity")
"""The columns that say which figure a row has. Figures of several sources can be of the same cell."""
FIGURE = {
    **dict.fromkeys(CELL, pl.String),
    "value": pl.Float64,
    "std": pl.Float64,
    "source": pl.String,
    "confidence": pl.String,
}
CONFIDENCE = {
    "verified": "recomputes from other published figures",
    "single-source": "stated in one place, and nothing tells whether it is right",
    "re-run": "found by others than the authors",
    "inferred": "not published, but follows from what is",
    "suspect": "does not fit the figures beside it",
}


@dataclass(frozen=True)
class PublishedTable:
    """A published table: its title, the command that makes ours, and what a reader of both should know."""

    title: str
    needs: str
    """What a store needs for ours, as in `no SAE of this table`."""
    command: str
    notes: tuple[str, ...] = ()


_SEEDS = (
    "EuroSAT and DTD vary more than the others: the accuracy of the novel classes had a standard deviation of 3.9 and "
    "3.5 points between the three seeds of a re-run. A difference of less than twice that says nothing."
)
TABLES: Mapping[str, PublishedTable] = {
    "table-1": PublishedTable(
        "Table 1 of the paper: groups of latents and accuracy, before and after MaPLe",
        "adapter of kind maple on a dataset of Table 1",
        "patchsae run paper-table1",
        (
            "Groups: latents per class, summed over the classes of the group and divided by all classes C of the "
            "dataset. The paper does not say so. It is inferred from 18 cells of EuroSAT, OxfordPets and DTD, which no "
            "other denominator explains; the other datasets only rule out the group's own number of classes.",
            "The paper's accuracies are about 6 points below those of the same models in `base-to-novel`. For CLIP the "
            "80 ImageNet templates explain it; for MaPLe the cause is not known. Compare MaPLe's accuracy there.",
            "The paper has no seeds. " + _SEEDS,
        ),
    ),
    "table-2": PublishedTable(
        "Table 2 of the paper: SAEs",
        "SAE of CLIP on ImageNet with the settings of a row of Table 2",
        "patchsae run paper-table2",
        (
            "The paper's cross entropies are not ours: its code replaces the CLS token alone, its prompts hold the "
            "number of the class in place of its name, and a batch has classes twice.",
            "The paper numbers the layer of its ViT-L/14 as 11, though that tower has 24 blocks.",
        ),
    ),
    "masking": PublishedTable(
        "ImageNet's validation images with the SAE in place",
        "evaluation of kind masking or reconstruction on ImageNet's validation images",
        "patchsae run paper-compat --up-to masking/imagenet-masking",
        (
            "FastSAE's off_10 ranks latents by mean activation on the same images, and leaves out latents that are "
            "on the lists of more than 500 classes.",
        ),
    ),
    "base-to-novel": PublishedTable(
        "Accuracy of adapters trained on 16 images of each base class, mean over 3 seeds",
        "adapter trained on the base classes of one of the 11 datasets",
        "patchsae run paper-table1",
        (
            "The published adapters see a new random crop of each image in every epoch (`views: fresh`), and CLIP is "
            "classified with the prompts of each dataset.",
            "Two sources have independent prompts (ivlp), trained by different recipes: PromptSRC's is that of ours.",
            _SEEDS,
        ),
    ),
}

_TITLES = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}
DATASETS = tuple(_TITLES)
"""The 11 datasets by the names that the kind `coop` has for them."""
HALVES = ("base", "novel")
"""The halves of a dataset's classes."""
MEAN = "mean"
"""In the column `dataset`: the mean over the 11 datasets."""


def title(dataset: str) -> str:
    """The name of a dataset as papers write it."""
    return _TITLES.get(dataset, dataset)


def figures() -> pl.DataFrame:
    """Every published figure, with the columns of `FIGURE`, in the order of the published tables.

    `classes` is null for figures that are not of one half of the classes, and `value` where only a standard deviation
    is known.
    """
    return _read("published.csv", FIGURE)


def saes() -> pl.DataFrame:
    """The settings of the SAEs of Table 2; `sae` is their name in the column `method` of `figures`."""
    return _read(
        "saes.csv",
        {
            "sae": pl.String,
            "model": pl.String,
            "layer": pl.Int64,
            "tokens": pl.String,
            "l1_coefficient": pl.Float64,
            "expansion": pl.Int64,
            "ghost_gradients": pl.Boolean,
            "b_dec_init": pl.String,
        },
    )


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n); 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def gain(before: float, after: float) -> float:
    """The share of what was wrong that an adapter mends, 100 (after - before) / (100 - before); both in percent."""
    return 100 * (after - before) / (100 - before) if before < 100 else 0.0


def _read(name: str, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    # Bytes, since the path of an installation may hold a `*`.
    return pl.read_csv(io.BytesIO((_FOLDER / name).read_bytes()), schema=dict(schema))
