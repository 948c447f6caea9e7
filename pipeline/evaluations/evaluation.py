"""The base of every evaluation's config, and what it may ask of its experiment.

`pipeline.experiment.dag` makes the nodes of an evaluation from its config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.backbones.backbone import BackboneWiring
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import Config, HashedUnless, OptionalBackboneName, OptionalDatasetName
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.stage import Stage
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import Classes, rows_of, task_classes
from patchsae.pipeline.saes.sae import SaeConfig
from patchsae.storage.artifacts import Artifact


class Wiring(BackboneWiring, Protocol):
    """What an evaluation may ask of its experiment: configs by name, and nodes by what they make.

    A method that returns an address adds the node if the experiment does not have it yet.
    """

    def dataset(self, name: str) -> DatasetConfig: ...

    def sae(self, name: str) -> SaeConfig: ...

    def sae_names(self) -> Sequence[str]:
        """The names of all SAEs, in the order of the experiment."""
        ...

    def adapter(self, name: str) -> AdapterConfig: ...

    def adapter_names(self) -> Sequence[str]:
        """The names of all adapters, in the order of the experiment."""
        ...

    def evaluation(self, name: str) -> EvaluationConfig:
        """The config of an evaluation of the experiment, or of one that was added."""
        ...

    def index(self, dataset: str) -> str: ...

    def extract(self, dataset: str, backbone: str) -> str: ...

    def attributes(self, dataset: str) -> str: ...

    def classifier(self, dataset: str, backbone: str, prompts: Prompts, attribute: str | None = None) -> str:
        """The address of the classifier of a dataset's classes, or of the values of one of its attributes."""
        ...

    def train(self, sae: str) -> str:
        """The address of the node that trains or imports an SAE."""
        ...

    def evaluate(self, name: str) -> str:
        """The address of the node of an evaluation that the experiment names."""
        ...

    def add_evaluation(self, name: str, config: EvaluationConfig) -> str:
        """The address of a new node for an evaluation that another evaluation needs."""
        ...


class ImagesConfig(Config):
    """Which images of a dataset are evaluated."""

    classes: Classes | None = None
    """Only images of these classes are used; all if not given. `base` and `novel` are the two halves of the
    dataset's classes: their images are classified among the classes of their half alone. Images of a list of
    classes, given by name or by id, are classified among all classes."""
    limit: int | None = Field(None, ge=1)
    """At most this many images are used: the first ones, since a split's images are in a fixed pseudo-random
    order."""

    def rows_of(self, images: Artifact, split: str) -> np.ndarray:
        """The row numbers of the images, ascending. Raises UserError if there are none."""
        return rows_of(images, split, self.classes, self.limit)

    def task_classes(self, images: Artifact) -> np.ndarray:
        """The ids of the classes that the images are classified among, ascending."""
        return task_classes(images, self.classes)


class HeldOutConfig(ImagesConfig):
    """The images on which the reconstruction of SAEs is measured, and the classification beside it."""

    dataset: OptionalDatasetName = None
    """The images to measure on; if not given, each SAE's own training dataset."""
    split: str = "test"
    """The split to measure on."""
    tokens: Annotated[Literal["all", "with_prompts"], HashedUnless("all")] = "all"
    """The tokens that are reconstructed: those of the image, or with learned prompt tokens too. Others stay as they
    are."""
    prompts: Prompts = Prompts()
    """The prompts of the zero-shot classification."""


class AppliedConfig(Config):
    """The backbone whose activations an SAE is applied to."""

    backbone: OptionalBackboneName = None
    """The backbone whose activations the SAE is applied to, such as an adapted one; if not given, the SAE's own. Its
    activations have as many channels as the SAE takes."""

    def backbone_of(self, sae: SaeConfig) -> str:
        """The name of the backbone."""
        return self.backbone or sae.backbone


class EvaluationConfig(Config):
    """Base of evaluation configs. A subclass adds `kind: Literal[...] = ...`, `stage`, `inputs`, `names`."""

    @classmethod
    def stage(cls) -> Stage:
        """The stage that computes the evaluation. Its name is the kind."""
        raise NotImplementedError

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        """Role -> address of the node that fills the role."""
        raise NotImplementedError

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        """The entries of the experiment that the tables are about; `evaluation` is this evaluation's name."""
        raise NotImplementedError

    def stage_config(self, wiring: Wiring) -> Config:
        """The config the stage is given: this one, or one that also holds the configs its names stand for."""
        return self
