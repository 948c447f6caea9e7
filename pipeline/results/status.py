"""Every artifact of a store with its state and its names in experiments, for `patchsae status`."""

from __future__ import annotations

from typing import Any

from patchsae.pipeline.results.find import records_of
from patchsae.storage.store import Store


def status_rows(store: Store, experiment: str | None = None) -> list[dict[str, Any]]:
    """One row per artifact of a store, or of one experiment of it.

    `names` are the artifact's names in experiments, as `experiment: stage/name`. `inputs` maps a role to the
    identity of the artifact that filled it. `config` is the hashed config. Raises UserError if there is no
    such experiment.
    """
    records = store.records.all() if experiment is None else records_of(store, experiment)
    names: dict[tuple[str, str], list[str]] = {}
    for name, record in records.items():
        for address, node in record.nodes.items():
            folder = store.at(node.stage, node.key).path.name
            names.setdefault((node.stage, folder), []).append(f"{name}: {address}")
    rows = []
    for artifact, state in store.artifacts():
        known_as = names.get((artifact.stage, artifact.path.name), [])
        if experiment is not None and not known_as:
            continue
        manifest = artifact.manifest if state == "committed" else None
        rows.append(
            {
                "stage": artifact.stage,
                "key": artifact.key,
                "state": state,
                "path": str(artifact.path),
                "bytes": artifact.n_bytes(),
                "summary": manifest.summary if manifest else {},
                "names": sorted(known_as),
                "inputs": manifest.inputs if manifest else {},
                "config": manifest.config if manifest else {},
            }
        )
    return rows
