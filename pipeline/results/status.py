"""Every artifact of a store with its state and its names in experiments, for `patchsae status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchsae.pipeline.core.text import count
from patchsae.pipeline.results.find import records_of
from patchsae.storage.store import Store


def experiments_of_records(store: Store) -> dict[str, str]:
    """Name of a record -> name of its experiment, which earlier versions of it and runs with `--set` share."""
    return {
        name: str((record.experiment or {}).get("name", name)) for name, record in store.records.all().items()
    }


def names_text(names: Sequence[str], experiments: Mapping[str, str]) -> str:
    """The names of an artifact with each experiment once: as its current record has them, or else another one.

    `names` are those of `status_rows`, and `experiments` those of `experiments_of_records`. Other records of the
    experiment are counted.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        record, _, address = name.partition(": ")
        found.setdefault(experiments.get(record, record), {}).setdefault(record, []).append(address)
    texts = []
    for experiment, records in found.items():
        shown = experiment if experiment in records else min(records)
        more = f" (and {count(len(records) - 1, 'other record')})" if len(records) > 1 else ""
        texts.append(f"{shown}: {', '.join(records[shown])}{more}")
    return "; ".join(texts)


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
