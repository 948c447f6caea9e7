"""Writes what the documentation says about tables, kinds and the Python API, from the code.

uv run python -m docs.generate              writes docs/tables.md, docs/kinds.md, a list in docs/extending.md,
                                            a table in docs/datasets.md, the reference in docs/api.md
uv run python -m docs.generate --check      exits with 1 if one of them is not what it would write
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from docs.api_reference import reference
from patchsae import pipeline
from patchsae.pipeline.adapters.adapt import ADAPTER_TRAINING
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.evaluations.adaptation.tables import ADAPTATION, ADAPTATION_SEEDS
from patchsae.pipeline.evaluations.gallery.tables import TABLES as GALLERY_TABLES
from patchsae.pipeline.evaluations.kinds.frontier import FRONTIER
from patchsae.pipeline.evaluations.masking.table import masking_schema
from patchsae.pipeline.evaluations.matching.tables import MATCHING, MATCHING_LATENTS
from patchsae.pipeline.evaluations.reconstruction.tables import FIRING_HISTOGRAM, RECONSTRUCTION
from patchsae.pipeline.evaluations.remapping.tables import TABLES as REMAPPING_TABLES
from patchsae.pipeline.evaluations.statistics.tables import (
    CLASS_LATENTS,
    LATENT_IMAGES,
    TableSettings,
    latents_schema,
)
from patchsae.pipeline.experiment.experiment import PRESETS, parse
from patchsae.pipeline.experiment.fields import BASES, SETTINGS, SHARED, described, purpose
from patchsae.pipeline.experiment.kinds import KINDS, STAGES
from patchsae.pipeline.images.attributes import ATTRIBUTES, IMAGE_ATTRIBUTES
from patchsae.pipeline.images.coop.facts import FACTS
from patchsae.pipeline.images.few_shot import FEW_SHOT
from patchsae.pipeline.images.tables import CLASSES, CORRUPT_IMAGES, IMAGE_LABELS, IMAGES
from patchsae.pipeline.images.thumbnails import THUMBNAILS
from patchsae.pipeline.results.sql import ARTIFACT_COLUMNS, ARTIFACTS, describe
from patchsae.pipeline.results.tables import KEY_COLUMNS, NAME_COLUMNS, Catalog
from patchsae.pipeline.saes.files import READABLE, WRITABLE
from patchsae.pipeline.training.metrics import TRAINING
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from patchsae.storage.tables import TableSchema

DOCS = Path(__file__).parent
API = DOCS.parent / "src" / "patchsae" / "api.py"
ADDED = {**NAME_COLUMNS, **KEY_COLUMNS}
TABLES: dict[str, tuple[TableSchema, ...]] = {
    "attributes": (ATTRIBUTES, IMAGE_ATTRIBUTES),
    "index": (IMAGES, CLASSES, IMAGE_LABELS, CORRUPT_IMAGES, THUMBNAILS),
    "few_shot": (FEW_SHOT,),
    "adapt": (ADAPTER_TRAINING,),
    "train": (TRAINING,),
    "statistics": (latents_schema(TableSettings().quantiles), LATENT_IMAGES, CLASS_LATENTS),
    "gallery": GALLERY_TABLES,
    "masking": (masking_schema(("colour",)),),
    "reconstruction": (RECONSTRUCTION, FIRING_HISTOGRAM),
    "frontier": (FRONTIER,),
    "remapping": REMAPPING_TABLES,
    "matching": (MATCHING, MATCHING_LATENTS),
    "adaptation": (ADAPTATION, ADAPTATION_SEEDS),
}
"""Stage -> the tables it writes."""
EXPERIMENT = """
name: docs
datasets: {images: {kind: shapes, seed: 0, splits: {train: 1, test: 1}}}
backbones: {clip: {kind: shapes_clip}}
adapters: {probe: {kind: linear_probe, dataset: images, backbone: clip}}
saes: {sae: {kind: topk, dataset: images, backbone: clip}}
evaluations:
  statistics: {kind: statistics, sae: sae}
  gallery: {kind: gallery, statistics: statistics}
  masking: {kind: masking, statistics: statistics}
  reconstruction: {kind: reconstruction, sae: sae}
  frontier: {kind: frontier}
  remapping: {kind: remapping, before: statistics, after: statistics}
  matching: {kind: matching, first: sae, second: sae}
  adaptation: {kind: adaptation, sae: sae}
