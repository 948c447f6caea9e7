"""The tables `reconstruction` and `firing_histogram`, which the evaluation `reconstruction` writes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from patchsae.storage.tables import Column, TableSchema

_BINS_PER_DECADE = 4
_DECADES = 6

RECONSTRUCTION = TableSchema(
    "reconstruction",
    "Zero-shot classification with every token's activation at the hook replaced. Images are classified among all "
    "classes of the dataset, or with `classes: base` or `novel` among those of this half.",
    (
        Column(
            "replaced",
            pa.string(),
            "What activations are replaced by: `original`: nothing; `reconstruction`: the SAE's x_hat; "
            "`mean`: the mean activation over all tokens of these images; `zero`: zeros.",
        ),
        Column("n", pa.int64(), "Number of images."),
        Column(
            "n_correct",
            pa.int64(),
            "Number of images whose largest logit is that of their class, or of one of their classes.",
        ),
        Column("accuracy", pa.float64(), "n_correct / n, from 0 to 1."),
        Column("ci_low", pa.float64(), "Lower end of the accuracy's 95 % Wilson interval."),
        Column("ci_high", pa.float64(), "Upper end of the accuracy's 95 % Wilson interval."),
        Column(
            "cross_entropy",
            pa.float64(),
            "Mean over images of -ln(softmax of the logits of these classes, at the label), in nats; for an image of "
            "several classes the mean over them.",
        ),
        Column(
            "n_sets_correct",
            pa.int64(),
            "Number of images whose n classes have the n largest logits; n_correct where images have one class.",
        ),
        Column("set_accuracy", pa.float64(), "n_sets_correct / n, from 0 to 1."),
        Column("set_ci_low", pa.float64(), "Lower end of the 95 % Wilson interval of set_accuracy."),
        Column("set_ci_high", pa.float64(), "Upper end of the 95 % Wilson interval of set_accuracy."),
        Column(
            "kl_to_original",
            pa.float64(),
            "Mean over images of sum_c p_c ln(p_c / q_c), in nats, where p is the softmax of the logits with the "
            "original activations and q that with the replaced ones. It tells apart what accuracies do not.",
        ),
    ),
)
FIRING_HISTOGRAM = TableSchema(
    "firing_histogram",
    "The number of latents per bin of firing frequency.",
    (
        Column(
            "log10_low",
            pa.float64(),
            "Lower end of the bin of log10(tokens above 0 / tokens), inclusive; the first bin also holds "
            "smaller values; null: latents that never fire.",
            nullable=True,
        ),
        Column(
            "log10_high",
            pa.float64(),
            "Upper end of the bin, exclusive, but inclusive where it is 0; null: as for log10_low.",
            nullable=True,
        ),
        Column("n_latents", pa.int64(), "Number of latents in the bin."),
    ),
)


def firing_histogram(n_fired: np.ndarray, n_tokens: int) -> dict[str, list[float | int | None]]:
    """The columns of the table `firing_histogram`. `n_fired` [S]: tokens on which each latent is above 0."""
    edges = np.linspace(-_DECADES, 0, _DECADES * _BINS_PER_DECADE + 1)
    fired = n_fired[n_fired > 0]
    where = np.clip(np.searchsorted(edges, np.log10(fired / n_tokens), side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(where, minlength=len(edges) - 1)
    return {
        "log10_low": [None, *edges[:-1].tolist()],
        "log10_high": [None, *edges[1:].tolist()],
        "n_latents": [int((n_fired == 0).sum()), *counts.tolist()],
    }
