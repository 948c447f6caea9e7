"""Tables of a store that holds two of everything: every row says what it is about, and joins find the right rows."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import polars as pl
import pytest

import patchsae
from patchsae.flows.cli.look_text import pick_json, pick_text, status_text
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.find import find, find_sae
from patchsae.pipeline.results.pick import best, candidates
from patchsae.pipeline.results.sql import describe, execute
from patchsae.pipeline.results.status import status_rows
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.wide_store import commit_saes, record

SAE = "kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 5"
TWO = f"""
name: two
datasets:
  shapes: {{kind: shapes, seed: 1, splits: {{train: 24, test: 12}}, label: colour}}
  digits: {{kind: digits, n_images: 40}}
backbones:
  clip: {{kind: shapes_clip}}
  early: {{kind: shapes_clip, extract: {{hook_block: 1}}}}
saes:
  one: {{{SAE}, dataset: shapes, backbone: clip}}
  two: {{{SAE}, dataset: digits, backbone: early}}
evaluations:
  of-one: {{kind: statistics, sae: one}}
  of-two: {{kind: statistics, sae: two}}
  other-images: {{kind: statistics, sae: one, dataset: digits}}
  few: {{kind: statistics, sae: one, classes: [red, blue], limit: 5}}
  masking-one: {{kind: masking, statistics: of-one, ks: [1, 5], n_random: 1}}
  masking-few: {{kind: masking, statistics: of-one, ks: [1], n_random: 1, limit: 6}}
  frontier: {{kind: frontier, dataset: shapes, saes: [one]}}
"""
# The same artifacts under other names, and another SAE under a name that is taken.
AGAIN = f"""
name: again
datasets:
  world: {{kind: shapes, seed: 1, splits: {{train: 24, test: 12}}, label: colour}}
backbones:
  clip: {{kind: shapes_clip}}
saes:
  first: {{{SAE}, dataset: world, backbone: clip}}
  two: {{{SAE}, seed: 7, dataset: world, backbone: clip}}
