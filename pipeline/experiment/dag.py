"""`Dag`: makes the nodes of an experiment from its configs, and connects each node with its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchsae.pipeline.activations import extract
from patchsae.pipeline.adapters import adapt, features
from patchsae.pipeline.adapters.adapted import AdaptedConfig
from patchsae.pipeline.adapters.adapter import AdapterConfig
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
    adapters: Mapping[str, AdapterConfig] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    _added: dict[str, EvaluationConfig] = field(default_factory=dict)
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

    def adapter_names(self) -> Sequence[str]:
        return list(self.adapters)

    def evaluation(self, name: str) -> EvaluationConfig:
        return self.evaluations[name] if name in self.evaluations else self._added[name]

    def adapter(self, name: str) -> AdapterConfig:
        return self.adapters[name]

    def backbone(self, name: str) -> BackboneConfig:
        """The config of a backbone, or of the one that the adapter of that name makes."""
        if name in self._resolving:
            raise UserError(f"backbones.{name}: is made from itself; name another backbone.")
        self._resolving.append(name)
        try:
            if name in self.adapters:
                adapter = self.adapters[name]
                return AdaptedConfig.of(
                    adapter, self.backbone(adapter.backbone), f"{adapt.STAGE.name}/{name}"
                )
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
        inputs, names = config.inputs(self), Names(backbone=backbone)
        source = () if backbone in self.adapters else ("backbones", backbone)
        if backbone in self.adapters:
            self.adapt(backbone)
        return self._add(Node(weights.STAGE, backbone, config, inputs, names, source))

    def image_tower(self, backbone: str) -> str:
        """The name of the backbone whose image tower makes a backbone's activations.

        It is the backbone that was adapted, if the adapter leaves its image tower as it is.
        """
        adapter = self.adapters.get(backbone)
        if adapter is None or adapter.adapts_images or adapter.extract is not None:
            return backbone
        return self.image_tower(adapter.backbone)

    def extract(self, dataset: str, backbone: str) -> str:
        if (tower := self.image_tower(backbone)) != backbone:
            return self.extract(dataset, tower)
        built_from = self.backbone(backbone)
        config = extract.ExtractStageConfig(
            dataset=self.datasets[dataset], backbone=built_from, extract=built_from.extract
        )
        inputs = {"images": self.index(dataset), **self._weights(backbone)}
        source = ("adapters" if backbone in self.adapters else "backbones", backbone, "extract")
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

    def adapt(self, adapter: str) -> str:
        """The address of the node that trains an adapter, or reads it from a file."""
        config = self.adapters[adapter]
        is_read = config.weights_file() is not None
        plain = self.backbone(config.backbone)
        # Weights are updated in float32, whatever the precision of extraction is.
        plain = plain.with_extract(plain.extract.model_copy(update={"precision": "float32"}))
        dataset = None if config.dataset is None else self.datasets[config.dataset]
        inputs = self._weights(config.backbone)
        templates: tuple[str, ...] = ()
        if not is_read:
            assert config.dataset is not None and dataset is not None
            templates = config.prompts.resolved(dataset)
            inputs |= {
                "images": self.index(config.dataset),
                "few_shot": self._draw(config),
                "classifier": self.classifier(config.dataset, config.backbone, config.prompts),
            }
            if not config.adapts_images and config.views != "fresh":
                inputs["features"] = self._features(config)
        stage_config = adapt.AdaptStageConfig(
            adapter=config, dataset=dataset, backbone=plain, templates=templates
        )
        names = Names(config.dataset, adapter)
        return self._add(Node(adapt.STAGE, adapter, stage_config, inputs, names, ("adapters", adapter)))

    def _draw(self, adapter: AdapterConfig) -> str:
        """The address of the images that an adapter learns from."""
        assert adapter.dataset is not None
        return self.few_shot(adapter.dataset, adapter.classes, adapter.shots, adapter.seed, adapter.split)

    def _features(self, adapter: AdapterConfig) -> str:
        """The address of the cached features of an adapter's images, which adapters share."""
        assert adapter.dataset is not None and adapter.views != "fresh"
        draw = self._draw(adapter)
        plain = self.backbone(adapter.backbone)
        config = features.FeaturesConfig(
            views=adapter.views,
            seed=adapter.seed,
            precision=plain.extract.precision,
            dataset=self.datasets[adapter.dataset],
            backbone=plain,
        )
        inputs = {"images": self.index(adapter.dataset), "few_shot": draw, **self._weights(adapter.backbone)}
        name = f"{draw.partition('/')[2]}-{adapter.backbone}-views{adapter.views}"
        return self._add(Node(features.STAGE, name, config, inputs, Names(adapter.dataset, adapter.backbone)))

    def train(self, sae: str) -> str:
        config = self.sae(sae)
        inputs = {
            "activations": self.extract(config.dataset, config.backbone),
            "images": self.index(config.dataset),
        }
        names = Names(config.dataset, config.backbone, sae)
        return self._add(Node(STAGES[config.stage], sae, config, inputs, names, ("saes", sae)))

    def evaluate(self, name: str) -> str:
        source = ("evaluations", name) if name in self.evaluations else ()
        return self._evaluate(name, self.evaluation(name), source)

    def add_evaluation(self, name: str, config: EvaluationConfig) -> str:
        self._added[name] = config
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
        for adapter in self.adapters:
            self.weights(adapter)
        for sae in self.saes:
            self.train(sae)
        for evaluation in self.evaluations:
            self.evaluate(evaluation)
        return list(self.nodes.values())
