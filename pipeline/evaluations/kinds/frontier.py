"""Evaluation `frontier`: a table that compares SAEs, and marks those that no other SAE beats in L0 and FVU.

Every SAE is measured by its own `reconstruction` node, so adding an SAE measures that one alone. `patchsae
pick` reads the table.
"""

from __future__ import annotations

import fnmatch
import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig, HeldOutConfig, Wiring
from patchsae.pipeline.evaluations.kinds.reconstruction import ReconstructionConfig
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_json
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema, expected_bytes

_MEASURED = (
    ("l0", "Mean over tokens of the number of latents above 0."),
    ("fvu", "sum |x - x_hat|^2 / sum |x - mean(x)|^2 over all tokens, in float64."),
    ("explained_variance", "1 - fvu."),
    ("mse", "Mean over tokens and channels of (x_hat - x)^2."),
    ("cosine", "Mean over tokens of the cosine between x and x_hat."),
    ("l1_norm", "Mean over tokens of the sum of the latents' activations."),
    ("dead_fraction", "Share of latents that are above 0 on no token."),
    ("dense_fraction", "Share of latents that are above 0 on more than a tenth of the tokens."),
    ("accuracy_original", "Zero-shot accuracy with the activations as they are."),
    ("accuracy_reconstruction", "Zero-shot accuracy with every token's activation replaced by x_hat."),
    (
        "zero_shot_kept_mean",
        "(accuracy_reconstruction - a) / (accuracy_original - a), where a is the accuracy with every token's "
        "activation replaced by the mean activation; null if accuracy_original is not above a.",
    ),
    ("zero_shot_kept_zero", "As zero_shot_kept_mean, but a is the accuracy with zeros in place."),
    (
        "contrastive_score_mean",
        "(CE_reconstruction - CE_original) / (CE_mean - CE_original), where CE is the mean cross entropy of "
        "the zero-shot classification; lower is better; null if CE_mean is not above CE_original.",
    ),
    ("contrastive_score_zero", "As contrastive_score_mean, with CE_zero in place of CE_mean."),
    (
        "set_accuracy_original",
        "Share of images whose n classes have the n largest logits, with the activations as they are; "
        "accuracy_original where images have one class.",
    ),
    ("set_accuracy_reconstruction", "As set_accuracy_original, with x_hat in place of every activation."),
    ("set_kept_mean", "As zero_shot_kept_mean, of the set accuracies."),
    ("set_kept_zero", "As zero_shot_kept_zero, of the set accuracies."),
    (
        "kl_reconstruction",
        "Mean over images of the Kullback-Leibler divergence of the zero-shot distribution with x_hat in place "
        "from the one with the activations as they are, in nats; lower is better.",
    ),
)
FRONTIER = TableSchema(
    "frontier",
    "One row per SAE, measured on the same held-out images.",
    (
        Column("sae_key", pa.string(), "Key of the SAE's artifact."),
        Column("kind", pa.string(), "The objective it was trained with, or `imported`."),
        Column("n_latents", pa.int64(), "Number of latents."),
        Column(
            "on_frontier",
            pa.bool_(),
            "No other SAE of the table is at least as good in both l0 and fvu and better in one of them.",
        ),
        *(Column(name, pa.float64(), text, nullable=True) for name, text in _MEASURED),
        Column("config", pa.string(), "The config it was trained or imported with, as JSON."),
    ),
)


