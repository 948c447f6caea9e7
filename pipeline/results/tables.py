"""`Catalog`: the tables of a store as lazy frames, with columns that name what each row is about.

`pipeline.results.sql`, `pipeline.results.pick` and the Python API read tables with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import polars as pl

from patchsae.pipeline.results.find import SAE_STAGES, records_of
from patchsae.storage import tables
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import StoreWarning, UserError
from patchsae.storage.records import NAMES, ExperimentRecord, RecordedNode
from patchsae.storage.store import Store

NAME_COLUMNS = {
    "dataset": "Dataset the row is about, by its name in the experiment.",
    "backbone": "Backbone the row is about, by its name in the experiment.",
    "sae": "SAE the row is about, by its name in the experiment.",
    "evaluation": "Evaluation that made the row, by its name in the experiment.",
}
KEY_COLUMNS = {
    "image_set": "Identity of the images that `image` and class ids refer to; join on it and `dataset`.",
    "sae_key": "Key of the SAE that `latent` refers to; join on it and `sae`.",
}
"""Columns that are added when a table is read, if they apply: names from records, keys from manifests."""

_APPLICABLE = {"index": ("dataset",), **dict.fromkeys(SAE_STAGES, ("dataset", "backbone", "sae"))}
"""The names that apply to the tables of a stage; all of them to those of an evaluation."""

# All frames share one list of categories, so that they can be concatenated and joined.
_NAME_TYPE = pl.Categorical


@dataclass
class Catalog:
    """The tables of a store, or of one of its experiments. Manifests and records are read once.

    Gives a StoreWarning for every damaged artifact, whose tables are left out, and for every record that cannot
    be read.
    """

    store: Store
    experiment: str | None = None
    _known: dict[str, list[tuple[ExperimentRecord, RecordedNode]]] = field(init=False)
    artifacts: dict[str, list[Artifact]] = field(init=False)
    """Name of a table -> the committed artifacts that have it."""

    def __post_init__(self) -> None:
        records = records_of(self.store, self.experiment)
        self._known = {}
        for record in records.values():
            for node in record.nodes.values():
                self._known.setdefault(node.key, []).append((record, node))
        self.artifacts = {}
        for _, sentence in self.store.records.faults():
            warnings.warn(sentence, StoreWarning, stacklevel=2)
        for artifact, state in self.store.artifacts():
            if self.experiment is not None and artifact.key not in self._known:
                continue
            if state == "damaged":
                warnings.warn(f"{artifact.fault()} (its tables are left out)", StoreWarning, stacklevel=2)
            if state != "committed":
                continue
            found = {tables.table_of(output.path) for output in artifact.manifest.outputs} - {None}
            for name in sorted(str(name) for name in found):
                self.artifacts.setdefault(name, []).append(artifact)

    def knows(self, artifact: Artifact) -> bool:
        """Whether a record leads to an artifact, so that it has names."""
        return artifact.key in self._known

    def __contains__(self, name: str) -> bool:
        return name in self.artifacts

    def scan(self, name: str) -> pl.LazyFrame:
        """The table `name` over all artifacts that have it, with `NAME_COLUMNS` and `KEY_COLUMNS` in front.

        If experiments have several names for an artifact, its rows appear once under each. If no experiment
        has it, the names are null. Raises UserError, with the names of all tables, if no artifact has the
        table.
        """
        if name not in self.artifacts:
            known = ", ".join(sorted(self.artifacts)) or "none yet: run an experiment first"
            raise UserError(f"{self.store.root}: no table `{name}` in this store (tables: {known}).")
        frames = [frame for artifact in self.artifacts[name] for frame in self._frames(artifact, name)]
        found = pl.concat(frames, how="diagonal_relaxed")
        columns = found.collect_schema().names()
        front = [column for column in (*NAME_COLUMNS, *KEY_COLUMNS) if column in columns]
        return found.select(*front, pl.all().exclude([*front, "artifact"]), "artifact")

    def _frames(self, artifact: Artifact, name: str) -> Iterator[pl.LazyFrame]:
        """A table of one artifact, once for each set of names that experiments have for the artifact."""
        plain = artifact.scan(name).with_columns(pl.col("artifact").cast(pl.String))
        plain = plain.with_columns(_keys(artifact))
        own = plain.collect_schema().names()
        if name == "frontier" and "key" in own:
            plain, own = plain.rename({"key": "sae_key"}), [*own, "sae_key"]
        for names, saes in self._names(artifact):
            columns = {
                # Tables of older versions hold some names themselves.
                column: pl.col(column).cast(pl.String) if column in own else pl.lit(value, pl.String)
                for column, value in names.items()
                if column in own or column in _APPLICABLE.get(artifact.stage, NAMES)
            }
            if name == "frontier" and "sae" not in own:
                columns["sae"] = pl.col("sae_key").replace_strict(saes, default=None, return_dtype=pl.String)
            if "sae_key" in own:
                columns["sae_key"] = pl.col("sae_key")
            yield plain.with_columns(
                **{column: expression.cast(_NAME_TYPE) for column, expression in columns.items()}
            )

    def _names(self, artifact: Artifact) -> Iterator[tuple[Mapping[str, str | None], Mapping[str, str]]]:
        """Each set of names that experiments have for an artifact (column -> name).

        With it come the names that the same experiment has for the SAEs among its inputs (key -> name).
        """
        seen = set()
        inputs = set(artifact.manifest.inputs.values())
        for record, node in self._known.get(artifact.key, []):
            names = {column: node.names.get(column) for column in NAMES}
            saes = {
                n.key: n.names["sae"]
                for n in record.nodes.values()
                if n.stage in SAE_STAGES and n.key in inputs
            }
            same = (
                tuple(names.values()),
                tuple(sorted(saes.items())) if artifact.stage == "frontier" else (),
            )
            if same not in seen:
                seen.add(same)
                yield names, saes
        if not seen:
            yield dict.fromkeys(NAMES), {}


def _keys(artifact: Artifact) -> list[pl.Expr]:
    """Those `KEY_COLUMNS` that apply to an artifact, as Polars expressions."""
    manifest = artifact.manifest
    images = artifact.identity if artifact.stage == "index" else manifest.inputs.get("images")
    sae = artifact.key if artifact.stage in SAE_STAGES else manifest.inputs.get("sae")
    found = []
    if images is not None:
        found.append(pl.lit(images).cast(_NAME_TYPE).alias("image_set"))
    if sae is not None:
        found.append(pl.lit(sae).cast(_NAME_TYPE).alias("sae_key"))
    return found
