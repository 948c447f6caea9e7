"""What a store has of the quantities that are published: one row per quantity and run.

A *run* is an adapter or an SAE of an experiment. Runs that differ in the seed alone have the same `setting`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from patchsae.pipeline.results.paper.published import CELL, DATASETS, HALVES, gain, saes
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.artifacts import Artifact

Config = Mapping[str, Any]
"""A config as an experiment's record has it."""

_BLOCKS = {"ViT-B-16": 12, "ViT-L-14": 24}
_MODEL = "ViT-B-16"
"""The model of all published tables but some rows of Table 2."""
# The layer that Table 2 has for the last block but one, whatever the number of blocks.
_LAST_BUT_ONE = 11
_GROUPS = ("high", "high_to_low", "low_to_high")
# Fields that name an entry, or tell runs apart that are averaged.
_NO_SETTINGS = (
    *("kind", "seed", "checkpoint", "path", "dataset", "datasets", "adapters", "backbone", "sae"),
    *("before", "after", "classes"),
)
_LAST_ROWS = 20

SCHEMA = {
    **dict.fromkeys((*CELL, "experiment", "settings", "run"), pl.String),
    "seed": pl.Int64,
    "value": pl.Float64,
    "made": pl.Float64,
}
"""`settings` are those of the evaluation and the run, as JSON. `made`: when, in seconds."""


@dataclass
class Measured:
    """Collects rows, and counts what could not be taken."""

    catalog: Catalog
    rows: list[dict[str, Any]] = field(default_factory=list)
    n_other_models: int = 0
    """Adapters and SAEs of published datasets, but of other models than the published ones."""

    def add(self, one: _One, cell: tuple[str | None, ...], value: float | None, run: _Run) -> None:
        if value is not None:
            row = dict(zip(CELL, cell, strict=True))
            about = {"experiment": one.name, "settings": json.dumps(run.settings, sort_keys=True)}
            made = float(one.artifact.manifest.provenance["started"])
            self.rows.append(
                {**row, **about, "run": run.name, "seed": run.seed, "value": value, "made": made}
            )

    def each(self, table: str) -> Iterator[_One]:
        """The artifacts that have a table, each once, with an experiment that has it."""
        for artifact in self.catalog.artifacts.get(table, []):
            for record, node in self.catalog.records(artifact)[:1]:
                if record.experiment is not None:
                    yield _One(artifact, record.experiment, node.names)


@dataclass(frozen=True)
class _One:
    """An artifact, the experiment that has it, and the names it has there."""

    artifact: Artifact
    experiment: Config
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        return str(self.experiment["name"])

    def entry(self, section: str, name: str | None) -> Config:
        found: Config = self.experiment.get(section, {}).get(name, {})
        return found

    def evaluation(self) -> Config:
        return self.entry("evaluations", self.names.get("evaluation"))

    def rows(self, table: str) -> pl.DataFrame:
        return self.artifact.scan(table).collect()


@dataclass(frozen=True)
class _Run:
    """An adapter or an SAE, as it was evaluated."""

    name: str
    seed: int | None
    settings: Config


def measured(catalog: Catalog) -> tuple[pl.DataFrame, int]:
    """The rows of a store, with the columns of `SCHEMA`, and the number of runs of other models.

    Of rows that are of the same quantity and run, the newest is kept.
    """
    found = Measured(catalog)
    for collect in _COLLECTORS:
        collect(found)
    frame = pl.DataFrame(found.rows, schema=SCHEMA)
    same = [*CELL, "experiment", "settings", "run"]
    return frame.sort("made").unique(same, keep="last", maintain_order=True), found.n_other_models


def published_name(dataset: Config) -> str | None:
    """The name that published tables have for a dataset of an experiment; None for others."""
    if dataset.get("kind") == "coop" and dataset.get("name") in DATASETS:
        return str(dataset["name"])
    if dataset.get("kind") == "image_folder" and dataset.get("class_names") == "imagenet":
        return "imagenet"
    return None


def model_of(backbone: Config) -> str | None:
    """The name of a backbone's architecture if its weights can be OpenAI's; None for others."""
    if backbone.get("kind") != "open_clip" or backbone.get("pretrained") not in (None, "openai"):
        return None
    return str(backbone["model"]).removesuffix("-quickgelu")


