"""Evaluation `statistics`: what every latent responds to, from one pass over the cached activations.

The config of this evaluation and its stage; formulas are in `latent_tables`, counting in `latent_counts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.config import OptionalDatasetName, SaeName
from pipeline.evaluations.base import EvaluationConfig
from pipeline.stage import Inputs, Runtime, Stage
from storage.artifacts import Builder, Summary

if TYPE_CHECKING:
    from pipeline.dag import Dag


class StatisticsConfig(EvaluationConfig):
    """Per-latent statistics of an SAE on one split."""

    kind: Literal["statistics"] = "statistics"
    sae: SaeName
    dataset: OptionalDatasetName = None
    """The images to look at; the SAE's own training dataset if not given."""
    split: str = "train"
    tokens: Literal["all", "patches"] = "all"
    """Whether prefix tokens (CLS) count."""
    tau: Annotated[float, Field(ge=0)] = 0.2
    """A token counts towards a class where the latent's activation exceeds this."""
    k_images: Annotated[int, Field(ge=1)] = 20
    """Reference images kept per latent."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9, 0.99)
    """Of the activation over the tokens on which a latent fires; each becomes a column."""
    dense_above: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A latent that fires on a larger share of tokens is called dense."""
    convention: Literal["corrected", "paper"] = "corrected"
    """`paper` gives the reference implementation's numbers where they differ (spec 3)."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def dataset_name(self, dag: Dag) -> str:
        return self.dataset or dag.sae(self.sae).dataset

    def inputs(self, dag: Dag) -> dict[str, str]:
        dataset = self.dataset_name(dag)
        return {
            "activations": dag.extract(dataset, dag.sae(self.sae).backbone),
            "images": dag.index(dataset),
            "sae": dag.train(self.sae),
        }


def _run(config: StatisticsConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    raise NotImplementedError


STAGE = Stage("statistics", 1, _run)
