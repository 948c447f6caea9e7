"""Two experiments that share an SAE, two statistics of one SAE, two SAEs of one name, two indexes of one dataset."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import numpy as np
import pytest

from patchsae.explorer.library import Library
from patchsae.explorer.resources import routes
from patchsae.pipeline.evaluations.statistics.tables import (
    CLASS_LATENTS,
    LATENT_IMAGES,
    TableSettings,
    latents_schema,
)
from patchsae.pipeline.images.tables import CLASSES, IMAGE_LABELS, IMAGES
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from patchsae.storage.tables import TableSchema

N_LATENTS = 6


def fill(out: Builder, schema: TableSchema, n: int, **columns: Any) -> None:
    """Writes a table of n rows whose other columns are 0 or empty."""
    zeros = {c.name: [""] * n if str(c.type) == "string" else np.zeros(n) for c in schema.columns}
    if "dead" in zeros:
        zeros |= {"dead": np.zeros(n, bool), "dense": np.zeros(n, bool)}
    out.write_table(schema, {**zeros, **columns})


def commit(
    store: Store, stage: str, config: dict[str, Any], inputs: dict[str, str], tables: Any = ()
) -> Artifact:
    with mock.patch.object(os, "fsync"):
        builder = store.begin(store.at(stage, artifact_key(stage, 1, config, inputs)))
        for schema, n, columns in tables:
            fill(builder, schema, n, **columns)
        if stage == "index":
            builder.identity = "f" * 64
        summary = {"n_latents": N_LATENTS, "n_images": 4, "n_classes": 2}
        return store.commit(builder, 1, config, inputs, summary, {"started": 1.0})


def statistics(store: Store, sae: Artifact, images: Artifact, split: str, tau: float) -> Artifact:
    latents = latents_schema(TableSettings().quantiles)
    tables = [
        (latents, N_LATENTS, {"latent": range(N_LATENTS), "frequency": np.arange(N_LATENTS) * tau}),
        (LATENT_IMAGES, 1, {}),
        (CLASS_LATENTS, 1, {}),
    ]
    inputs = {"sae": sae.key, "images": images.identity, "activations": "a" * 64}
    return commit(store, "statistics", {"split": split, "tau": tau}, inputs, tables)


def record(store: Store, name: str, **nodes: tuple[Artifact, dict[str, str]]) -> None:
    found = {
        f"{artifact.stage}/{address}": RecordedNode(artifact.stage, artifact.key, names)
        for address, (artifact, names) in nodes.items()
    }
    store.records.write(name, ExperimentRecord(found, {"name": name}), newest=True)


@pytest.fixture
def library(store: Store) -> Library:
    images = [
        (IMAGES, 4, {"image": range(4), "split": ["train"] * 4, "width": [10] * 4, "height": [10] * 4}),
        (CLASSES, 2, {"class": range(2), "class_name": ["a", "b"]}),
    ]
    index = commit(store, "index", {"seed": 1}, {}, images)
    commit(store, "index", {"seed": 2}, {}, images)
    shared, other = (commit(store, "train", {"kind": "topk", "k": k}, {}) for k in (1, 2))
    named = {"sae": "topk", "dataset": "photos", "backbone": "clip"}
    first = statistics(store, shared, index, "train", 0.1)
    again = statistics(store, shared, index, "train", 0.2)
    test = statistics(store, shared, index, "test", 0.1)
    of_other = statistics(store, other, index, "train", 0.1)
    statistics(store, other, index, "test", 0.5)
    record(
        store,
        "one",
        topk=(shared, named),
        first=(first, {**named, "evaluation": "first"}),
        again=(again, {**named, "evaluation": "again"}),
        test=(test, {**named, "evaluation": "test"}),
    )
    record(store, "two", topk=(shared, named), first=(first, {**named, "evaluation": "first"}))
    record(store, "three", topk=(other, named), first=(of_other, {**named, "evaluation": "first"}))
    return Library(store)


def test_every_view_has_its_own_id_and_label(library: Library) -> None:
    home = routes.answer(library, "home")
    views = home["views"]
    assert len(views) == len({view["key"] for view in views}) == len({view["label"] for view in views}) == 5
    labels = {view["label"] for view in views}
    assert "topk on photos (test)" in labels
    assert "topk on photos (train), again" in labels
    [shared] = [view for view in views if view["evaluation"] == "first" and len(view["experiments"]) == 2]
    assert set(shared["experiments"]) == {"one", "two"}


def test_an_sae_that_experiments_share_comes_once_and_two_of_one_name_twice(library: Library) -> None:
    saes = routes.answer(library, "home")["saes"]
    assert [one["name"] for one in saes] == ["topk", "topk"]
    assert sorted(len(one["views"]) for one in saes) == [2, 3]
    assert sorted(len(one["experiments"]) for one in saes) == [1, 2]


def test_each_view_answers_from_its_own_tables(library: Library) -> None:
    for view in library.views():
        tau = view.config["tau"]
        values = routes.answer(library, f"latents/{view.key}/column/frequency")["values"]
        assert values == [tau * i for i in range(N_LATENTS)]
        siblings = {one["key"] for one in routes.answer(library, f"view/{view.key}")["siblings"]}
        assert siblings == {
            other.key for other in library.views() if other.sae_key == view.sae_key and other.key != view.key
        }
        assert len(routes.answer(library, f"latent/{view.key}/2")["siblings"]) == len(siblings)


def test_a_view_without_a_record_is_named_by_its_keys(library: Library) -> None:
    [nameless] = [view for view in library.views() if not view.places]
    head = library.head(nameless)
    assert head["experiment"] is None and nameless.sae_key in head["label"]


def test_of_two_equal_indexes_the_newest_is_shown(library: Library) -> None:
    newest = library.snapshot().committed("index")[-1]
    assert all(view.images == newest for view in library.views())


def test_an_image_of_two_classes_is_shown_with_both(store: Store) -> None:
    tables = [
        (IMAGES, 3, {"image": range(3), "split": ["train", "train", "test"], "label": [0, 1, 0]}),
        (CLASSES, 2, {"class": range(2), "class_name": ["a", "b"]}),
        (IMAGE_LABELS, 4, {"image": [0, 0, 1, 2], "label": [0, 1, 1, 0]}),
    ]
    index = commit(store, "index", {"seed": 3}, {}, tables)
    view = statistics(store, commit(store, "train", {"k": 3}, {}), index, "train", 0.1).key[:16]
    found = {label: routes.answer(Library(store), f"class/{view}/{label}") for label in (0, 1)}
    assert {label: [one["image"] for one in of["images"]] for label, of in found.items()} == {
        0: [0],
        1: [0, 1],
    }
    assert [found[label]["n_images"] for label in (0, 1)] == [1, 2]
    assert found[1]["images"][0]["class_name"] == "b"