def settings(*configs: Config) -> dict[str, Any]:
    """The fields of configs that are no names and no seeds, nested ones with dots; later configs win."""
    found: dict[str, Any] = {}
    for config in configs:
        for name, value in config.items():
            if isinstance(value, dict):
                found |= {f"{name}.{inner}": one for inner, one in value.items()}
            elif name not in _NO_SETTINGS:
                found[name] = value
    return found


def _adaptation(found: Measured) -> None:
    """Table 1 and the accuracies of adapters, from evaluations `adaptation`."""
    for one in found.each("adaptation"):
        evaluation = {**settings(one.evaluation()), "sae": one.names.get("sae")}
        for row in one.rows("adaptation").iter_rows(named=True):
            _add_adapter(found, one, row["adapter"], row["dataset"], evaluation, row)


def _remapping(found: Measured) -> None:
    """The same of single adapters, from evaluations `remapping` that the experiment names."""
    for one in found.each("remapping"):
        if evaluation := one.evaluation():
            counted = one.entry("evaluations", evaluation["before"])
            for row in one.rows("remapping").iter_rows(named=True):
                names = (one.names["backbone"], one.names["dataset"])
                both = {**settings({"statistics": settings(counted)}, evaluation), "sae": one.names["sae"]}
                _add_adapter(found, one, *names, both, row)


def _add_adapter(
    found: Measured, one: _One, name: str, of: str, evaluation: Config, row: Mapping[str, Any]
) -> None:
    """Adds what a row says of the adapter `name` on a half of the classes of the dataset `of`."""
    adapter, dataset = one.entry("adapters", name), published_name(one.entry("datasets", of))
    classes = row["classes"]
    # Of an adapter that was read from a file the classes need not be given.
    if not adapter or dataset is None or classes not in HALVES or adapter["classes"] not in ("base", None):
        return
    if model_of(one.entry("backbones", adapter["backbone"])) != _MODEL:
        found.n_other_models += 1
        return
    method, before, after = adapter["kind"], row["accuracy_before"], row["accuracy_after"]
    clip = _Run("clip", None, evaluation)
    run = _Run(name, adapter["seed"], {**evaluation, **settings(adapter)})
    for table in ("base-to-novel", *(["table-1"] if method == "maple" else [])):
        if before is not None:
            found.add(one, (table, dataset, "clip", classes, "accuracy"), 100 * before, clip)
            found.add(one, (table, dataset, method, classes, "accuracy"), 100 * after, run)
    if method != "maple":
        return
    for group in _GROUPS:
        found.add(one, ("table-1", dataset, method, classes, group), row[group], run)
    if classes == "base" and before is not None:
        mended = gain(100 * before, 100 * after)
        found.add(one, ("table-1", dataset, method, classes, "gain"), mended, run)


def _of_imagenet(found: Measured, one: _One) -> Config | None:
    """The SAE of an artifact that is about ImageNet and the published models; None for others."""
    sae = one.entry("saes", one.names.get("sae"))
    if published_name(one.entry("datasets", one.names.get("dataset"))) != "imagenet" or not sae:
        return None
    if one.evaluation().get("classes") is not None or one.names.get("backbone") != sae["backbone"]:
        return None
    if one.entry("adapters", sae["backbone"]):
        return None
    if model_of(one.entry("backbones", sae["backbone"])) not in _BLOCKS:
        found.n_other_models += 1
        return None
    return sae


def rows_of_table_2(sae: Config, backbone: Config) -> list[str]:
    """The names of the published SAEs that have the settings of one of ours."""
    model = str(model_of(backbone))
    hook, n_blocks = backbone["extract"]["hook_block"], _BLOCKS[model]
    layer = hook % n_blocks + 1
    if model != _MODEL and layer == n_blocks - 1:
        layer = _LAST_BUT_ONE
    if sae["kind"] != "relu_l1" or sae["n_latents"] is not None:
        return []
    same = {
        "model": model,
        "layer": layer,
        "tokens": {"prefix": "cls"}.get(sae["tokens"], sae["tokens"]),
        "l1_coefficient": sae["l1_coefficient"],
        "expansion": sae["expansion"],
        "ghost_gradients": sae["ghost_gradients"],
        "b_dec_init": sae["b_dec_init"].removesuffix("_reference"),
    }
    return saes().filter(**same)["sae"].to_list()


