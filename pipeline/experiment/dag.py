"""`Dag`: makes the nodes of an experiment from its configs, and connects each node with its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchsae.pipeline.activations import extract
from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification import classifier
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.graph import Names, Node
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.pipeline.images import attributes, few_shot, index
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import Classes
from patchsae.pipeline.saes.sae import SaeConfig
from patchsae.storage.errors import UserError


@dataclass
class Dag:
    """Adds nodes when they are asked for. `nodes` has every node after its inputs."""

    datasets: Mapping[str, DatasetConfig]
    backbones: Mapping[str, BackboneConfig]
    saes: Mapping[str, SaeConfig]
    evaluations: Mapping[str, EvaluationConfig]
    nodes: dict[str, Node] = field(default_factory=dict)
    _resolving: list[str] = field(default_factory=list)

    def _add(self, node: Node) -> str:
        there = self.nodes.setdefault(node.address, node)
        if (there.config, there.inputs) != (node.config, node.inputs):
            raise UserError(
                f"{node.address}: two different things in the experiment have this address; rename one of them."
            )
        return node.address

    def dataset(self, name: str) -> DatasetConfig:
        return self.datasets[name]

    def sae(self, name: str) -> SaeConfig:
        return self.saes[name]

    def sae_names(self) -> Sequence[str]:
        return list(self.saes)

    def evaluation(self, name: str) -> EvaluationConfig:
        return self.evaluations[name]

    def backbone(self, name: str) -> BackboneConfig:
        if name in self._resolving:
            raise UserError(f"backbones.{name}: is made from itself; name another backbone.")
        self._resolving.append(name)
        try:
            return self.backbones[name].resolved(self)
        finally:
            self._resolving.pop()

    def index(self, dataset: str) -> str:
        config = self.datasets[dataset]
        return self._add(Node(index.STAGE, dataset, config, {}, Names(dataset), ("datasets", dataset)))

    def attributes(self, dataset: str) -> str:
        config = attributes.AttributesConfig(dataset=self.datasets[dataset])
        inputs = {"images": self.index(dataset)}
        return self._add(Node(attributes.STAGE, dataset, config, inputs, Names(dataset)))

    def few_shot(
        self, dataset: str, classes: Classes | None, shots: int | None, seed: int, split: str
    ) -> str:
        config = few_shot.FewShotConfig(classes=classes, shots=shots, seed=seed, split=split)
        inputs = {"images": self.index(dataset)}
        return self._add(Node(few_shot.STAGE, f"{dataset}-{config.label()}", config, inputs, Names(dataset)))

    def weights(self, backbone: str) -> str:
        config = self.backbone(backbone)
        inputs = config.inputs(self)
        names = Names(backbone=backbone)
        return self._add(Node(weights.STAGE, backbone, config, inputs, names, ("backbones", backbone)))

    def extract(self, dataset: str, backbone: str) -> str:
        built_from = self.backbone(backbone)
        config = extract.ExtractStageConfig(
            dataset=self.datasets[dataset], backbone=built_from, extract=built_from.extract
        )
        inputs = {"images": self.index(dataset), **self._weights(backbone)}
        source = ("backbones", backbone, "extract")
        name = f"{dataset}-{backbone}"
        return self._add(Node(extract.STAGE, name, config, inputs, Names(dataset, backbone), source))

    def classifier(self, dataset: str, backbone: str, prompts: Prompts, attribute: str | None = None) -> str:
        """The address of the zero-shot classifier of a dataset's classes, one per setting of the prompts.

        With `attribute` it is that of the values of this one of the dataset's attributes.
        """
        config = classifier.ClassifierConfig.of(
            prompts, self.datasets[dataset], self.backbone(backbone), attribute
        )
        if attribute is None:
            named, of = {"images": self.index(dataset)}, dataset
        else:
            named, of = {"attributes": self.attributes(dataset)}, f"{dataset}.{attribute}"
        inputs = {**named, **self._weights(backbone)}
        name = f"{of}-{backbone}-{prompts.label()}"
        return self._add(Node(classifier.STAGE, name, config, inputs, Names(dataset, backbone)))

    def _weights(self, backbone: str) -> dict[str, str]:
        """The inputs of a stage that loads a backbone."""
        return {"weights": self.weights(backbone), **self.backbone(backbone).inputs(self)}

    def train(self, sae: str) -> str:
        config = self.sae(sae)
        inputs = {
            "activations": self.extract(config.dataset, config.backbone),
            "images": self.index(config.dataset),
        }
        names = Names(config.dataset, config.backbone, sae)
        return self._add(Node(STAGES[config.stage], sae, config, inputs, names, ("saes", sae)))

    def evaluate(self, name: str) -> str:
        return self._evaluate(name, self.evaluation(name), ("evaluations", name))

    def add_evaluation(self, name: str, config: EvaluationConfig) -> str:
        return self._evaluate(name, config, ())

    def _evaluate(self, name: str, config: EvaluationConfig, source: tuple[str, ...]) -> str:
        inputs = config.inputs(self)
        names = config.names(self, name)
        return self._add(Node(config.stage(), name, config.stage_config(self), inputs, names, source))

    def all_nodes(self) -> list[Node]:
        """Every node of the experiment, each after its inputs."""
        for dataset in self.datasets:
            self.index(dataset)
        for backbone in self.backbones:
            self.weights(backbone)
        for sae in self.saes:
            self.train(sae)
        for evaluation in self.evaluations:
            self.evaluate(evaluation)
        return list(self.nodes.values())
