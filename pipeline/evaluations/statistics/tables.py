"""The tables `latents`, `latent_images`, `class_latents` of the evaluation `statistics`, and their formulas.

Symbols in the descriptions: f_it is a latent's activation on token t of image i, N the number of images, T
the number of tokens per image, and a_i = (1/T) sum_t f_it the token mean. An image *fires* a latent if f_it
is above 0 for at least one t.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.evaluations.statistics.counts import N_BINS, RELATIVE_ERROR, LatentSums, bin_middles
from patchsae.storage.tables import Column, TableSchema

Convention = Literal["corrected", "paper"]

# The label entropy of the paper's released code adds 1e-9 inside the logarithm, and needs at least 10 top
# images.
_PAPER_EPSILON = 1e-9
_PAPER_FEWEST_SLOTS = 10
_LATENTS_AT_ONCE = 4096


class TableSettings(Config):
    """The settings of the tables that do not change what is counted per token."""

    k_images: Annotated[int, Field(ge=1)] = 20
    """Number of top images that are kept per latent."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9, 0.99)
    """Quantiles of a latent's activation over the tokens on which it is above 0; each becomes a column."""
    dense_above: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A latent that is above 0 on a larger share of tokens than this is called dense."""
    convention: Convention = "corrected"
    """`paper` gives the numbers of the paper's released code where they differ: its label entropy, and NaN
    for dead latents (spec 3; the columns of `latents` say where). Two defects of that code are mended all the
    same: a latent with too few top images has fewer rows instead of rows of image 0 (spec B15), and classes
    that share a name are counted apart (B7)."""


def quantile_column(quantile: float) -> str:
    """The name of a quantile's column: `q50` for 0.5, `q99_9` for 0.999."""
    return f"q{100 * quantile:g}".replace(".", "_")


def latents_schema(quantiles: Sequence[float]) -> TableSchema:
    """The table `latents`, with one column per quantile."""
    quantile_columns = tuple(
        Column(
            quantile_column(q),
            pa.float64(),
            f"{q:g} quantile of f_it over the tokens with f_it > 0: the smallest value that is not exceeded "
            f"on at least this share of them, with a relative error of at most {RELATIVE_ERROR:.1%}. From a "
            "histogram with 16 bins per octave, 2^-14 to 2^10. Null for a dead latent.",
            nullable=True,
        )
        for q in quantiles
    )
    return TableSchema(
        "latents", "One row per latent of an SAE, over the images of one split.", _LATENTS + quantile_columns
    )


_LATENTS = (
    Column("latent", pa.int32(), "Latent id: the number of the latent's column of W_enc and row of W_dec."),
    Column("n_images", pa.int64(), "Number of images that fire the latent: #{i: a_i > 0}."),
    Column("frequency", pa.float64(), "Share of images that fire the latent: n_images / N."),
    Column(
        "token_frequency",
        pa.float64(),
        "Share of tokens on which the latent is above 0: n_tokens / (N T).",
    ),
    Column(
        "mean_activation",
        pa.float64(),
        "Mean of the token mean over the images that fire the latent: sum_i a_i / n_images. Dead latents: "
        "null, or NaN under the paper convention.",
        nullable=True,
    ),
    Column("max_activation", pa.float64(), "Largest f_it over all images and tokens; 0 for a dead latent."),
    Column(
        "label_entropy",
        pa.float64(),
        "Entropy in nats of the labels of the top images, weighted by activation: -sum_c p_c ln p_c with "
        "p_c = sum_{i of class c} a_i / sum_i a_i. Dead latents: null. Paper convention: ln(p_c + 1e-9) in "
        "place of ln p_c, NaN for dead latents, and -1 for all latents if k_images is below 10.",
        nullable=True,
    ),
    Column(
        "label_std",
        pa.float64(),
        "Standard deviation (population, unweighted) of the label ids of the top images. Dead latents: null.",
        nullable=True,
    ),
    Column(
        "n_classes",
        pa.int32(),
        "Number of classes, by label id, with at least one image that fires the latent.",
    ),
    Column("dead", pa.bool_(), "Whether no image fires the latent."),
    Column("dense", pa.bool_(), "Whether token_frequency exceeds the configured `dense_above`."),
    Column(
        "label_entropy_k",
        pa.int32(),
        "Number of top images from which label_entropy and label_std are computed: min(k_images, n_images).",
    ),
    Column("n_tokens", pa.int64(), "Number of tokens on which the latent is above 0: #{i,t: f_it > 0}."),
    Column(
        "n_tokens_above",
        pa.int64(),
        "Number of tokens on which the latent is above tau, the a_D[s] of masking: #{i,t: f_it > tau}.",
    ),
    Column(
        "mean_token_activation",
        pa.float64(),
        "Mean over the tokens on which the latent is above 0: sum_it f_it / n_tokens. Dead latents: null.",
        nullable=True,
    ),
    Column("decoder_norm", pa.float64(), "Euclidean norm of the latent's row of W_dec."),
)

