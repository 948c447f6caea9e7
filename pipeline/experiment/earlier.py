"""`Earlier`: the artifacts of a store that are near a planned one, from which a plan tells why it would run.

Near is what the runs of the experiment had at the same address. If there is none, it is an artifact of the same
kind that was made from the same inputs, and differs in a few settings at most. Images and weights are the same if
they come from the same place. Of several near ones, the one that differs least is compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.prediction import Source
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import canonical_json
from patchsae.storage.store import Store

_SHOWN = 3
_SOURCE, _IMAGES, _KIND = "source", "images", "kind"
# The pairs of two artifacts in which they differ if one field has another value: its old and its new one.
_ONE_CHANGE = 2
_VERSION, _ABSENT = "code version", "absent"
# The number of settings in which an artifact that no run of the experiment made may differ.
_FEW_SETTINGS = 2


@dataclass(frozen=True)
class _Known:
    """An artifact with its fields, and the same fields and its settings in forms that are quick to compare."""

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
    _grouped: dict[str, dict[Hashable, list[_Known]]] = field(default_factory=dict)
    _changed: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def why(
        self, node: Node, config: Mapping[str, Any], inputs: Mapping[str, str], source: Source | None
    ) -> str:
        """The fields and inputs that differ from the nearest artifact, or that there is none.

        `inputs` maps a role to the identity that goes into the key.
        """
        fields = _fields(node.stage.version, config, inputs)
        nearest = self._nearest(node, fields, source)
        return "never run" if nearest is None else _difference(node, nearest, fields, self._changed_input)

    def identity(self, node: Node, source: Source | None) -> str | None:
        """The identity that an artifact of other images or weights has if they turn out not to have changed.

        It is that of the newest near artifact with the same config, unless what it was made of is still there at
        another place: then these are others.
        """
        config, place = node.config.key_config(), source.location if source is not None else {}
        same = [
            one
            for one in self._near(node, source)
            if one.artifact.manifest.config == config and _may_be_at(place, _place_of(one.artifact))
        ]
        newest = max(same, key=lambda one: _started(one.artifact), default=None)
        return None if newest is None else newest.artifact.identity

    def _nearest(self, node: Node, fields: Mapping[str, Any], source: Source | None) -> _Known | None:
        pairs, best, least = _pairs(fields), None, 0
        near: Iterable[_Known] = self._near(node, source)
        if not near and not node.stage.identified_by_content:
            near = self._alike(node.stage.name, fields, pairs)
        for one in near:
            n_changed = len(one.pairs ^ pairs)
            if best is None or n_changed < least:
                best, least = one, n_changed
            if least <= _ONE_CHANGE:
                break
        return best

    def _near(self, node: Node, source: Source | None) -> list[_Known]:
        """What the experiment's runs had at the node's address, or else what was made from the same place."""
        keys = self._recorded.get((node.stage.name, node.address), set())
        known = self._of(node.stage.name)
        recorded = [one for one in known if one.artifact.key in keys] if keys else []
        place = dict(source.location) if source is not None else {}
        # Another experiment of the same name may have had other images or weights at this address.
        for some in (recorded, known) if place else ():
            if here := [one for one in some if _place_of(one.artifact) == place]:
                return here
        return recorded

    def _alike(
        self, stage: str, wanted: Mapping[str, Any], pairs: frozenset[tuple[str, str]]
    ) -> Iterator[_Known]:
        """The artifacts of the same kind and inputs as these fields that differ from them in a few settings."""
        if stage not in self._grouped:
            groups = self._grouped[stage] = {}
            for one in self._of(stage):
                groups.setdefault(self._origin(one.fields), []).append(one)
        others = {_VERSION, *_roles(wanted)}
        most = _ONE_CHANGE * (_FEW_SETTINGS + len(others))
        for one in self._grouped[stage].get(self._origin(wanted), []):
            differing = one.pairs ^ pairs
            if len(differing) <= most and len({name for name, _ in differing} - others) <= _FEW_SETTINGS:
                yield one

    def _origin(self, fields: Mapping[str, Any]) -> Hashable:
        """The kind, and the inputs by their roles; of images and weights the place, if they lay anywhere."""
        inputs = {role: self._places.get(identity, identity) for role, identity in _roles(fields).items()}
        return fields.get(_KIND), frozenset(inputs.items())

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where the images and weights lay that have an identity, if they lay anywhere."""
        found = {}
        for known in (*self._of("index"), *self._of("weights")):
            if location := _place_of(known.artifact):
                found[known.artifact.identity] = canonical_json(location)
        return found

    def _changed_input(self, have: str, wanted: str) -> str | None:
        """What differs between two inputs with these identities, if their stage can tell. It is looked at once."""
        if (have, wanted) not in self._changed:
            self._changed[have, wanted] = None
            for stage in STAGES.values():
                if stage.changed_content is not None:
                    of = {known.artifact.identity: known.artifact for known in self._of(stage.name)}
                    if have in of and wanted in of:
                        self._changed[have, wanted] = stage.changed_content(of[have], of[wanted])
        return self._changed[have, wanted]

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


def _place_of(artifact: Artifact) -> dict[str, str]:
    """Where the images or weights lay that an artifact was made of; empty if they lay nowhere."""
    return dict(artifact.manifest.provenance.get(_SOURCE) or {})


def _may_be_at(place: Mapping[str, str], before: Mapping[str, str]) -> bool:
    """Whether what lay at one place may be what lies at another: all that lay elsewhere has been moved away.

    What is no path, such as the tag of published weights, does not move.
    """
    elsewhere = [path for name, path in before.items() if place.get(name) != path]
    return all(Path(path).is_absolute() and not os.path.lexists(path) for path in elsewhere)


def _started(artifact: Artifact) -> float:
    return float(artifact.manifest.provenance.get("started", 0.0))


def _difference(
    node: Node, nearest: _Known, fields: Mapping[str, Any], changed_input: Callable[[str, str], str | None]
) -> str:
    have = nearest.fields
    if have.get(_KIND) != fields.get(_KIND):
        return f"kind: {have.get(_KIND, _ABSENT)} -> {fields.get(_KIND, _ABSENT)}"
    changed = []
    for name in sorted(_differing(have, fields)):
        if name == _role(_SOURCE) and node.stage.changed_source is not None:
            changed.append(node.stage.changed_source(node.config, nearest.artifact) or f"{name} changed")
        elif name in (*_roles(have), *_roles(fields)):
            told = changed_input(str(have.get(name)), str(fields.get(name)))
            changed.append(f"{name} changed" + (f" ({told})" if told else ""))
        elif name == _VERSION and fields[name] in node.stage.changes:
            told = node.stage.changes[fields[name]]
            changed.append(f"{name}: {have[name]} -> {fields[name]}, which {told}")
        else:
            changed.append(f"{name}: {have.get(name, _ABSENT)} -> {fields.get(name, _ABSENT)}")
    if not changed:
        return "is not in the store any more"
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more


def _differing(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """The names of the fields in which two artifacts differ."""
    return {n for n in have.keys() | wanted.keys() if have.get(n, _ABSENT) != wanted.get(n, _ABSENT)}


def _role(role: str) -> str:
    return f"input {role}"


def _roles(fields: Mapping[str, Any]) -> dict[str, str]:
    prefix = _role("")
    return {name: value for name, value in fields.items() if name.startswith(prefix)}


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
