"""From an experiment's maps of configs to nodes: which stage instances there are and what feeds each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import classifier, extract, index, weights
from pipeline.config import Config
from pipeline.evaluations.base import EvaluationConfig
from pipeline.saes.base import SaeConfig
from pipeline.stage import Stage

if TYPE_CHECKING:
    from pipeline.experiment import Experiment


@dataclass(frozen=True)
class Node:
    """A stage instance, addressed as `stage/name`. `inputs` maps a role to an address."""

    stage: Stage
    name: str
    config: Config
    inputs: dict[str, str]

    @property
    def address(self) -> str:
        return f"{self.stage.name}/{self.name}"


@dataclass
class Dag:
    """Adds nodes as they are asked for, inputs first, so that `nodes` is in an order that can be run."""

    experiment: Experiment
    nodes: dict[str, Node] = field(default_factory=dict)

    def _add(self, stage: Stage, name: str, config: Config, inputs: dict[str, str]) -> str:
        node = Node(stage, name, config, inputs)
        return self.nodes.setdefault(node.address, node).address

    def sae(self, name: str) -> SaeConfig:
        return self.experiment.saes[name]

    def evaluation(self, name: str) -> EvaluationConfig:
        return self.experiment.evaluations[name]

    def index(self, dataset: str) -> str:
        return self._add(index.STAGE, dataset, self.experiment.datasets[dataset], {})

    def weights(self, backbone: str) -> str:
        return self._add(weights.STAGE, backbone, self.experiment.backbones[backbone], {})

    def extract(self, dataset: str, backbone: str) -> str:
        config = extract.ExtractStageConfig(
            dataset=self.experiment.datasets[dataset], backbone=self.experiment.backbones[backbone]
        )
        inputs = {"images": self.index(dataset), "weights": self.weights(backbone)}
        return self._add(extract.STAGE, f"{dataset}-{backbone}", config, inputs)

    def classifier(self, dataset: str, backbone: str, prompts: classifier.Prompts) -> str:
        """The zero-shot classifier of a dataset's classes; one node per kind of prompts."""
        config = classifier.ClassifierConfig(
            prompts=prompts,
            dataset=self.experiment.datasets[dataset],
            backbone=self.experiment.backbones[backbone],
        )
        inputs = {"images": self.index(dataset), "weights": self.weights(backbone)}
        return self._add(classifier.STAGE, f"{dataset}-{backbone}-{prompts.label()}", config, inputs)

    def train(self, sae: str) -> str:
        """The node that makes an SAE: it is trained, or imported."""
        config = self.sae(sae)
        inputs = {
            "activations": self.extract(config.dataset, config.backbone),
            "images": self.index(config.dataset),
        }
        return self._add(config.stage(), sae, config, inputs)

    def evaluate(self, name: str) -> str:
        return self.add_evaluation(name, self.evaluation(name))

    def add_evaluation(self, name: str, config: EvaluationConfig) -> str:
        """A node for an evaluation, of the experiment or that another one needs."""
        return self._add(config.stage(), name, config.stage_config(self), config.inputs(self))


def build(experiment: Experiment) -> list[Node]:
    """Every node of an experiment, inputs before what they feed."""
    dag = Dag(experiment)
    for dataset in experiment.datasets:
        dag.index(dataset)
    for backbone in experiment.backbones:
        dag.weights(backbone)
    for sae in experiment.saes:
        dag.train(sae)
    for evaluation in experiment.evaluations:
        dag.evaluate(evaluation)
    return list(dag.nodes.values())