LATENT_ON_IMAGE = (
    Column("image", pa.int64(), "Row number of the image in the table `images` and in the activations."),
    Column("activation", pa.float32(), "Token mean a_i of the latent on the image."),
    Column(
        "token",
        pa.int32(),
        "Position of the first token with the largest f_it, counted from 0, prefix tokens included.",
    ),
    Column("label", pa.int32(), "Class id of the image."),
    Column("token_activation", pa.float32(), "f_it at `token`, which is the largest on the image."),
)
"""Columns of a table with a row per latent and image: where and how strongly the latent fires on it."""

LATENT_IMAGES = TableSchema(
    "latent_images",
    "The top images of each latent: the k_images images with the largest token mean. A latent that fewer "
    "images fire has fewer rows, and a dead latent has none.",
    (
        Column("latent", pa.int32(), "Latent id."),
        Column(
            "rank",
            pa.int32(),
            "Rank of the image by `activation`, 1 for the largest; of ties the lower image id comes first.",
        ),
        *LATENT_ON_IMAGE,
    ),
)

CLASS_LATENTS = TableSchema(
    "class_latents",
    "One row per class and latent, if at least one image of the class fires the latent.",
    (
        Column("class", pa.int32(), "Class id (label); classes that share a name have rows of their own."),
        Column("latent", pa.int32(), "Latent id."),
        Column(
            "n_tokens",
            pa.int64(),
            "Number of tokens of the class on which the latent is above tau, the a_c[s] of masking: "
            "#{i in c, t: f_it > tau}.",
        ),
        Column(
            "n_images",
            pa.int64(),
            "Number of images of the class that fire the latent: #{i in c: a_i > 0}.",
        ),
        Column(
            "mean_activation",
            pa.float32(),
            "Mean of the token mean over the images of the class that fire the latent: "
            "sum_{i in c} a_i / n_images.",
        ),
    ),
)


def label_entropy(best: dict[str, np.ndarray], n_latents: int, k: int, convention: Convention) -> np.ndarray:
    """Entropy in nats of the activation-weighted labels of each latent's top images (spec 3): float64 [S].

    `best` has the columns latent, activation and label. `k` is the number of top images asked for. The result
    is NaN for latents without images.
    """
    if convention == "paper" and k < _PAPER_FEWEST_SLOTS:
        # The released code counts places for top images, filled or not, of which every latent has k.
        return np.full(n_latents, -1.0)
    weight = best["activation"].astype(np.float64)
    total = np.bincount(best["latent"], weight, n_latents)
    n_labels = int(best["label"].max(initial=0)) + 1
    pairs, group = np.unique(best["latent"].astype(np.int64) * n_labels + best["label"], return_inverse=True)
    latent = pairs // n_labels
    p = np.bincount(group, weight, len(pairs)) / total[latent]
    # The 1e-9 that the released code adds inside the logarithm changes the entropy by about 1e-9 per class.
    # Its unfilled places have weight 0 and change nothing.
    epsilon = _PAPER_EPSILON if convention == "paper" else 0.0
    entropy = -np.bincount(latent, p * np.log(p + epsilon), n_latents)
    return np.where(total > 0, entropy + 0.0, np.nan)