class FrontierConfig(EvaluationConfig, HeldOutConfig):
    """Compares SAEs on the same held-out images: each by an evaluation of kind `reconstruction`."""

    kind: Literal["frontier"] = "frontier"
    saes: tuple[str, ...] = ("*",)
    """Names of SAEs. `*` stands for any text, so `sweep-*` is a whole sweep."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def chosen(self, wiring: Wiring) -> list[str]:
        """The SAEs that `saes` names, in the experiment's order. Raises UserError if a name matches none."""
        known = list(wiring.sae_names())
        for pattern in self.saes:
            if not fnmatch.filter(known, pattern):
                raise UserError(
                    f"frontier: `saes` names `{pattern}`, which is no SAE{nearest(pattern, known)}"
                )
        return [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in self.saes)]

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        saes = [wiring.sae(name) for name in self.chosen(wiring)]
        datasets = {self.dataset or sae.dataset for sae in saes}
        backbones = {sae.backbone for sae in saes}
        # The table has one dataset and one backbone only if they are the same for all SAEs.
        dataset = datasets.pop() if len(datasets) == 1 else None
        return Names(dataset, backbones.pop() if len(backbones) == 1 else None, evaluation=evaluation)

    def stage_config(self, wiring: Wiring) -> FrontierStageConfig:
        return FrontierStageConfig()

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        shared = {name: getattr(self, name) for name in HeldOutConfig.model_fields}
        found = {}
        for i, name in enumerate(self.chosen(wiring)):
            measured = ReconstructionConfig(sae=name, **shared)
            found[f"sae {i}"] = wiring.train(name)
            found[f"reconstruction {i}"] = wiring.add_evaluation(self._name_of(name), measured)
        return found

    def _name_of(self, sae: str) -> str:
        """The name of the `reconstruction` node of an SAE, which differs for other images or prompts."""
        on = "" if self.dataset is None else f"-{self.dataset}"
        plain = self.prompts == Prompts() and self.classes is None and self.limit is None
        settings: list[Any] = [self.prompts.key_config(), self.classes, self.limit]
        if self.tokens != "all":
            plain, settings = False, [*settings, self.tokens]
        return f"{sae}{on}-{self.split}" + ("" if plain else f"-{digest_json(settings)[:6]}")


class FrontierStageConfig(Config):
    """Has no fields: the inputs say which SAEs are compared and how they were measured."""


def pareto(l0: np.ndarray, fvu: np.ndarray) -> np.ndarray:
    """Mask of the SAEs that no other SAE beats. One beats another if it is at least as low in both numbers
    and lower in one."""
    no_worse = (l0[None] <= l0[:, None]) & (fvu[None] <= fvu[:, None])
    better = (l0[None] < l0[:, None]) | (fvu[None] < fvu[:, None])
    return np.logical_not((no_worse & better).any(axis=1))


def _run(config: FrontierStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    rows: list[dict[str, Any]] = []
    for i in range(len(inputs) // 2):
        sae, measured = inputs[f"sae {i}"], inputs[f"reconstruction {i}"].manifest.summary
        rows.append(
            {
                "sae_key": sae.key,
                "kind": str(sae.manifest.config.get("kind", sae.stage)),
                "n_latents": measured["n_latents"],
                **{column: measured.get(column) for column, _ in _MEASURED},
                "config": json.dumps(sae.manifest.config, sort_keys=True),
            }
        )
    best = pareto(*(np.array([row[name] for row in rows], np.float64) for name in ("l0", "fvu")))
    for row, is_best in zip(rows, best, strict=True):
        row["on_frontier"] = bool(is_best)
    out.write_table(FRONTIER, {c.name: [row[c.name] for row in rows] for c in FRONTIER.columns})
    return {"n_saes": len(rows), "n_on_frontier": int(best.sum())}


def _predict(config: FrontierStageConfig, inputs: Upstreams) -> Prediction:
    n_saes = (len(inputs) - 1) // 2
    # Beside the rows, the manifest names two inputs, each in three places, for every SAE.
    n_bytes = MANIFEST_BYTES + 500 * n_saes + expected_bytes(FRONTIER, n_saes, 250)
    return Prediction({"n_saes": n_saes}, n_bytes, 0, [])


STAGE = Stage(
    name="frontier",
    version=3,
    section="evaluations",
    uses_gpu=False,
    description="SAEs side by side.",
    changes={3: "shows the accuracy of sets of classes, and the KL divergence"},
    run=_run,
    predict=_predict,
)
