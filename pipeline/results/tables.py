"""`Catalog`: the tables of a store as lazy frames, with columns that name what each row is about.

`pipeline.results.sql`, `pipeline.results.pick` and the Python API read tables with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from patchsae.pipeline.images.tables import IMAGES, LATER_COLUMNS
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

_APPLICABLE = {
    "index": ("dataset",),
    "few_shot": ("dataset",),
    "adapt": ("dataset", "backbone"),
    **dict.fromkeys(SAE_STAGES, ("dataset", "backbone", "sae")),
}
"""The names that apply to the tables of a stage; all of them to those of an evaluation."""

# Table -> the columns that artifacts of earlier versions lack, with what they would hold.
_LATER = {IMAGES.name: LATER_COLUMNS}
# All frames share one list of categories, so that they can be concatenated and joined.
_NAME_TYPE = pl.Categorical
# A column that numbers the sets of names of artifacts, while a table is read.
_SET = "set of names"


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

    def records(self, artifact: Artifact) -> Sequence[tuple[ExperimentRecord, RecordedNode]]:
        """The experiments that have an artifact, each with the node that it is of."""
        return self._known.get(artifact.key, [])

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
        frames = [self._frame(alike, name) for alike in self._alike(name)]
        found = pl.concat(frames, how="diagonal_relaxed")
        columns = found.collect_schema().names()
        front = [column for column in (*NAME_COLUMNS, *KEY_COLUMNS) if column in columns]
        return found.select(*front, pl.all().exclude([*front, "artifact"]), "artifact")

    def _alike(self, name: str) -> Iterable[list[Artifact]]:
        """The artifacts that have the table, in groups in which stage, columns and added columns are the same.

        Each group becomes one scan. Polars starts a thread for every scan of a query, and warns of a deadlock
        when there are more than 512.
        """
        groups: dict[Hashable, list[Artifact]] = {}
        for artifact in self.artifacts[name]:
            columns = tuple(artifact.scan(name).collect_schema().items())
            groups.setdefault((artifact.stage, columns, tuple(_keys(artifact))), []).append(artifact)
        return groups.values()

    def _frame(self, artifacts: Sequence[Artifact], name: str) -> pl.LazyFrame:
        """A table of artifacts that are alike, once for each set of names that experiments have for an artifact."""
        files = [file for artifact in artifacts for file in artifact.table_files(name)]
        # Without glob, since the store's path may hold a `*`.
        plain = pl.scan_parquet(files, glob=False).with_columns(pl.col("artifact").cast(pl.String))
        own = plain.collect_schema().names()
        later = {column: v for column, v in _LATER.get(name, {}).items() if column not in own}
        plain, own = (
            plain.with_columns(pl.lit(v).alias(column) for column, v in later.items()),
            [*own, *later],
        )
        if name == "frontier" and "key" in own:
            plain, own = plain.rename({"key": "sae_key"}), [*own, "sae_key"]
        applicable = _APPLICABLE.get(artifacts[0].stage, NAMES)
        # Tables of older versions hold some names themselves.
        added = [column for column in NAMES if column in applicable and column not in own]
        keys = list(_keys(artifacts[0]))
        about: list[dict[str, str | int | None]] = []
        saes: list[dict[str, str | int]] = []
        for artifact in artifacts:
            for names, sae_names in self._names(artifact):
                known_as = {column: names[column] for column in added}
                about.append({"artifact": artifact.key, _SET: len(about), **known_as, **_keys(artifact)})
                saes += [{_SET: len(about) - 1, "sae_key": key, "sae": sae} for key, sae in sae_names.items()]
        by_row = name == "frontier" and "sae" in added
        columns = ["artifact", _SET, *(one for one in added if not (by_row and one == "sae")), *keys]
        types = {column: pl.Int64 if column == _SET else pl.String for column in columns}
        named = pl.LazyFrame(about, schema=types)
        found = plain.drop(*keys, strict=False).join(named, on="artifact", maintain_order="left")
        if by_row:
            types = {_SET: pl.Int64, "sae_key": pl.String, "sae": pl.String}
            found = found.join(
                pl.LazyFrame(saes, schema=types), on=[_SET, "sae_key"], how="left", maintain_order="left"
            )
        columns = [column for column in (*NAME_COLUMNS, *KEY_COLUMNS) if column in {*own, *added, *keys}]
        return found.drop(_SET).with_columns(pl.col(columns).cast(pl.String).cast(_NAME_TYPE))

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


def _keys(artifact: Artifact) -> dict[str, str]:
    """The values of those `KEY_COLUMNS` that apply to an artifact."""
    manifest = artifact.manifest
    images = artifact.identity if artifact.stage == "index" else manifest.inputs.get("images")
    sae = artifact.key if artifact.stage in SAE_STAGES else manifest.inputs.get("sae")
    found = {"image_set": images, "sae_key": sae}
    return {column: key for column, key in found.items() if key is not None}