def _saes(found: Measured) -> None:
    """Table 2: from evaluations `reconstruction`, and from the last rows of the table `training`."""
    for one in found.each("reconstruction"):
        # An SAE of some tokens is measured on all of them there.
        if (sae := _of_imagenet(found, one)) is not None and sae.get("tokens") == "all":
            evaluation = one.evaluation()
            by_way = {r["replaced"]: r for r in one.rows("reconstruction").iter_rows(named=True)}
            split = evaluation.get("split", "test")
            values = {
                **one.artifact.manifest.summary,
                "cross_entropy": by_way["reconstruction"]["cross_entropy"],
                "cross_entropy_original": by_way["original"]["cross_entropy"],
            }
            _add_sae(found, one, sae, values, {"measured on": split, "limit": evaluation.get("limit")})
    for one in found.each("training"):
        if (sae := _of_imagenet(found, one)) is not None:
            last = one.rows("training").tail(_LAST_ROWS).mean().row(0, named=True)
            _add_sae(
                found,
                one,
                sae,
                {**last, "mse_per_norm": last["reconstruction"]},
                {"measured on": "the last training batches", "limit": None},
            )


_OF_SAES = ("mse_per_norm", "mse", "cross_entropy", "cross_entropy_original", "l1_norm", "l0")


def _add_sae(found: Measured, one: _One, sae: Config, values: Config, where: Config) -> None:
    images = one.entry("datasets", sae["dataset"])
    trained_on = {name: images.get(name) for name in ("splits", "train_per_class")}
    run = _Run(one.names["sae"], sae.get("seed"), {**settings(sae), **trained_on, **where})
    for published in rows_of_table_2(sae, one.entry("backbones", sae["backbone"])):
        for quantity in (*_OF_SAES, "explained_variance_uncentred"):
            found.add(one, ("table-2", "imagenet", published, None, quantity), values.get(quantity), run)


def _masking(found: Measured) -> None:
    """ImageNet with the SAE in place: from evaluations `masking`, and `reconstruction` for what it has."""
    for one in found.each("masking"):
        if (sae := _of_imagenet(found, one)) is None or not _is_b16(one, sae):
            continue
        evaluation = one.evaluation()
        as_published = {"split": "test", "error": "dropped", "ablation": "zero"}
        if any(evaluation.get(name, value) != value for name, value in as_published.items()):
            continue
        rows = one.rows("masking").filter(pl.col("class").is_null())
        n_latents = rows["k"].max()
        run = _Run(one.names["sae"], sae.get("seed"), settings(sae, evaluation))
        for quantity, selection, mode, k in (
            ("zero_shot", "none", "original", None),
            ("on_all", "none", "reconstruction", n_latents),
            ("off_all", "class", "off", n_latents),
            ("off_10", "class", "off", 10),
        ):
            row = rows.filter(pl.col("k").eq_missing(k), selection=selection, mode=mode)
            if len(row):
                # The paper's code takes the mean of the classes' accuracies (spec 5.3).
                value = 100 * row["class_mean_accuracy"][0]
                found.add(one, ("masking", "imagenet", "clip", None, quantity), value, run)
    for one in found.each("reconstruction"):
        if (sae := _of_imagenet(found, one)) is None or not _is_b16(one, sae):
            continue
        if one.evaluation().get("split", "test") != "test":
            continue
        run = _Run(one.names["sae"], sae.get("seed"), settings(sae, one.evaluation()))
        by_way = {r["replaced"]: r["accuracy"] for r in one.rows("reconstruction").iter_rows(named=True)}
        for quantity, way in (("zero_shot", "original"), ("on_all", "reconstruction")):
            found.add(one, ("masking", "imagenet", "clip", None, quantity), 100 * by_way[way], run)


def _is_b16(one: _One, sae: Config) -> bool:
    return model_of(one.entry("backbones", sae["backbone"])) == _MODEL


_COLLECTORS: tuple[Callable[[Measured], None], ...] = (_adaptation, _remapping, _saes, _masking)
