"""The tables `latent_examples`, `latent_histograms` and `cofiring` of the evaluation `gallery`.

All are of the gallery's sample of images. They are sorted by latent and have small row groups, so that the rows of one
latent are read without the others.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from patchsae.pipeline.evaluations.statistics.counts import BINS_PER_OCTAVE, FIRST_OCTAVE, N_BINS
from patchsae.pipeline.evaluations.statistics.tables import LATENT_ON_IMAGE
from patchsae.storage.tables import Column, TableSchema

_ROWS_PER_GROUP = 1 << 14

FINER_BINS = 4
"""Bins of the statistics' histogram that make one of these."""
N_COARSE_BINS = N_BINS // FINER_BINS


def bin_edges() -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper end of every bin of `latent_histograms`: float32 [N_COARSE_BINS] each."""
    steps = BINS_PER_OCTAVE // FINER_BINS
    octave, step = np.divmod(np.arange(N_COARSE_BINS + 1), steps)
    edges = (2.0 ** (FIRST_OCTAVE + octave) * (1 + step / steps)).astype(np.float32)
    return edges[:-1], edges[1:]


LATENT_EXAMPLES = TableSchema(
    "latent_examples",
    "Images from the top, the middle and the low end of what each latent responds to, drawn at random in bands of "
    "quantiles. The quantiles are those of the token mean a_i over the images of the gallery's sample that fire the "
    "latent.",
    (
        Column("latent", pa.int32(), "Latent id."),
        Column("low", pa.float32(), "Lower end of the band, as a share of the images that fire the latent."),
        Column(
            "high",
            pa.float32(),
            "Upper end of the band. Of n images in ascending order of a_i, the r-th, counted from 0, is in the band if "
            "the stretch from r/n to (r+1)/n overlaps it, so every band of a latent that fires has an image.",
        ),
        Column(
            "rank", pa.int32(), "Rank of the example among those of its band, 1 for the largest `activation`."
        ),
        *LATENT_ON_IMAGE,
    ),
    _ROWS_PER_GROUP,
)

LATENT_HISTOGRAMS = TableSchema(
    "latent_histograms",
    "How large each latent is over the tokens on which it is above 0, in the gallery's sample of images. Bins are "
    f"logarithmic: {BINS_PER_OCTAVE // FINER_BINS} of equal width between a power of two and the next, from 2^-14 to "
    "2^10. Bins without a token have no row.",
    (
        Column("latent", pa.int32(), "Latent id."),
        Column(
            "low",
            pa.float32(),
            "Lower end of the bin, which belongs to it. The first bin also has what is below.",
        ),
        Column(
            "high",
            pa.float32(),
            "Upper end of the bin, which belongs to the next. The last bin also has what is above.",
        ),
        Column("n_tokens", pa.int64(), "Number of tokens of the sample with f_it in the bin."),
    ),
    _ROWS_PER_GROUP,
)

COFIRING = TableSchema(
    "cofiring",
    "The latents that fire on the same tokens as a latent, those with the largest `jaccard` first. Counted on tokens "
    "that were drawn from the gallery's sample of images; the summary's `n_drawn_tokens` is their number N.",
    (
        Column("latent", pa.int32(), "Latent id."),
        Column(
            "rank",
            pa.int32(),
            "Rank of `other` by `jaccard`, 1 for the largest; of ties the lower id comes first.",
        ),
        Column("other", pa.int32(), "Id of the other latent."),
        Column("n_both", pa.int32(), "Number of drawn tokens on which both are above 0."),
        Column("n_latent", pa.int32(), "Number of drawn tokens on which `latent` is above 0."),
        Column("n_other", pa.int32(), "Number of drawn tokens on which `other` is above 0."),
        Column(
            "jaccard", pa.float32(), "n_both / (n_latent + n_other - n_both): 1 if they always fire together."
        ),
        Column(
            "lift",
            pa.float32(),
            "n_both N / (n_latent n_other): how many times more often they fire together than if they were independent.",
        ),
    ),
    _ROWS_PER_GROUP,
)

TABLES = (LATENT_EXAMPLES, LATENT_HISTOGRAMS, COFIRING)
