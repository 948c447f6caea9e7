"""The plan of a run: for every node its key, its state, and why it would run. `patchsae plan` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.prediction import Prediction, Source, Upstream
from patchsae.pipeline.core.provenance import changed_inputs
from patchsae.pipeline.experiment.earlier import Earlier
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store

PlanState = Literal["cached", "run", "resume", "damaged", "perhaps", "blocked"]


@dataclass(frozen=True)
class Planned:
    """The plan of one node.

    `key` is None while the identity of an input is not known, because its index or weights must be made
    first. `assumed_key` is the key that it will have if these turn out not to have changed, and `waits_for` the
    address of that index or those weights. The state is `perhaps` if the artifact of that key is there, so that
    the node runs only if they did change. `key_inputs` maps a role to the identity that goes into the key.
    `n_bytes_there` is what of an unfinished artifact is on the disk already, and `share_done` its share of the
    work. `n_bytes_replaced` is the size of the finished artifact that is deleted once this one is finished.
    `cause` is the address of the node that blocks this one, which may be this one. `again`: the artifact is to
    be built even if it is committed.
    """

    node: Node
    key: str | None
    key_inputs: dict[str, str]
    state: PlanState
    why: str
    prediction: Prediction = field(default_factory=Prediction)
    source: Source | None = None
    again: bool = False
    n_bytes_there: int = 0
    n_bytes_replaced: int = 0
    share_done: float = 0.0
    assumed_key: str | None = None
    waits_for: str | None = None
    cause: str | None = None

    @property
    def has_work(self) -> bool:
        """Whether the node runs, or may run."""
        return self.again or self.state != "cached"

    @property
    def n_bytes(self) -> int | None:
        """The predicted size of the artifact; None if it is not known."""
        return self.prediction.n_bytes

    @property
    def n_bytes_left(self) -> int | None:
        """Predicted bytes of the artifact that are still to be written."""
        return None if self.n_bytes is None else max(0, self.n_bytes - self.n_bytes_there)

    @property
    def n_bytes_most(self) -> int:
        """Predicted bytes that building the artifact adds to the disk, at most, with checkpoints and parts."""
        return max(0, (self.n_bytes or 0) + self.prediction.n_scratch_bytes - self.n_bytes_there)


@dataclass(frozen=True)
class _Inputs:
    """What goes into the key of a node: identities by their roles, as far as they are known.

    `waits_for` is the address of an index or weights that must be made before an identity is certain.
    """

    identities: dict[str, str]
    missing: str | None = None
    waits_for: str | None = None


@dataclass
class Planner:
    """Plans nodes against a store.

    It looks at each source outside the store only once, and reads a manifest again only if its file has changed.
    `experiment` is the name of the record whose earlier runs say why a node would run.
    """

    store: Store
    experiment: str | None = None
    _sources: dict[str, Source | UserError] = field(default_factory=dict)
    _opened: dict[Path, tuple[tuple[int, int, int], Artifact]] = field(default_factory=dict)
    _earlier: Earlier = field(init=False)

    def __post_init__(self) -> None:
        self._earlier = Earlier(self.store, self.experiment)

    def plan(self, nodes: Sequence[Node], explain: bool = True) -> dict[str, Planned]:
        """Plans nodes, which must come after their inputs: address -> plan. Runs nothing."""
        planned: dict[str, Planned] = {}
        for node in nodes:
            planned[node.address] = self.node(node, planned, explain)
        return planned

    def node(self, node: Node, before: Mapping[str, Planned], explain: bool = True) -> Planned:
        """Plans one node; `before` holds the plans of its inputs. Without `explain` it need not say why it runs."""
        source = self._source(node)
        known = source if isinstance(source, Source) else None
        prediction, refusal = self._predict(node, before, known)

        def planned(state: PlanState, why: str, key: str | None = None, **others: Any) -> Planned:
            return Planned(
                node, key, inputs.identities if key else {}, state, why, prediction, known, **others
            )

        inputs = self._inputs_of(node, before, known, explain)
        if isinstance(source, UserError):
            return planned("blocked", str(source), cause=node.address)
        blocked = next((a for a in node.inputs.values() if before[a].state == "blocked"), None)
        if inputs.missing is not None or blocked is not None:
            if refusal is not None:
                return planned("blocked", str(refusal), cause=node.address)
            if blocked is not None:
                return planned("blocked", f"needs {blocked}", cause=before[blocked].cause)
            return planned("run", f"waits for {inputs.missing}", waits_for=inputs.waits_for)
        config = node.config.key_config()
        key = artifact_key(node.stage.name, node.stage.version, config, inputs.identities)
        artifact = self.artifact(node.stage.name, key)
        certain = key if inputs.waits_for is None else None
        unless = "" if certain else f" (unless {inputs.waits_for} changes)"
        given: dict[str, Any] = {"key": certain, "assumed_key": key, "waits_for": inputs.waits_for}
        fault = artifact.fault() if artifact.is_committed else None
        if artifact.is_committed and fault is None:
            changed = changed_inputs(artifact, self._artifacts(node, before))
            if not changed:
                if certain is None:
                    return planned("perhaps", f"only if {inputs.waits_for} changes", **given)
                return planned("cached", "", **given)
            why = f"made from another build of {node.inputs[changed[0]]}"
            return planned("run", why, **given, n_bytes_replaced=artifact.n_bytes())
        if refusal is not None:
            return planned("blocked", str(refusal), certain, cause=node.address)
        if fault is not None:
            return planned("damaged", fault, **given, n_bytes_there=artifact.ledger.n_bytes())
        n_done, step = artifact.ledger.n_done(), artifact.checkpoints.latest_step()
        if step is not None:
            share = min(1.0, step / prediction.n_units) if prediction.n_units else 0.0
            why, there = f"resumes at step {step}{unless}", artifact.n_bytes()
            return planned("resume", why, **given, n_bytes_there=there, share_done=share)
        if n_done:
            done = artifact.ledger.n_bytes()
            share = min(1.0, done / prediction.n_bytes) if prediction.n_bytes else 0.0
            why = f"resumes with {n_done} parts done{unless}"
            return planned("resume", why, **given, n_bytes_there=done, share_done=share)
        return planned("run", self._why(node, artifact, config, inputs, known) if explain else "", **given)

    def _why(
        self,
        node: Node,
        artifact: Artifact,
        config: Mapping[str, Any],
        inputs: _Inputs,
        source: Source | None,
    ) -> str:
        dropped = self.store.why_dropped(artifact)
        return dropped or self._earlier.why(node, config, inputs.identities, source)

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of a key, whose manifest was read before if its file is still the same."""
        artifact = self.store.at(stage, key)
        if (seen := artifact.stamp) is None:
            return artifact
        opened = self._opened.get(artifact.path)
        if opened is None or opened[0] != seen or opened[1].key != key:
            opened = self._opened[artifact.path] = seen, artifact
        return opened[1]

    def _artifacts(self, node: Node, before: Mapping[str, Planned]) -> dict[str, Artifact]:
        """The artifacts of a node's inputs, whose keys are known or assumed."""
        return {
            role: self.artifact(before[address].node.stage.name, str(before[address].assumed_key))
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

    def _inputs_of(
        self, node: Node, before: Mapping[str, Planned], source: Source | None, assume: bool
    ) -> _Inputs:
        """The identities of a node's inputs. With `assume`, those of images and weights that are to be looked at
        again are taken to be what they were."""
        found: dict[str, str] = {}
        missing = waits_for = None
        if source is not None:
            found["source"] = source.fingerprint
        for role, address in node.inputs.items():
            upstream = before[address]
            waits_for = waits_for or upstream.waits_for
            identity = upstream.assumed_key
            if upstream.node.stage.identified_by_content and identity is not None:
                if upstream.state == "cached":
                    identity = self.artifact(upstream.node.stage.name, identity).identity
                else:
                    waits_for = waits_for or address
                    identity = self._earlier.identity(upstream.node, upstream.source) if assume else None
            if identity is None:
                missing = missing or address
            else:
                found[role] = identity
        return _Inputs(found, missing, waits_for)

    def _predict(
        self, node: Node, before: Mapping[str, Planned], source: Source | None
    ) -> tuple[Prediction, UserError | None]:
        """What the node's stage predicts, or why it would refuse to run."""
        if node.stage.predict is None:
            return Prediction(), None
        inputs = {"source": Upstream(source=source)}
        for role, address in node.inputs.items():
            upstream, artifact = before[address], None
            if upstream.state == "cached" and upstream.key is not None:
                artifact = self.artifact(upstream.node.stage.name, upstream.key)
            inputs[role] = Upstream(artifact, upstream.source, upstream.prediction)
        try:
            return node.stage.predict(node.config, inputs), None
        except UserError as error:
            return Prediction(), error
