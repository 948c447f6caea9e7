"""`View`: an SAE applied to a dataset's split with a backbone, which is what one `statistics` artifact is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from patchsae.explorer.errors import Absent
from patchsae.explorer.snapshot import Snapshot
from patchsae.pipeline.results.places import Place
from patchsae.storage.artifacts import Artifact
from patchsae.storage.manifest import KEY_DIGITS

SAE_STAGES = ("train", "import")


@dataclass(frozen=True)
class View:
    """A `statistics` artifact with what it was made from. An artifact that `gc` deleted since then is None."""

    snapshot: Snapshot
    statistics: Artifact

    @property
    def key(self) -> str:
        """Its id: the first 16 digits of the key of the statistics."""
        return self.statistics.key[:KEY_DIGITS]

    @property
    def sae_key(self) -> str:
        """The id of its SAE, which may no longer be in the store."""
        return self.statistics.manifest.inputs["sae"][:KEY_DIGITS]

    @cached_property
    def sae(self) -> Artifact | None:
        found = (self.snapshot.input_of(self.statistics, "sae", stage) for stage in SAE_STAGES)
        return next((one for one in found if one is not None), None)

    @cached_property
    def images(self) -> Artifact | None:
        """The artifact of the stage `index` with the tables `images` and `classes`."""
        return self.snapshot.input_of(self.statistics, "images", "index")

    @cached_property
    def activations(self) -> Artifact | None:
        """The artifact of the stage `extract`."""
        return self.snapshot.input_of(self.statistics, "activations", "extract")

    @cached_property
    def weights(self) -> Artifact | None:
        """The artifact of the stage `weights` of the backbone."""
        return self.activations and self.snapshot.input_of(self.activations, "weights", "weights")

    @cached_property
    def attributes(self) -> Artifact | None:
        """The artifact of the stage `attributes` of the same dataset in the same experiment."""
        return self._companion("attributes", {"dataset"})

    @cached_property
    def classifier(self) -> Artifact | None:
        """The newest zero-shot classifier of the dataset's classes by this backbone."""
        if self.images is None or self.weights is None:
            return None
        of = {self.images.identity, self.weights.identity}
        found = [
            one
            for one in self.snapshot.committed("classifier")
            if of <= set(one.manifest.inputs.values()) and one.manifest.config.get("attribute") is None
        ]
        return found[-1] if found else None

    @cached_property
    def gallery(self) -> Artifact | None:
        """The newest artifact of the evaluation `gallery` that was made from these statistics."""
        found = self.made_from("gallery")
        return found[-1] if found else None

    def made_from(self, stage: str) -> list[Artifact]:
        """The artifacts of a stage with these statistics among their inputs."""
        return [
            one
            for one in self.snapshot.committed(stage)
            if self.statistics.identity in one.manifest.inputs.values()
        ]

    def _companion(self, stage: str, names: set[str]) -> Artifact | None:
        """The artifact of a stage that the same experiment has for the same dataset or backbone."""
        for place in self.places:
            for node in place.record.nodes.values():
                if node.stage == stage and all(node.names.get(n) == place.node.names.get(n) for n in names):
                    found = self.snapshot.find(stage, node.key)
                    if found is not None and found.state == "committed":
                        return found.artifact
        return None

    @cached_property
    def places(self) -> list[Place]:
        """The experiments that have it; the one that was recorded last comes first. None if all were forgotten."""
        return self.snapshot.places("statistics", self.statistics.key)

    @property
    def place(self) -> Place | None:
        """Its node in the experiment that was recorded last, if that record holds the configs, or else in another."""
        whole = (one for one in self.places if one.is_whole)
        return next(whole, self.places[0] if self.places else None)

    def name(self, of: str) -> str | None:
        """The name of its dataset, backbone, sae or evaluation in the experiment that was recorded last."""
        return self.place.node.names.get(of) if self.place else None

    @property
    def config(self) -> Mapping[str, Any]:
        """The hashed config of the statistics: split, tokens, tau, ..."""
        return self.statistics.manifest.config

    @property
    def n_latents(self) -> int:
        return int(self.statistics.manifest.summary["n_latents"] or 0)

    @property
    def n_images(self) -> int:
        return int(self.statistics.manifest.summary["n_images"] or 0)

    @property
    def n_classes(self) -> int | None:
        return None if self.images is None else int(self.images.manifest.summary["n_classes"] or 0)

    def latent(self, text: str) -> int:
        """The latent that an address names. Raises Absent if there is no such latent."""
        if text.isascii() and text.isdecimal() and len(text) < 12 and int(text) < self.n_latents:
            return int(text)
        raise Absent(f"latent {text}: this SAE has the latents 0 to {self.n_latents - 1:,}.")

    def head(self) -> dict[str, Any]:
        """VIEWHEAD, but for its label (explorer/resources/__init__.py)."""
        return {
            "key": self.key,
            "sae": self.name("sae") or self.sae_key,
            "sae_key": self.sae_key,
            "experiment": self.place.experiment if self.place else None,
            "experiments": list(dict.fromkeys(place.experiment for place in self.places)),
            "evaluation": self.name("evaluation"),
            "backbone": self.name("backbone"),
            "dataset": self.name("dataset"),
            "split": self.config.get("split"),
            "n_images": self.n_images,
            "n_latents": self.n_latents,
            "n_classes": self.n_classes,
            "image_set": self.images.key[:KEY_DIGITS] if self.images else None,
        }


def labels(views: Sequence[View]) -> dict[str, str]:
    """View id -> a label that no other of the views has: SAE and images, and as much more as tells them apart."""
    heads = [view.head() for view in views]
    more = ("backbone", "evaluation", "experiment", "key")
    found = {
        one["key"]: f"{one['sae']} on {one['dataset'] or 'unnamed images'} ({one['split']})" for one in heads
    }
    for field in more:
        counts: dict[str, int] = {}
        for label in found.values():
            counts[label] = counts.get(label, 0) + 1
        for one in heads:
            label = found[one["key"]]
            same = {other[field] for other in heads if found[other["key"]] == label}
            if counts[label] > 1 and len(same) > 1:
                one["label"] = f"{label}, {one[field]}"
        found |= {one["key"]: one.pop("label") for one in heads if "label" in one}
    return found
