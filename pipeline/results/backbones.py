"""The backbones of recorded experiments, plain or adapted: their configs, and the models themselves."""

from __future__ import annotations

from pydantic import ValidationError

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.core.config import explain
from patchsae.pipeline.experiment.dag import Dag
from patchsae.pipeline.experiment.experiment import Experiment
from patchsae.pipeline.results.find import input_of
from patchsae.pipeline.results.places import Place
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store


def dag_of(place: Place) -> Dag:
    """The configs of a recorded experiment, without SAEs and evaluations.

    Raises UserError if the record is too old, or does not fit this version.
    """
    try:
        experiment = Experiment.model_validate(place.configs)
    except ValidationError as error:
        raise explain(error, f"the record of the experiment {place.experiment}") from None
    return Dag(experiment.datasets, experiment.backbones, {}, {}, experiment.adapters)


def backbone_config(place: Place) -> BackboneConfig:
    """The config of the backbone that a node is about. Raises UserError as `dag_of` does."""
    return dag_of(place).backbone(place.node.names["backbone"])


def recorded_backbone(store: Store, place: Place, activations: Artifact) -> Backbone:
    """The backbone that a node is about, on the CPU, with the weights that made `activations`.

    It is the one that was adapted, if the adapter leaves its image tower as it is. Raises UserError if the record is too old, or if the weights have changed or are no longer there.
    """
    dag = dag_of(place)
    config = dag.backbone(dag.image_tower(place.node.names["backbone"]))
    # Whatever the record knows of later weights, these are the ones that fit the SAE.
    inputs = {"weights": input_of(store, activations, "weights", "weights")}
    for role, address in config.inputs(dag).items():
        node = place.record.nodes.get(address)
        if node is None:
            raise UserError(
                f"experiment {place.experiment}: its record does not name `{address}`, of which the backbone is made; "
                "run it once more."
            )
        inputs[role] = store.at(node.stage, node.key)
    return load_backbone(config, inputs, "cpu")