def label_std(best: dict[str, np.ndarray], n_latents: int) -> np.ndarray:
    """Standard deviation of the label ids of each latent's top images: float64 [S].

    NaN for latents without images. All images weigh the same, and the sum is divided by their number; the
    paper specifies neither.
    """
    latent, label = best["latent"], best["label"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        n = np.bincount(latent, minlength=n_latents)
        mean = np.bincount(latent, label, n_latents) / n
        return np.sqrt(np.bincount(latent, (label - mean[latent]) ** 2, n_latents) / n)


def histogram_quantiles(
    histogram: np.ndarray, quantiles: Sequence[float], largest: np.ndarray
) -> list[np.ndarray]:
    """Quantiles of the values that each row of a histogram counts: one float64 [S] per quantile.

    `histogram` [S, N_BINS]. `largest` [S] are the true maxima, which no quantile exceeds. A row without
    counts gives NaN.
    """
    middles = bin_middles()
    found = [np.full(len(histogram), np.nan) for _ in quantiles]
    for start in range(0, len(histogram), _LATENTS_AT_ONCE):
        rows = slice(start, start + _LATENTS_AT_ONCE)
        upto = np.cumsum(histogram[rows], axis=1, dtype=np.int64)
        total = upto[:, -1]
        for column, q in zip(found, quantiles, strict=True):
            rank = np.maximum(1, np.ceil(q * total)).astype(np.int64)
            bins = (upto < rank[:, None]).sum(axis=1)
            values = np.minimum(middles[np.minimum(bins, N_BINS - 1)], largest[rows])
            column[rows] = np.where(total > 0, values, np.nan)
    return found


def latent_columns(
    sums: LatentSums,
    histogram: np.ndarray,
    best: dict[str, np.ndarray],
    n_classes: np.ndarray,
    decoder_norm: np.ndarray,
    n_images: int,
    tokens_per_image: int,
    config: TableSettings,
) -> dict[str, pa.Array | np.ndarray]:
    """The columns of the table `latents`.

    `histogram` [S, N_BINS]; `best` as `TopImages.best` returns it; `n_classes` [S]: number of classes that
    fire the latent; `n_images`: number of images that were counted (N).
    """
    n_latents = len(sums.n_images)
    is_dead = sums.n_images == 0
    token_frequency = sums.n_tokens / (n_images * tokens_per_image)
    with np.errstate(invalid="ignore"):
        mean_activation = sums.mean_sum / sums.n_images
        mean_token_activation = sums.token_sum / sums.n_tokens
    entropy = label_entropy(best, n_latents, config.k_images, config.convention)
    # Dead latents have NaN, as in the released code, under the paper convention only; otherwise they have
    # null.
    unknown = np.zeros(n_latents, bool) if config.convention == "paper" else is_dead
    columns: dict[str, pa.Array | np.ndarray] = {
        "latent": np.arange(n_latents, dtype=np.int32),
        "n_images": sums.n_images,
        "frequency": sums.n_images / n_images,
        "token_frequency": token_frequency,
        "mean_activation": pa.array(mean_activation, mask=unknown),
        "max_activation": sums.peak.astype(np.float64),
        "label_entropy": pa.array(entropy, mask=unknown),
        "label_std": pa.array(label_std(best, n_latents), mask=is_dead),
        "n_classes": n_classes.astype(np.int32),
        "dead": is_dead,
        "dense": token_frequency > config.dense_above,
        "label_entropy_k": np.minimum(sums.n_images, config.k_images).astype(np.int32),
        "n_tokens": sums.n_tokens,
        "n_tokens_above": sums.n_above,
        "mean_token_activation": pa.array(mean_token_activation, mask=is_dead),
        "decoder_norm": decoder_norm,
    }
    found = histogram_quantiles(histogram, config.quantiles, sums.peak)
    for quantile, values in zip(config.quantiles, found, strict=True):
        columns[quantile_column(quantile)] = pa.array(values, mask=is_dead)
    return columns


def latent_images_columns(best: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of the table `latent_images`; `best` is ordered by latent and then by rank."""
    latent = best["latent"]
    return {
        "latent": latent,
        "rank": (np.arange(len(latent)) - np.searchsorted(latent, latent) + 1).astype(np.int32),
        "image": best["image"],
        "activation": best["activation"],
        "token": best["token"],
        "label": best["label"],
        "token_activation": best["peak"],
    }
