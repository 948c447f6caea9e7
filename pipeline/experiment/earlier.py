"""`Earlier`: the artifacts of a store that are near a planned one, from which a plan tells why it would run.

Near is what the last runs of the experiment had at the same address. If there is none, it is an artifact of the
same kind that was made from the same images, with the same settings or, for the most part, from the same other
inputs. Images and weights are the same if they come from the same place. Of several near ones, the one that
differs least is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.prediction import Source
from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import canonical_json
from patchsae.storage.store import Store

_SHOWN = 3
_SOURCE, _IMAGES = "source", "images"
_VERSION = "code version"


@dataclass(frozen=True)
class _Known:
    """An artifact of the store, with its fields and inputs in a form that is quick to compare."""

    artifact: Artifact
    fields: dict[str, Any]
    pairs: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, artifact: Artifact) -> _Known:
        manifest = artifact.manifest
        fields = _fields(manifest.version, manifest.config, manifest.inputs)
        return cls(artifact, fields, _pairs(fields))


@dataclass
class Earlier:
    """Finds near artifacts, and tells how a planned one differs from them. It looks at a stage's artifacts once.

    `experiment` is the name under which the planned experiment is recorded; without a name no record is read.
    """

    store: Store
    experiment: str | None = None
    _known: dict[str, list[_Known]] = field(default_factory=dict)

    def why(
        self, node: Node, config: Mapping[str, Any], inputs: Mapping[str, str], source: Source | None
    ) -> str:
        """The fields and inputs that differ from the nearest artifact, or that there is none.

        `inputs` maps a role to the identity that goes into the key.
        """
        fields = _fields(node.stage.version, config, inputs)
        nearest = self._nearest(node, fields, source)
        return "never run" if nearest is None else _difference(node, nearest, fields)

    def identity(self, node: Node, source: Source | None) -> str | None:
        """The identity that an artifact of other images or weights has if they turn out not to have changed.

        It is that of the newest near artifact with the same config.
        """
        config = node.config.key_config()
        same = [one for one in self._near(node, source) if one.artifact.manifest.config == config]
        newest = max(same, key=lambda one: _started(one.artifact), default=None)
        return None if newest is None else newest.artifact.identity

    def _nearest(self, node: Node, fields: Mapping[str, Any], source: Source | None) -> _Known | None:
        pairs = _pairs(fields)
        near = list(self._near(node, source))
        if not near and not node.stage.identified_by_content:
            near = [one for one in self._of(node.stage.name) if self._is_near(one.fields, fields)]
        return min(near, key=lambda one: len(one.pairs ^ pairs), default=None)

    def _near(self, node: Node, source: Source | None) -> Iterator[_Known]:
        """What the experiment's runs had at the node's address, or else what was made from the same place."""
        keys = self._recorded.get((node.stage.name, node.address), set())
        recorded = [one for one in self._of(node.stage.name) if one.artifact.key in keys]
        if recorded:
            yield from recorded
        elif source is not None and source.location:
            for one in self._of(node.stage.name):
                if one.artifact.manifest.provenance.get(_SOURCE) == dict(source.location):
                    yield one

    def _is_near(self, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Whether an artifact is near one that is wanted, by its fields: kind, images, and inputs or config."""
        theirs, ours = _roles(have), _roles(wanted)
        same = {role for role in theirs.keys() & ours.keys() if self._is_same(theirs[role], ours[role])}
        images = _role(_IMAGES)
        if have.get("kind") != wanted.get("kind") or (images in ours and images not in same):
            return False
        settings = (
            {name: value for name, value in fields.items() if name not in (*theirs, *ours, _VERSION)}
            for fields in (have, wanted)
        )
        return 2 * len(same) > len(ours.keys() | theirs.keys()) or next(settings) == next(settings)

    def _is_same(self, one: str, other: str) -> bool:
        """Whether two identities are equal, or of images or weights from the same place."""
        place = self._places.get(one)
        return one == other or (place is not None and place == self._places.get(other))

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where the images and weights lay that have an identity, if they lay anywhere."""
        found = {}
        for known in (*self._of("index"), *self._of("weights")):
            if location := known.artifact.manifest.provenance.get(_SOURCE):
                found[known.artifact.identity] = canonical_json(location)
        return found

    def _of(self, stage: str) -> list[_Known]:
        if stage not in self._known:
            self._known[stage] = [_Known.of(artifact) for artifact in self.store.readable(stage)]
        return self._known[stage]

    @cached_property
    def _recorded(self) -> dict[tuple[str, str], set[str]]:
        """(stage, address) -> the keys it had in runs of this experiment, whatever `--set` and version."""
        found: dict[tuple[str, str], set[str]] = {}
        if self.experiment is not None:
            for record in self.store.records.of_name(self.experiment):
                for address, node in record.nodes.items():
                    found.setdefault((node.stage, address), set()).add(node.key)
        return found


def _started(artifact: Artifact) -> float:
    return float(artifact.manifest.provenance.get("started", 0.0))


def _difference(node: Node, nearest: _Known, fields: Mapping[str, Any]) -> str:
    have = nearest.fields
    if have.get("kind") != fields.get("kind"):
        return f"kind: {have.get('kind', 'absent')} -> {fields.get('kind', 'absent')}"
    names = [
        name
        for name in sorted(have.keys() | fields.keys())
        if have.get(name, "absent") != fields.get(name, "absent")
    ]
    changed = []
    for name in names:
        if name == _role(_SOURCE) and node.stage.changed_source is not None:
            changed.append(node.stage.changed_source(node.config, nearest.artifact) or f"{name} changed")
        elif name in (*_roles(have), *_roles(fields)):
            changed.append(f"{name} changed")
        elif name == _VERSION and fields[name] in node.stage.changes:
            told = node.stage.changes[fields[name]]
            changed.append(f"{name}: {have[name]} -> {fields[name]}, which {told}")
        else:
            changed.append(f"{name}: {have.get(name, 'absent')} -> {fields.get(name, 'absent')}")
    if not changed:
        return "is not in the store any more"
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more


def _role(role: str) -> str:
    return f"input {role}"


def _roles(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.startswith(_role(""))}


def _fields(version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    return _flat({_VERSION: version, **config, **{_role(role): i for role, i in inputs.items()}})


def _pairs(fields: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, canonical_json(value)) for name, value in fields.items())


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
