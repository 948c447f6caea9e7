"""Evaluation `frontier`: SAEs side by side, and which of them no other beats in both L0 and FVU.

Every SAE gets a `reconstruction` node of its own, so one more costs one more and the others stay as they are.
"""

from __future__ import annotations

import fnmatch
import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.classifier import Prompts
from pipeline.config import Config, OptionalDatasetName, nearest
from pipeline.evaluations.base import EvaluationConfig
from pipeline.evaluations.reconstruction import ReconstructionConfig
from pipeline.stage import Inputs, Runtime, Stage
from storage import tables
from storage.artifacts import Builder, Summary
from storage.errors import UserError
from storage.tables import Column, TableSchema

if TYPE_CHECKING:
    from pipeline.dag import Dag

_MEASURED = (
    ("l0", "Mean over tokens of the number of latents above 0."),
    ("fvu", "sum |x - x_hat|^2 / sum |x - mean(x)|^2 over all tokens, in float64."),
    ("explained_variance", "1 - fvu."),
    ("mse", "Mean over tokens and channels of (x_hat - x)^2."),
    ("cosine", "Mean over tokens of the cosine between x and x_hat."),
    ("l1_norm", "Mean over tokens of the sum of latents."),
    ("dead_fraction", "Share of latents that are above 0 on no token."),
    ("dense_fraction", "Share of latents that are above 0 on more than a tenth of the tokens."),
    ("accuracy_original", "Zero-shot accuracy with the activations as they are."),
    ("accuracy_reconstruction", "Zero-shot accuracy with every token's activation replaced by x_hat."),
    (
        "zero_shot_kept_mean",
        "(accuracy_reconstruction - a) / (accuracy_original - a), a with the mean activation in place; null if equal.",
    ),
    ("zero_shot_kept_zero", "The same, a with zeros in place."),
    (
        "contrastive_score_mean",
        "(CE_reconstruction - CE_original) / (CE_mean - CE_original), CE the image-text cross entropy; lower is better.",
    ),
    ("contrastive_score_zero", "The same with CE_zero."),
)
FRONTIER = TableSchema(
    "frontier",
    "One row per SAE, measured on the same held-out images.",
    (
        Column("sae", pa.string(), "Name of the SAE in its experiment."),
        Column("key", pa.string(), "Key of its artifact."),
        Column("kind", pa.string(), "Its objective."),
        Column("n_latents", pa.int64(), "Latents."),
        Column(
            "on_frontier",
            pa.bool_(),
            "No other SAE of the table has both a lower or equal l0 and a lower fvu.",
        ),
        *(Column(name, pa.float64(), text, nullable=True) for name, text in _MEASURED),
        Column("config", pa.string(), "What it was trained with, as JSON."),
    ),
)


class FrontierConfig(EvaluationConfig):
    """SAEs by name; `*` stands for anything, so `sweep-*` is a whole sweep."""

    kind: Literal["frontier"] = "frontier"
    saes: tuple[str, ...] = ("*",)
    dataset: OptionalDatasetName = None
    """Each SAE's own if not given."""
    split: str = "test"
    prompts: Prompts = Prompts()

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def names(self, dag: Dag) -> list[str]:
        """The SAEs that are meant, in the order of the experiment. Raises UserError if a name means none."""
        known = list(dag.experiment.saes)
        for pattern in self.saes:
            if not fnmatch.filter(known, pattern):
                raise UserError(
                    f"frontier: `saes` names `{pattern}`, which is no SAE{nearest(pattern, known)}"
                )
        return [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in self.saes)]

    def stage_config(self, dag: Dag) -> FrontierStageConfig:
        return FrontierStageConfig(names=tuple(self.names(dag)))

    def inputs(self, dag: Dag) -> dict[str, str]:
        found = {}
        for i, name in enumerate(self.names(dag)):
            measured = ReconstructionConfig(
                sae=name, dataset=self.dataset, split=self.split, prompts=self.prompts
            )
            on = "" if self.dataset is None else f"-{self.dataset}"
            found[f"sae {i}"] = dag.train(name)
            found[f"reconstruction {i}"] = dag.add_evaluation(f"{name}{on}-{self.split}", measured)
        return found


class FrontierStageConfig(Config):
    """Names are hashed here: they are a column of the table."""

    names: tuple[str, ...]


def pareto(l0: np.ndarray, fvu: np.ndarray) -> np.ndarray:
    """Mask of the points that no other beats: none has both no more L0 and no more FVU, one of them less."""
    no_worse = (l0[None] <= l0[:, None]) & (fvu[None] <= fvu[:, None])
    better = (l0[None] < l0[:, None]) | (fvu[None] < fvu[:, None])
    return np.logical_not((no_worse & better).any(axis=1))


def _run(config: FrontierStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(config.names):
        sae, measured = inputs[f"sae {i}"], inputs[f"reconstruction {i}"].manifest.summary
        rows.append(
            {
                "sae": name,
                "key": sae.key,
                "kind": str(sae.manifest.config.get("kind", sae.stage)),
                "n_latents": measured["n_latents"],
                **{column: measured.get(column) for column, _ in _MEASURED},
                "config": json.dumps(sae.manifest.config, sort_keys=True),
            }
        )
    best = pareto(*(np.array([row[name] for row in rows], np.float64) for name in ("l0", "fvu")))
    for row, is_best in zip(rows, best, strict=True):
        row["on_frontier"] = bool(is_best)
    tables.write(out, FRONTIER, {c.name: [row[c.name] for row in rows] for c in FRONTIER.columns})
    return {"n_saes": len(rows), "n_on_frontier": int(best.sum())}


STAGE = Stage("frontier", 1, _run)
