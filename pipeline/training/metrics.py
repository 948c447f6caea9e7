"""The table `training`: what `pipeline.training.member` measures while an SAE trains."""

from __future__ import annotations

import pyarrow as pa

from patchsae.storage.tables import Column, TableSchema

TRAINING = TableSchema(
    "training",
    "Training metrics of single steps, each over that step's batch and before its update.",
    (
        Column("step", pa.int64(), "Optimiser steps taken, this one included."),
        Column("n_tokens", pa.int64(), "Tokens trained on so far, this step's included."),
        Column("loss", pa.float64(), "reconstruction + penalty + auxiliary."),
        Column(
            "reconstruction",
            pa.float64(),
            "Reconstruction term of the loss, as the objective normalises it (relu_l1: mean over tokens and "
            "channels of (x_hat - x)^2 / |x|, first tokens weighted; others: mean |x - x_hat|^2 / variance).",
        ),
        Column(
            "penalty",
            pa.float64(),
            "Sparsity term of the loss, coefficient included; 0 for topk, batch_topk and matryoshka.",
        ),
        Column("auxiliary", pa.float64(), "Ghost or AuxK loss of the dead latents; 0 if no latent is dead."),
        Column("l1_norm", pa.float64(), "Mean over tokens of the sum of latents."),
        Column("l0", pa.float64(), "Mean over tokens of the number of latents above 0."),
        Column(
            "explained_variance",
            pa.float64(),
            "1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, summed in float64 over tokens and channels.",
        ),
        Column(
            "explained_variance_uncentred",
            pa.float64(),
            "1 - sum |x - x_hat|^2 / sum |x|^2: what the reference logs as explained variance.",
        ),
        Column("n_dead", pa.int64(), "Latents that have not fired for more than dead_feature_window steps."),
        Column("grad_norm", pa.float64(), "Norm of the gradient over all parameters, before clipping."),
        Column("lr", pa.float64(), "Learning rate of this step."),
    ),
)
