"""The tables `matching` and `matching_latents`, which the evaluation `matching` writes."""

from __future__ import annotations

import pyarrow as pa

from patchsae.storage.tables import Column, TableSchema

_SIDE = Column("side", pa.string(), "`first` or `second`: the SAE that the row is about.")

MATCHING = TableSchema(
    "matching",
    "How alike the latents of two SAEs are: a row for each, since a wide SAE may contain a narrow one. A latent is alive "
    "if it fires on one of the images.",
    (
        _SIDE,
        Column("key", pa.string(), "Key of the SAE's artifact."),
        Column("n_images", pa.int64(), "Number of images."),
        Column("over", pa.string(), "`tokens` or `images`: what activations are correlated over."),
        Column("n_latents", pa.int64(), "Number of latents of the SAE."),
        Column("n_alive", pa.int64(), "Number of them that are alive."),
        Column(
            "n_assigned",
            pa.int64(),
            "Number of alive latents that were assigned one of the other SAE, so that the sum of the cosines of decoder "
            "rows is the largest (Hungarian method).",
        ),
        Column(
            "exact",
            pa.bool_(),
            "Whether all pairs of alive latents were compared (`n_exact`). If not, the assignment is the best one among "
            "the `n_candidates` nearest of every latent.",
        ),
        Column(
            "assigned_cosine",
            pa.float64(),
            "Mean cosine of the assigned decoder rows; null if no latent is assigned.",
            nullable=True,
        ),
        Column(
            "nearest_cosine",
            pa.float64(),
            "Mean over alive latents of the largest cosine with an alive latent of the other SAE, which several may "
            "share; null if the SAEs have different widths or no alive latent.",
            nullable=True,
        ),
        Column(
            "mppc",
            pa.float64(),
            "Mean over its alive latents of the largest Pearson correlation with a latent of the other SAE; null if none "
            "is defined.",
            nullable=True,
        ),
        Column(
            "wmppc",
            pa.float64(),
            "As mppc, but latents are weighted by the sum of their activations (wMPPC), so that rare ones matter less.",
            nullable=True,
        ),
    ),
)

MATCHING_LATENTS = TableSchema(
    "matching_latents",
    "One row per alive latent of both SAEs, with the latents of the other SAE that it matches.",
    (
        _SIDE,
        Column("latent", pa.int32(), "Latent id in this SAE."),
        Column(
            "mass",
            pa.float64(),
            "Sum of its activations over the tokens, or of their token means over the images.",
        ),
        Column(
            "assigned",
            pa.int32(),
            "The latent of the other SAE that it is assigned to, if any.",
            nullable=True,
        ),
        Column("assigned_cosine", pa.float64(), "Cosine of their decoder rows.", nullable=True),
        Column(
            "nearest_cosine",
            pa.float64(),
            "Largest cosine of its decoder row with that of an alive latent of the other SAE.",
            nullable=True,
        ),
        Column(
            "correlated",
            pa.int32(),
            "The latent of the other SAE that it correlates with most.",
            nullable=True,
        ),
        Column("correlation", pa.float64(), "Their Pearson correlation.", nullable=True),
    ),
)