"""
"""An experiment in which every table is written once."""
NOTICE = "<!-- Written by docs/generate.py from the code; do not edit. -->"
BEGIN, END = "<!-- begin: written by docs/generate.py -->", "<!-- end -->"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def rows(header: tuple[str, ...], body: Iterator[tuple[str, ...]]) -> str:
    return "\n".join([row(*header), row(*["---"] * len(header)), *(row(*cells) for cells in body)])


def prose(text: str) -> str:
    """A paragraph in lines of at most 110 characters."""
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def code_list(names: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# Tables


def check_complete() -> None:
    """Ends the program if the code has a table, or an evaluation, that is not in `TABLES`."""
    known = {schema.name for schemas in TABLES.values() for schema in schemas}
    for info in pkgutil.walk_packages(pipeline.__path__, f"{pipeline.__name__}."):
        if info.name.rpartition(".")[2] in ("worker", "kernels"):
            continue  # A program, and a module that needs Triton.
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, TableSchema) and value.name not in known:
                raise SystemExit(f"docs/generate.py: say in TABLES which stage writes `{value.name}`.")
    for kind in KINDS["evaluations"]:
        if kind not in TABLES:
            raise SystemExit(f"docs/generate.py: say in TABLES what the evaluation `{kind}` writes.")


def empty_store(folder: Path) -> Store:
    """A store in which every table is there and has no rows, so that it can be asked what a reader sees."""
    store = Store(folder)
    nodes: dict[str, RecordedNode] = {}
    for node in parse(EXPERIMENT, "docs").nodes():
        inputs = {role: nodes[address].key for role, address in node.inputs.items()}
        key = artifact_key(node.stage.name, node.stage.version, {}, inputs)
        builder = store.begin(store.at(node.stage.name, key))
        for schema in TABLES.get(node.stage.name, ()):
            builder.write_table(schema, {column.name: [] for column in schema.columns})
        store.commit(builder, node.stage.version, {}, inputs, {}, {})
        names = {name: value for name, value in vars(node.names).items() if value is not None}
        nodes[node.address] = RecordedNode(node.stage.name, key, names, node.inputs)
    store.records.write("docs", ExperimentRecord(nodes), newest=True)
    return store


def tables_page() -> str:
    check_complete()
    with tempfile.TemporaryDirectory() as folder:
        store = empty_store(Path(folder))
        catalog = Catalog(store)
        sentences = {(table, column): text for table, column, _, text in describe(store)}
        parts = [
            f"# Tables\n\n{NOTICE}",
            prose(
                "This page lists every table, with the type Polars gives each column and the sentence that is "
                "stored in the Parquet file. [Query](query.md) says how to ask for them and how to join them."
            ),
            prose(
                "Every table has the column `artifact`: the key of the artifact the row came from. `patchsae query`, "
                "`patchsae tables` and the Python API add the columns below from the store's records and "
                "manifests; they are not in the files. A table gets those that apply to it, which its section "
                "names. `frontier` has `dataset` too where the evaluation names one."
            ),
            rows(("added column", "meaning"), ((f"`{name}`", text) for name, text in ADDED.items())),
            prose(
                "Symbols: f_it is a latent's activation on token t of image i, N the number of images, T the tokens "
                "per image, and a_i = (1/T) sum_t f_it the token mean. An image *fires* a latent if f_it > 0 on at "
                "least one token. c is a class. x is a token's activation and x_hat its reconstruction."
            ),
        ]
        for stage, schemas in TABLES.items():
            for schema in schemas:
                parts += one_table(stage, schema, catalog, sentences)
        parts += [
            f"## `{ARTIFACTS}`",
            "One row per artifact of the store. It is made when a query names it; there is no file of it.",
            rows(
                ("column", "type", "meaning"),
                ((f"`{name}`", str(kind), text) for name, (kind, text) in ARTIFACT_COLUMNS.items()),
            ),
        ]
    return "\n\n".join(parts) + "\n"


def one_table(
    stage: str, schema: TableSchema, catalog: Catalog, sentences: Mapping[tuple[str, str], str]
) -> list[str]:
    """The section of a table."""
    artifact, *_ = catalog.artifacts[schema.name]
    stored = pq.read_schema(artifact.table_files(schema.name)[0])
    seen = catalog.scan(schema.name).collect_schema()
    added = [name for name in seen if name not in stored.names]
    columns = [name for name in seen if name in stored.names and name != "artifact"]

    def body() -> Iterator[tuple[str, ...]]:
        for name in columns:
            may_be_null = " or null" if stored.field(name).nullable else ""
            yield f"`{name}`", f"{seen[name]}{may_be_null}", sentences[schema.name, name]

    return [
        f"## `{schema.name}`",
        prose(f"{schema.description} Written by the stage `{stage}`. Added when read: {code_list(added)}."),
        rows(("column", "type", "meaning"), body()),
    ]


# Kinds


def fields_table(config: type[Config], without: type[Config] | None = None) -> str:
    """The fields of a config; those it has in common with `without` are left out."""
    link = {SETTINGS: "[see below](#shared-settings)"}
    found = [
        (f"`{one.name}`", link.get(one.type, one.type), one.default, one.meaning)
        for one in described(config, without)
    ]
    return rows(("field", "type", "default", "meaning"), iter(found)) if found else "No field of its own."


def kinds_page() -> str:
    parts = [
        f"# Kinds and their fields\n\n{NOTICE}",
        prose(
            "An experiment file has maps named `datasets`, `backbones`, `adapters`, `saes` and "
            "`evaluations`. Each entry has a "
            "`kind`, which is one of those below, and the fields of that kind. A field goes into a key unless its "
            "line says otherwise or it names another entry ([keys](stores.md#keys))."
        ),
    ]
    for section, base in BASES.items():
        kinds = KINDS[section]
        parts.append(f"## `{section}`\n\n{code_list(list(kinds))}")
        if base.model_fields:
            whose = "trained SAE has" if section == "saes" else f"entry of `{section}` has"
            parts.append(f"Fields that every {whose}:\n\n{fields_table(base)}")
        for kind, config in kinds.items():
            shared = base if issubclass(config, base) else None
            parts.append(f"### `{kind}`\n\n{prose(purpose(config))}\n\n{fields_table(config, shared)}")
    parts.append("## Shared settings")
    for name, settings in SHARED.items():
        parts.append(f"### `{name}`\n\n{purpose(settings)}\n\n{fields_table(settings)}")
    return "\n\n".join(parts) + "\n"


def kinds_list() -> str:
    """The names of everything there are several of."""
    named = {
        "datasets": list(KINDS["datasets"]),
        "backbones": list(KINDS["backbones"]),
        "adapters": list(KINDS["adapters"]),
        "SAEs": list(KINDS["saes"]),
        "evaluations": list(KINDS["evaluations"]),
        "stages": list(STAGES),
        "tables": [schema.name for schemas in TABLES.values() for schema in schemas],
        "formats of other tools, read": list(READABLE),
        "formats of other tools, written": list(WRITABLE),
        "presets": sorted(path.stem for path in PRESETS.glob("*.yaml")),
    }
    return rows(("what", "names"), ((what, code_list(names)) for what, names in named.items()))


def data_sets_table() -> str:
    """The data sets of the kind `coop`."""

    def body() -> Iterator[tuple[str, ...]]:
        for name, facts in FACTS.items():
            n_base = math.ceil(facts.n_classes / 2)
            halves = f"{facts.n_classes:,} ({n_base} / {facts.n_classes - n_base})"
            n_images = (
                f"{facts.splits[split]:,}" if split in facts.splits else ""
                for split in ("train", "val", "test")
            )
            yield f"`{name}`", f"`{facts.folder}/`", halves, *n_images, f"`{facts.prompt}`"

    return rows(("name", "folder", "classes (base / novel)", "train", "val", "test", "prompt"), body())


def between_markers(path: Path, text: str) -> str:
    """The hand-written page `path` with `text` in its generated part."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path.name}: has lost its line `{BEGIN}` or `{END}`.")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def pages() -> dict[Path, str]:
    """Every generated file with what belongs into it."""
    extending, api, datasets = (DOCS / f"{page}.md" for page in ("extending", "api", "datasets"))
    return {
        DOCS / "tables.md": tables_page(),
        DOCS / "kinds.md": kinds_page(),
        datasets: between_markers(datasets, data_sets_table()),
        extending: between_markers(extending, kinds_list()),
        api: between_markers(api, reference(API.read_text(encoding="utf-8"))),
    }


def main() -> None:
    stale = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(DOCS.parent).as_posix())
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv[1:] and stale:
        raise SystemExit(f"{', '.join(stale)}: not what the code says; run `uv run python -m docs.generate`.")
    print(f"written: {', '.join(stale)}" if stale else "everything is up to date")


if __name__ == "__main__":
    main()
