"""What a run would do: for every node its key, whether it is there, and why it would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.dag import Node
from pipeline.progress import size
from pipeline.stage import Assignment, Runtime, execute
from storage.artifacts import Artifact, Store
from storage.checkpoints import Checkpoints
from storage.errors import UserError
from storage.keys import artifact_key

PlanState = Literal["cached", "run", "resume", "damaged", "blocked"]


@dataclass(frozen=True)
class Planned:
    """One line of a plan.

    `key` is None while the identity of an input is not known yet (its index or weights must be made first).
    `n_bytes`: predicted size of what would be written, None if it cannot be told.
    """

    node: Node
    key: str | None
    key_inputs: dict[str, str]
    state: PlanState
    why: str
    n_bytes: int | None = None

    @property
    def has_work(self) -> bool:
        return self.state != "cached"


def plan(store: Store, nodes: Sequence[Node]) -> dict[str, Planned]:
    """Plans nodes (inputs before what they feed) against what the store holds; runs nothing."""
    committed = store.committed()
    planned: dict[str, Planned] = {}
    for node in nodes:
        planned[node.address] = plan_node(store, node, planned, committed)
    return planned


def identity_of(store: Store, upstream: Planned) -> str | None:
    """What goes into the keys of nodes fed by `upstream`, or None while it is not known."""
    if upstream.key is None:
        return None
    if upstream.node.stage.identified_by_content:
        return (
            store.at(upstream.node.stage.name, upstream.key).identity if upstream.state == "cached" else None
        )
    return upstream.key


def plan_node(
    store: Store, node: Node, before: Mapping[str, Planned], committed: Sequence[Artifact]
) -> Planned:
    """Plans one node; `before` holds the plans of its inputs."""
    key_inputs: dict[str, str] = {}
    waiting = [address for address in node.inputs.values() if before[address].state == "blocked"]
    if waiting:
        return Planned(node, None, {}, "blocked", f"needs {waiting[0]}", _predict(store, node, before))
    if node.stage.fingerprint is not None:
        try:
            key_inputs["source"] = node.stage.fingerprint(node.config)
        except UserError as error:
            return Planned(node, None, {}, "blocked", str(error), _predict(store, node, before))
    for role, address in node.inputs.items():
        identity = identity_of(store, before[address])
        if identity is None:
            return Planned(node, None, {}, "run", f"waits for {address}", _predict(store, node, before))
        key_inputs[role] = identity
    config = node.stage.key_config(node.config)
    key = artifact_key(node.stage.name, node.stage.version, config, key_inputs)
    artifact = store.at(node.stage.name, key)
    if artifact.is_committed:
        fault = artifact.fault()
        if fault is None:
            return Planned(node, key, key_inputs, "cached", "")
        return Planned(node, key, key_inputs, "damaged", fault)
    n_bytes = _predict(store, node, before)
    n_done, step = artifact.ledger.n_done(), Checkpoints(artifact.path).latest_step()
    if step is not None:
        return Planned(node, key, key_inputs, "resume", f"resumes at step {step}", n_bytes)
    if n_done:
        return Planned(node, key, key_inputs, "resume", f"resumes with {n_done} parts done", n_bytes)
    why = why_not_cached(node, config, key_inputs, committed)
    return Planned(node, key, key_inputs, "run", why, n_bytes)


def _predict(store: Store, node: Node, before: Mapping[str, Planned]) -> int | None:
    if node.stage.predict_bytes is None:
        return None
    inputs: dict[str, Artifact | None] = {}
    for role, address in node.inputs.items():
        upstream = before[address]
        cached = upstream.state == "cached" and upstream.key is not None
        inputs[role] = store.at(upstream.node.stage.name, str(upstream.key)) if cached else None
    return node.stage.predict_bytes(node.config, inputs)


def why_not_cached(
    node: Node, config: Mapping[str, Any], key_inputs: Mapping[str, str], committed: Sequence[Artifact]
) -> str:
    """The fields and inputs in which the nearest committed artifact of the stage differs."""
    wanted = _flat(
        {"code version": node.stage.version, **config, **{f"input {r}": i for r, i in key_inputs.items()}}
    )
    best: list[str] | None = None
    for artifact in committed:
        if artifact.stage != node.stage.name:
            continue
        manifest = artifact.manifest
        have = _flat(
            {
                "code version": manifest.version,
                **manifest.config,
                **{f"input {r}": i for r, i in manifest.inputs.items()},
            }
        )
        changed = [
            _change(name, have.get(name, "absent"), wanted.get(name, "absent"))
            for name in sorted(have.keys() | wanted.keys())
            if have.get(name, "absent") != wanted.get(name, "absent")
        ]
        if best is None or len(changed) < len(best):
            best = changed
    if best is None:
        return "never run"
    return "; ".join(best[:3]) + (f"; and {len(best) - 3} more" if len(best) > 3 else "")


def _change(name: str, old: Any, new: Any) -> str:
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
    """Refuses a plan whose predicted bytes do not fit; blocked nodes, which cannot run, do not count.

    Raises UserError.
    """
    to_write = [item for item in planned.values() if item.has_work and item.state != "blocked"]
    needed = sum(item.n_bytes or 0 for item in to_write)
    free = store.free_bytes()
    if needed > free:
        largest = max(to_write, key=lambda item: item.n_bytes or 0)
        raise UserError(
            f"{store.root}: the run needs about {size(needed)} and {size(free)} are free "
            f"(the largest is {largest.node.address}, {size(largest.n_bytes)}); "
            "choose another --store or fewer images."
        )


def companions(item: Planned, others: Sequence[Planned]) -> list[Planned]:
    """Of `others`, those that can be built in the same pass as `item`: a sweep of SAEs over one stream."""
    stage = item.node.stage
    if stage.together_key is None:
        return []
    found: dict[str, Planned] = {}
    for other in others:
        if (
            other.node.stage is stage
            and other.has_work
            and other.key not in (None, item.key)
            and other.node.inputs == item.node.inputs
            and stage.together_key(other.node.config) == stage.together_key(item.node.config)
        ):
            found.setdefault(str(other.key), other)
    return list(found.values())


def run_node(store: Store, item: Planned, before: Mapping[str, Planned], runtime: Runtime) -> Artifact:
    """Executes one planned node whose inputs are committed. Raises UserError if they are not."""
    return run_together(store, [item], before, runtime)[0]


def run_together(
    store: Store, items: Sequence[Planned], before: Mapping[str, Planned], runtime: Runtime
) -> list[Artifact]:
    """Executes one planned node, or a node and `companions`. Raises UserError if their inputs are not committed."""
    works = []
    for item in items:
        if item.state == "blocked":
            raise UserError(item.why)
        inputs = {}
        for role, address in item.node.inputs.items():
            upstream = before[address]
            if upstream.key is None or not store.is_usable(upstream.node.stage.name, upstream.key):
                raise UserError(
                    f"{item.node.address} needs {address}, which has not been run; run that first."
                )
            inputs[role] = store.at(upstream.node.stage.name, upstream.key)
        assert item.key is not None
        works.append(Assignment(item.node.stage, item.node.config, inputs, item.key_inputs, item.key))
    return execute(store, works, runtime)
