"""The plan of a run: for every node its key, its state, and why it would run. `patchsae plan` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.provenance import changed_inputs
from patchsae.pipeline.core.stage import Source, Stage, Upstream
from patchsae.pipeline.core.text import size
from patchsae.storage.artifacts import Artifact
from patchsae.storage.atomic import has_no_inodes
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.manifest import Manifest
from patchsae.storage.store import Store

_VERSION = "code version"
PlanState = Literal["cached", "run", "resume", "damaged", "blocked"]


@dataclass(frozen=True)
class Planned:
    """The plan of one node.

    `key` is None while the identity of an input is not known, because its index or weights must be made
    first. `key_inputs` maps a role to the identity that goes into the key. `n_bytes` is the predicted size of
    the artifact, None if it is not known, and `n_bytes_done` what an unfinished one has of it. `again`: the artifact is to be built even if it is
    committed.
    """

    node: Node
    key: str | None
    key_inputs: dict[str, str]
    state: PlanState
    why: str
    n_bytes: int | None = None
    source: Source | None = None
    again: bool = False
    n_bytes_done: int = 0

    @property
    def has_work(self) -> bool:
        return self.again or self.state != "cached"

    @property
    def n_bytes_left(self) -> int | None:
        """Predicted bytes that are still to be written."""
        return None if self.n_bytes is None else max(0, self.n_bytes - self.n_bytes_done)


@dataclass
class Planner:
    """Plans nodes against a store. It looks at each source outside the store only once."""

    store: Store
    _sources: dict[str, Source | UserError] = field(default_factory=dict)
    _manifests: dict[str, list[Manifest]] = field(default_factory=dict)

    def plan(self, nodes: Sequence[Node]) -> dict[str, Planned]:
        """Plans nodes, which must come after their inputs: address -> plan. Runs nothing."""
        planned: dict[str, Planned] = {}
        for node in nodes:
            planned[node.address] = self.node(node, planned)
        return planned

    def node(self, node: Node, before: Mapping[str, Planned]) -> Planned:
        """Plans one node; `before` holds the plans of its inputs."""
        source = self._source(node)
        known = source if isinstance(source, Source) else None
        n_bytes = self._predict(node, before)

        def planned(state: PlanState, why: str, key: str | None = None, n_bytes_done: int = 0) -> Planned:
            inputs = key_inputs if key else {}
            return Planned(node, key, inputs, state, why, n_bytes, known, n_bytes_done=n_bytes_done)

        key_inputs: dict[str, str] = {}
        waiting = [address for address in node.inputs.values() if before[address].state == "blocked"]
        if waiting:
            return planned("blocked", f"needs {waiting[0]}")
        if isinstance(source, UserError):
            return planned("blocked", str(source))
        if source is not None:
            key_inputs["source"] = source.fingerprint
        for role, address in node.inputs.items():
            identity = self._identity_of(before[address])
            if identity is None:
                return planned("run", f"waits for {address}")
            key_inputs[role] = identity
        config = node.config.key_config()
        key = artifact_key(node.stage.name, node.stage.version, config, key_inputs)
        artifact = self.store.at(node.stage.name, key)
        if artifact.is_committed:
            fault = artifact.fault()
            if fault is None:
                changed = changed_inputs(artifact, self._inputs(node, before))
                if not changed:
                    return planned("cached", "", key)
                return planned("run", f"made from another build of {node.inputs[changed[0]]}", key)
            return planned("damaged", fault, key, artifact.ledger.n_bytes())
        n_done, step = artifact.ledger.n_done(), artifact.checkpoints.latest_step()
        if step is not None:
            return planned("resume", f"resumes at step {step}", key, artifact.n_bytes())
        if n_done:
            return planned("resume", f"resumes with {n_done} parts done", key, artifact.ledger.n_bytes())
        return planned("run", self._why_not_cached(node, config, key_inputs), key)

    def _inputs(self, node: Node, before: Mapping[str, Planned]) -> dict[str, Artifact]:
        """The artifacts of a node's inputs, whose keys are known."""
        return {
            role: self.store.at(before[address].node.stage.name, str(before[address].key))
            for role, address in node.inputs.items()
        }

    def _source(self, node: Node) -> Source | UserError | None:
        if node.stage.source is None:
            return None
        if node.address not in self._sources:
            try:
                self._sources[node.address] = node.stage.source(node.config)
            except UserError as error:
                self._sources[node.address] = error
        return self._sources[node.address]

    def _identity_of(self, upstream: Planned) -> str | None:
        """What `upstream` contributes to the keys of nodes that use it, or None while it is not known."""
        if upstream.key is None or not upstream.node.stage.identified_by_content:
            return upstream.key
        if upstream.state != "cached":
            return None
        return self.store.at(upstream.node.stage.name, upstream.key).identity

    def _predict(self, node: Node, before: Mapping[str, Planned]) -> int | None:
        if node.stage.predict_bytes is None:
            return None
        inputs = {}
        for role, address in node.inputs.items():
            upstream, artifact = before[address], None
            if upstream.state == "cached":
                artifact = self.store.at(upstream.node.stage.name, str(upstream.key))
            inputs[role] = Upstream(artifact, upstream.source)
        return node.stage.predict_bytes(node.config, inputs)

    def _why_not_cached(self, node: Node, config: Mapping[str, Any], key_inputs: Mapping[str, str]) -> str:
        """The fields and inputs that differ from the most similar artifact of the stage in the store."""
        stage = node.stage
        wanted = _fields(stage.version, config, key_inputs)
        if stage.name not in self._manifests:
            self._manifests[stage.name] = self.store.manifests(stage.name)
        best: list[str] | None = None
        for manifest in self._manifests[stage.name]:
            have = _fields(manifest.version, manifest.config, manifest.inputs)
            changed = [
                _change(stage, name, have.get(name, "absent"), wanted.get(name, "absent"))
                for name in sorted(have.keys() | wanted.keys())
                if have.get(name, "absent") != wanted.get(name, "absent")
            ]
            if best is None or len(changed) < len(best):
                best = changed
        if best is None:
            return "never run"
        return "; ".join(best[:3]) + (f"; and {len(best) - 3} more" if len(best) > 3 else "")


def _fields(version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    return _flat({_VERSION: version, **config, **{f"input {r}": i for r, i in inputs.items()}})


def _change(stage: Stage, name: str, old: Any, new: Any) -> str:
    if name == _VERSION and new in stage.changes:
        return f"{name}: {old} -> {new}, which {stage.changes[new]}"
    return f"{name} changed" if name.startswith("input ") else f"{name}: {old} -> {new}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def check_space(store: Store, planned: Mapping[str, Planned]) -> None:
    """Raises UserError if the bytes that are left to write do not fit on the disk, or no file does.

    Blocked nodes are not counted, since they cannot run. An artifact that is built again needs its whole size.
    """
    to_write = [item for item in planned.values() if item.has_work and item.state != "blocked"]
    needed = sum(item.n_bytes_left or 0 for item in to_write)
    free = store.free_bytes()
    if needed > free:
        largest = max(to_write, key=lambda item: item.n_bytes_left or 0)
        raise UserError(
            f"{store.root}: the run needs about {size(needed)} more and {size(free)} are free "
            f"(the largest is {largest.node.address}, {size(largest.n_bytes_left)}); "
            "choose another --store or fewer images."
        )
    if to_write and has_no_inodes(store.root):
        raise UserError(
            f"{store.root}: the disk has no inodes left, so no file can be made; delete some files there or choose "
            "another --store."
        )