evaluations:
  of-one: {{kind: statistics, sae: first}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read only."""
    store = Store(tmp_path_factory.mktemp("two") / "a store")
    for text in (TWO, AGAIN):
        run(work_on(store, parse(text, "two")), Runtime())
    return store


def names(frame: pl.DataFrame | pl.LazyFrame, *columns: str) -> set[tuple[str | None, ...]]:
    rows = frame.lazy().select(pl.col(columns).cast(pl.String)).unique().collect()
    return set(rows.iter_rows())


def test_every_table_says_what_its_rows_are_about(store: Store) -> None:
    catalog = Catalog(store)
    about = names(catalog.scan("latents"), "dataset", "backbone", "sae", "evaluation")
    assert about == {
        ("shapes", "clip", "one", "of-one"),
        ("digits", "early", "two", "of-two"),
        ("digits", "clip", "one", "other-images"),
        ("shapes", "clip", "one", "few"),
        # One artifact known under two names shows both.
        ("world", "clip", "first", "of-one"),
    }
    assert names(catalog.scan("images"), "dataset") == {("shapes",), ("digits",), ("world",)}
    assert names(catalog.scan("training"), "sae", "dataset") == {
        ("one", "shapes"), ("two", "digits"), ("first", "world"), ("two", "world")
    }  # fmt: skip
    assert names(catalog.scan("masking"), "sae", "evaluation") == {
        ("one", "masking-one"),
        ("one", "masking-few"),
    }
    assert names(catalog.scan("frontier"), "sae", "evaluation") == {("one", "frontier")}


def test_the_join_of_the_readme_gives_every_latent_its_own_images(store: Store) -> None:
    joined = execute(
        store,
        "SELECT l.dataset, l.sae, l.evaluation, l.latent, l.rank, i.source, i.label AS of_image, l.label FROM latent_images l "
        "JOIN images i USING (dataset, image_set, image)",
    )
    assert joined.height == Catalog(store).scan("latent_images").select(pl.len()).collect().item()
    assert joined["of_image"].equals(joined["label"], check_names=False)
    digits = joined.filter(pl.col("dataset").cast(str) == "digits")["source"]
    assert digits.str.contains(r"^\d+$").all()
    assert joined.filter(pl.col("dataset").cast(str) != "digits")["source"].str.contains("/").all()


def test_latents_join_their_class_counts(store: Store) -> None:
    joined = execute(
        store,
        "SELECT l.evaluation, l.latent, l.n_tokens_above, sum(c.n_tokens) AS of_classes FROM latents l "
        "JOIN class_latents c USING (artifact, sae, evaluation, latent) "
        "GROUP BY l.evaluation, l.sae, l.latent, l.n_tokens_above",
    )
    assert joined.height > 20
    assert joined["n_tokens_above"].equals(joined["of_classes"], check_names=False)


def test_an_experiment_alone(store: Store) -> None:
    assert names(Catalog(store, "again").scan("latents"), "sae") == {("first",)}
    assert execute(store, "SELECT DISTINCT sae FROM training", "again").height == 2
    stages = [row["stage"] for row in status_rows(store, "again")]
    assert sorted(stages) == ["extract", "index", "statistics", "train", "train", "weights"]
    with pytest.raises(UserError, match=r"no experiment `agian`; did you mean `again`"):
        Catalog(store, "agian")


def test_artifacts_tell_names_inputs_and_config(store: Store) -> None:
    row = execute(store, "SELECT * FROM artifacts WHERE stage = 'train'").filter(
        pl.col("names").list.len() == 2
    )
    assert row["names"].item().to_list() == ["again: train/first", "two: train/one"]
    assert '"activations"' in row["inputs"].item() and '"k": 4' in row["config"].item()


def test_things_are_found_by_their_names(store: Store) -> None:
    assert find(store, "statistics/few").stage == "statistics"
    assert find_sae(store, "one") == find_sae(store, "train/first")
    with pytest.raises(
        UserError, match=r"two: several artifacts are called that, .*again: train/two.*two: train/two"
    ):
        find_sae(store, "two")
    assert find_sae(store, "two", "again") != find_sae(store, "two", "two")
    with pytest.raises(UserError, match=r"ones: nothing in .* has this address or key"):
        find_sae(store, "ones")


def test_every_column_of_every_table_has_a_sentence(store: Store) -> None:
    rows = describe(store)
    assert {row[0] for row in rows} >= {"artifacts", "images", "latents", "masking", "frontier", "training"}
    assert all(row[3].endswith(".") for row in rows), [row for row in rows if not row[3].endswith(".")]


def test_few_images_are_the_first_of_their_classes(store: Store) -> None:
    few = find(store, "few")
    assert few.manifest.summary["n_images"] == 5
    images = find(store, "index/shapes").scan("images").collect()
    wanted = images.filter(pl.col("split") == "train", pl.col("class_name").is_in(["red", "blue"]))["image"][
        :5
    ]
    assert set(few.scan("latent_images").collect()["image"]) <= set(wanted)
    assert find(store, "masking-few").manifest.summary["n_images"] == 6


def test_an_unknown_table_names_those_there_are(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no table `thongs`.*class_latents"):
        Catalog(store).scan("thongs")
    with pytest.raises(UserError, match="none yet: run an experiment first"):
        Catalog(Store(tmp_path / "nothing")).scan("latents")


def test_columns_are_there_even_where_nobody_knows_the_names(store: Store, tmp_path: Path) -> None:
    forgotten = Store(shutil.copytree(store.root, tmp_path / "store"))
    for name in forgotten.records.all():
        forgotten.records.forget(name)
    catalog = Catalog(forgotten)
    assert names(catalog.scan("latents"), "dataset", "backbone", "sae", "evaluation") == {(None,) * 4}
    assert catalog.scan("latents").select(pl.col("sae_key").n_unique()).collect().item() == 2
    columns = {name: catalog.scan(name).collect_schema().names() for name in catalog.artifacts}
    assert columns["images"][:2] == ["dataset", "image_set"] and "sae" not in columns["images"]
    assert columns["training"][:4] == ["dataset", "backbone", "sae", "image_set"]
    assert {"sae", "sae_key", "evaluation"} <= set(columns["frontier"])


FRONTIER = f"""
name: {{name}}
datasets: {{{{shapes: {{{{kind: shapes, seed: 1, splits: {{{{train: 24, test: 12}}}}}}}}}}}}
backbones: {{{{clip: {{{{kind: shapes_clip}}}}}}}}
saes: {{{{{{sae}}: {{{{{SAE}, dataset: shapes, backbone: clip}}}}}}}}
evaluations:
  statistics: {{{{kind: statistics, sae: {{sae}}, quantiles: {{quantiles}}}}}}
  frontier: {{{{kind: frontier}}}}
"""


def test_a_frontier_that_two_experiments_share_or_that_none_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name, sae, quantiles in (("first", "mine", "[0.5]"), ("second", "yours", "[0.5, 0.9]")):
        text = FRONTIER.format(name=name, sae=sae, quantiles=quantiles)
        run(work_on(store, parse(text, name)), Runtime())
    [frontier] = store.committed("frontier")
    assert names(Catalog(store).scan("frontier"), "sae") == {("mine",), ("yours",)}
    assert candidates(store, ["yours"]).height == candidates(store, []).height == 1
    # Two tables of other columns are described together.
    assert {"q50", "q90"} <= {column for table, column, *_ in describe(store) if table == "latents"}
    for name in ("first", "second"):
        store.records.forget(name)
    rows = candidates(store, [])
    assert rows["sae"].to_list() == [frontier.manifest.inputs["sae 0"][:16]]
    picked = best(rows, "fvu", None, None)
    assert f"train/{rows['sae'][0]}, {store.root}" in pick_text(rows, picked, "fvu")
    assert '"picked": true' in pick_json(rows, picked)


def test_names_are_those_of_the_newest_version_of_an_experiment(tmp_path: Path) -> None:
    """Somebody changes the YAML file and runs it again."""
    store = Store(tmp_path / "store")
    keys = []
    for seed in (1, 2):
        experiment = parse(
            AGAIN.replace("name: again", "name: mine").replace("seed: 7", f"seed: {seed}"), "mine"
        )
        keys.append(run(work_on(store, experiment), Runtime())["train/two"].key)
    first, second = keys
    assert first != second
    [earlier] = set(store.records.all()) - {"mine"}
    assert earlier.startswith("mine-")
    assert find_sae(store, "two").key == second == patchsae.open(store.root).sae("two").artifact.key
    assert (
        find_sae(store, "two", earlier).key
        == first
        == patchsae.open(store.root).sae("two", earlier).artifact.key
    )
    named = names(Catalog(store).scan("training"), "sae", "artifact")
    assert ("two", second) in named and (None, first) in named and ("two", first) not in named
    assert ("two", first) in names(Catalog(store, earlier).scan("training"), "sae", "artifact")
    rows = {row["key"]: row["names"] for row in status_rows(store)}
    assert rows[first] == [f"{earlier}: train/two"] and rows[second] == ["mine: train/two"]
    [shared] = [names for names in rows.values() if any("weights/" in name for name in names)]
    assert len({name.partition(":")[0] for name in shared}) == 2
    text = status_text(status_rows(store), store)
    [line] = [line for line in text.splitlines() if line.startswith("weights")]
    assert line.count("mine") == 1 and "mine: weights/" in line and "(and 1 other record)" in line
    [line] = [line for line in text.splitlines() if first[:16] in line]
    assert f"{earlier}: train/two " in line and "other record" not in line
    store.records.forget("mine")
    assert find_sae(store, "two").key == first, "the only version that is left"


def test_a_query_over_more_files_than_polars_has_threads_gives_every_row_without_a_warning(
    tmp_path: Path,
) -> None:
    wide = Store(tmp_path / "wide")
    made = commit_saes(
        wide, [{"kind": "topk", "seed": i} for i in range(540)], {"images": "a", "activations": "b"}
    )
    # Two experiments with the same names for other SAEs, and one SAE that only one of them has.
    record(wide, "first", {f"sae-{i}": artifact for i, artifact in enumerate(made[:300])})
    record(wide, "second", {f"sae-{i}": artifact for i, artifact in enumerate(made[299:])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = execute(wide, "SELECT sae, sae_key, max(step) AS step FROM training GROUP BY sae, sae_key")
    rows = rows.cast({"sae": str, "sae_key": str})
    expected = {(f"sae-{i}", made[i].key, i) for i in range(300)}
    assert set(rows.iter_rows()) == expected | {(f"sae-{i}", made[299 + i].key, 299 + i) for i in range(241)}
    assert rows.height == 541
    # Polars counts the scans that are open at once, and not the files. 512 is the most it allows.
    assert Catalog(wide).scan("training").explain(optimized=False).count("Parquet SCAN") == 1
    only = execute(wide, "SELECT step FROM training WHERE sae = 'sae-0'", "second")
    assert only["step"].to_list() == [299]
