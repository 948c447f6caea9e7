"""Every kind of dataset, backbone, adapter, SAE and evaluation, as found in their folders, and every stage."""

from __future__ import annotations

from patchsae.pipeline.activations import extract
from patchsae.pipeline.adapters import adapt, features, methods
from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.backbones import models, weights
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification import classifier
from patchsae.pipeline.core import registry
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Section, Stage
from patchsae.pipeline.evaluations import kinds as evaluations
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig
from patchsae.pipeline.images import attributes, datasets, few_shot, index
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.saes import import_
from patchsae.pipeline.saes.sae import SaeConfig
from patchsae.pipeline.training import objectives, train

DATASETS = registry.variants(datasets, DatasetConfig)
BACKBONES = registry.variants(models, BackboneConfig)
ADAPTERS = registry.variants(methods, AdapterConfig)
SAES: dict[str, type[SaeConfig]] = {
    **registry.variants(objectives, SaeConfig),
    "imported": import_.ImportedConfig,
}
EVALUATIONS = registry.variants(evaluations, EvaluationConfig)
KINDS: dict[Section, dict[str, type[Config]]] = {
    "datasets": {**DATASETS},
    "backbones": {**BACKBONES},
    "adapters": {**ADAPTERS},
    "saes": {**SAES},
    "evaluations": {**EVALUATIONS},
}

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        index.STAGE,
        attributes.STAGE,
        few_shot.STAGE,
        weights.STAGE,
        extract.STAGE,
        classifier.STAGE,
        features.STAGE,
        adapt.STAGE,
        train.STAGE,
        import_.STAGE,
        *(kind.stage() for kind in EVALUATIONS.values()),
    )
}
"""Every stage by its name: those of the pipeline in its order, then the evaluations in alphabetical order."""
