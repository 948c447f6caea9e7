"""Our figures beside the published ones: means over seeds, no mixing of settings, and what is missing."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from patchsae.pipeline.evaluations.masking.table import masking_schema
from patchsae.pipeline.evaluations.reconstruction.tables import RECONSTRUCTION
from patchsae.pipeline.evaluations.remapping.tables import REMAPPING
from patchsae.pipeline.results.paper.compare import COLUMNS, compare
from patchsae.pipeline.results.paper.ours import model_of, published_name
from patchsae.pipeline.results.paper.published import DATASETS, figures, harmonic_mean
from patchsae.pipeline.training.metrics import TRAINING
from patchsae.storage.errors import UserError
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from tests.support.adaptation_store import CLIP, adapter, commit, commit_adaptation

GROUPS = ("high", "high_to_low", "low_to_high")
PETS = {"my-cats": {"kind": "coop", "name": "oxford_pets", "root": "/data"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def cell(frame: pl.DataFrame, **same: Any) -> dict[str, Any]:
    """The only row with these values."""
    [row] = frame.filter(
        pl.all_horizontal(pl.col(name).eq_missing(one) for name, one in same.items())
    ).to_dicts()
    return row


def three_seeds(**fields: Any) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, float]]]:
    adapters = {f"maple-{seed}": adapter("my-cats", seed, **fields) for seed in (1, 2, 3)}
    values = {
        (f"maple-{seed}", classes): {
            "accuracy_before": 0.9 if classes == "base" else 0.8,
            "accuracy_after": 0.95 + 0.01 * (seed - 2) if classes == "base" else 0.7,
            "high": 11.0 + seed,
            "low_to_high": 0.25,
        }
        for seed in (1, 2, 3)
        for classes in ("base", "novel")
    }
    return adapters, values


def test_an_empty_store_shows_every_published_figure_and_says_what_to_run(store: Store) -> None:
    found = compare(store)
    assert tuple(found.frame.columns) == COLUMNS
    assert len(found.frame) == len(figures())
    assert found.frame["ours"].null_count() == len(found.frame)
    assert found.n_compared == 0
    assert {table: text.split("`")[1] for table, text in found.missing.items()} == {
        "table-1": "patchsae run paper-table1",
        "table-2": "patchsae run paper-table2",
        "masking": "patchsae run paper-compat --up-to masking/imagenet-masking",
        "base-to-novel": "patchsae run paper-table1",
    }
    assert not store.root.exists()


def test_ours_are_means_over_seeds_matched_by_the_datasets_config(store: Store) -> None:
    commit_adaptation(store, "mine", PETS, *three_seeds())
    found = compare(store)
    about = {"table": "table-1", "dataset": "oxford_pets", "method": "maple"}
    row = cell(found.frame, **about, classes="base", quantity="accuracy")
    assert (row["published"], row["n_seeds"], row["setting"]) == (92.04, 3, "mine")
    assert row["ours"] == pytest.approx(95)
    assert row["std"] == pytest.approx(1)
    assert row["difference"] == pytest.approx(95 - 92.04)
    assert row["remark"] == "95.43 in base-to-novel"
    assert cell(found.frame, **about, classes="novel", quantity="high")["ours"] == pytest.approx(13)
    gains = [100 * (after - 90) / 10 for after in (94, 95, 96)]
    row = cell(found.frame, **about, classes="base", quantity="gain")
    assert (row["ours"], row["std"]) == (pytest.approx(mean(gains)), pytest.approx(stdev(gains)))
    # CLIP has no seeds.
    row = cell(found.frame, **{**about, "method": "clip"}, classes="novel", quantity="accuracy")
    assert (row["ours"], row["n_seeds"], row["std"]) == (pytest.approx(80), 0, None)
    assert set(found.missing) == {"table-2", "masking"}
    # Of 11 datasets one is there, so there is no mean over them.
    assert found.frame.filter(dataset="mean")["ours"].null_count() == len(found.frame.filter(dataset="mean"))


def test_harmonic_means_are_of_the_mean_accuracies_and_have_the_deviation_over_seeds(store: Store) -> None:
    commit_adaptation(store, "mine", PETS, *three_seeds())
    found = compare(store, tables=["base-to-novel"])
    assert set(found.frame["table"]) == {"base-to-novel"}
    about = {"dataset": "oxford_pets", "method": "maple", "quantity": "harmonic_mean"}
    row = cell(found.frame, **about)
    by_seed = [harmonic_mean(after, 70) for after in (94, 95, 96)]
    assert (row["published"], row["n_seeds"]) == (96.58, 3)
    assert (row["ours"], row["std"]) == (pytest.approx(harmonic_mean(95, 70)), pytest.approx(stdev(by_seed)))
    with_seeds = compare(store, seeds=True, tables=["base-to-novel"]).frame
    rows = with_seeds.filter(**about).select("seed", "ours", "std", "n_seeds").rows()
    assert rows[1:] == [
        (seed, pytest.approx(one), None, None) for seed, one in zip((1, 2, 3), by_seed, strict=True)
    ]
    assert with_seeds.filter(pl.col("seed").is_null()).equals(found.frame)


def test_the_mean_over_the_11_datasets_needs_all_of_them(store: Store) -> None:
    datasets = {name: {"kind": "coop", "name": name} for name in DATASETS}
    adapters = {f"{name}-{seed}": adapter(name, seed) for name in DATASETS for seed in (1, 2)}
    values = {
        (f"{name}-{seed}", classes): {
            "accuracy_before": 0.5,
            "accuracy_after": 0.5 + 0.01 * i + 0.02 * (seed - 1.5),
        }
        for i, name in enumerate(DATASETS)
        for seed in (1, 2)
        for classes in ("base", "novel")
        # Of seed 2 a dataset is missing.
        if (name, seed) != ("dtd", 2)
    }
    commit_adaptation(store, "mine", datasets, adapters, values)
    frame = compare(store).frame
    row = cell(frame, table="table-1", dataset="mean", method="maple", classes="base", quantity="accuracy")
    assert (row["published"], row["ours"], row["n_seeds"]) == (75.75, pytest.approx(54), 1)
    row = cell(frame, table="base-to-novel", dataset="mean", method="maple", quantity="harmonic_mean")
    assert (row["published"], row["ours"]) == (78.55, pytest.approx(54))
    row = cell(
        frame, table="base-to-novel", dataset="mean", method="clip", classes="base", quantity="accuracy"
    )
    assert (row["published"], row["ours"]) == (69.34, pytest.approx(50))


def test_settings_are_not_mixed_and_are_told_apart(store: Store) -> None:
    adapters, values = three_seeds()
    adapters |= {"few": adapter("my-cats", 1, shots=4), "fast": adapter("my-cats", 1, lr=0.01)}
    for name in ("few", "fast"):
        values[name, "base"] = {"accuracy_before": 0.9, "accuracy_after": 0.6}
    commit_adaptation(store, "mine", PETS, adapters, values)
    commit_adaptation(store, "other", PETS, *three_seeds(), evaluation={"tau": 0.4})
    frame = compare(store).frame.filter(
        table="table-1", dataset="oxford_pets", method="maple", classes="base", quantity="accuracy"
    )
    shown = {row["setting"]: (row["ours"], row["n_seeds"], row["remark"]) for row in frame.to_dicts()}
    same = "95.43 in base-to-novel"
    assert shown == {
        "mine, lr 0.0035, shots 16, tau null": (pytest.approx(95), 3, same),
        "mine, lr 0.0035, shots 4, tau null": (pytest.approx(60), 1, f"{same}; 4 shots, published 16"),
        "mine, lr 0.01, shots 16, tau null": (pytest.approx(60), 1, same),
        "other, lr 0.0035, shots 16, tau 0.4": (pytest.approx(95), 3, same),
    }
    one = compare(store, experiment="other").frame.filter(pl.col("ours").is_not_null())
    assert set(one["setting"]) == {"other"}


def test_the_newest_of_two_results_of_a_run_counts(store: Store) -> None:
    adapters, values = three_seeds()
    for started, after in ((2.0, 0.5), (1.0, 0.4)):
        changed = {key: {**one, "accuracy_after": after} for key, one in values.items()}
        newest = commit_adaptation(store, "mine", PETS, adapters, changed, started=started)
        if started == 2.0:
            first = newest
    # Both under one experiment, as two evaluations of the same settings have it.
    record = store.records.all()["mine"]
    nodes = {
        **record.nodes,
        "adaptation/again": RecordedNode("adaptation", first.key, record.nodes["adaptation/all"].names),
    }
    store.records.write("mine", ExperimentRecord(nodes, record.experiment), newest=True)
    row = cell(
        compare(store, tables=["table-1"]).frame,
        dataset="oxford_pets",
        method="maple",
        classes="base",
        quantity="accuracy",
    )
    assert (row["ours"], row["n_seeds"]) == (pytest.approx(50), 3)


def test_other_models_other_datasets_and_adapters_of_all_classes_are_left_out(store: Store) -> None:
    adapters, values = three_seeds()
    commit_adaptation(store, "small", PETS, adapters, values, backbone={**CLIP, "model": "ViT-B-32"})
    commit_adaptation(
        store, "laion", PETS, adapters, values, backbone={**CLIP, "pretrained": "laion2b_s34b_b88k"}
    )
    commit_adaptation(
        store, "own", {"my-cats": {"kind": "image_folder", "class_names": "folders"}}, adapters, values
    )
    every = {name: {**one, "classes": "novel"} for name, one in adapters.items()}
    commit_adaptation(store, "novel", PETS, every, values)
    found = compare(store)
    assert found.n_compared == 0
    assert found.remarks == [
        "12 results of published datasets left out: their backbone is not OpenAI's CLIP ViT-B/16, of which the published "
        "tables are."
    ]


def test_what_methods_were_published_for_the_mean_alone_is_shown_beside_their_dataset(store: Store) -> None:
    adapters, values = three_seeds(kind="coop")
    commit_adaptation(store, "mine", PETS, adapters, values)
    frame = compare(store).frame
    row = cell(
        frame,
        table="base-to-novel",
        dataset="oxford_pets",
        method="coop",
        classes="base",
        quantity="accuracy",
    )
    assert (row["published"], row["difference"], row["ours"]) == (None, None, pytest.approx(95))
    places = frame.filter(table="base-to-novel")["dataset"].to_list()
    assert sorted(range(len(places)), key=lambda i: places.index(places[i])) == list(range(len(places)))
    # Table 1 is MaPLe's.
    assert frame.filter(table="table-1", method="coop").is_empty()


def test_eurosat_and_dtd_are_marked_where_they_vary(store: Store) -> None:
    frame = compare(store).frame
    remarks = frame.filter(pl.col("remark").str.contains("between seeds"))
    assert set(remarks.select("dataset", "classes").rows()) == {("eurosat", "novel"), ("dtd", "novel")}
    assert set(remarks["method"]) == {"maple", "promptsrc"}
    assert (
        "varies by 3.9 points"
        in cell(
            frame, table="table-1", dataset="eurosat", method="maple", classes="novel", quantity="accuracy"
        )["remark"]
    )
    suspect = frame.filter(confidence="suspect")
    assert suspect.select("method", "quantity").rows() == [("cls-large-l1-8e-4", "l1_norm")]
    assert "does not fit" in suspect["remark"].item()


def test_a_remapping_counts_where_the_experiment_names_it(store: Store) -> None:
    numbers = {"accuracy_before": 0.9, "accuracy_after": 0.95, **dict.fromkeys(GROUPS, 11.5)}
    rows = [
        {**dict.fromkeys((c.name for c in REMAPPING.columns), 0), "classes": classes, **numbers}
        for classes in ("base", "novel", "all")
    ]
    one = commit(store, "remapping", {"of": "pets"}, REMAPPING, rows)
    names = {"dataset": "my-cats", "backbone": "maple", "sae": "relu", "evaluation": "pets"}
    # One that another evaluation made, and that has no entry of its own.
    made = {**names, "evaluation": "pets-seed2"}
    experiment = {
        "name": "mine",
        "datasets": PETS,
        "backbones": {"clip": CLIP},
        "adapters": {"maple": adapter("my-cats", 3)},
        "evaluations": {
            "pets": {
                "kind": "remapping",
                "before": "counts",
                "after": "adapted",
                "upper": 50,
                "prompts": {"templates": "imagenet", "renormalise": False},
            },
            "counts": {"kind": "statistics", "sae": "relu", "tau": 0.2, "classes": None},
        },
    }
    for of in (made, names):
        nodes = {"remapping/one": RecordedNode("remapping", one.key, of)}
        store.records.write("mine", ExperimentRecord(nodes, experiment), newest=True)
        frame = compare(store, seeds=True).frame.filter(pl.col("ours").is_not_null())
        assert frame.is_empty() == (of is made)
    assert set(frame["classes"]) == {"base", "novel", None}
    high = frame.filter(table="table-1", quantity="high", classes="base")
    assert high.select("published", "ours", "seed", "setting").rows() == [
        (11.11, 11.5, None, "mine"),
        (11.11, 11.5, 3, "mine"),
    ]
    clip = frame.filter(method="clip", classes="base", quantity="accuracy")
    assert clip.select("table", "remark").rows() == [
        ("table-1", "91.17 in base-to-novel"),
        ("base-to-novel", "templates: imagenet, published: dataset"),
    ]


SAE = {
    "kind": "relu_l1",
    "dataset": "in",
    "backbone": "clip",
    "n_latents": None,
    "tokens": "all",
    "seed": 0,
    "l1_coefficient": 8e-5,
    "expansion": 64,
    "ghost_gradients": True,
    "b_dec_init": "geometric_median_reference",
}


def commit_imagenet(store: Store, saes: dict[str, dict[str, Any]]) -> None:
    """Records an experiment with SAEs on ImageNet: their training, their reconstruction and their masking."""
    nodes, evaluations = {}, {}
    for i, name in enumerate(saes):
        names = {"dataset": "in", "backbone": saes[name]["backbone"], "sae": name}
        curve = [{**dict.fromkeys((c.name for c in TRAINING.columns), 0), "l0": 100.0 + i} for _ in range(30)]
        one = commit(store, "train", {"sae": name}, TRAINING, curve)
        nodes[f"train/{name}"] = RecordedNode("train", one.key, names)
        ways = [
            {
                **dict.fromkeys((c.name for c in RECONSTRUCTION.columns), 0),
                "replaced": way,
                "accuracy": accuracy,
                "cross_entropy": 2 - accuracy,
            }
            for way, accuracy in (("original", 0.68), ("reconstruction", 0.64))
        ]
        summary = {"mse_per_norm": 0.0025, "l1_norm": 28.0, "l0": 150.0 + i}
        one = commit(store, "reconstruction", {"sae": name}, RECONSTRUCTION, ways, summary=summary)
        of = f"rec-{name}"
        nodes[f"reconstruction/{of}"] = RecordedNode("reconstruction", one.key, {**names, "evaluation": of})
        evaluations[of] = {"kind": "reconstruction", "sae": name, "split": "test", "classes": None}
        schema = masking_schema(())
        rows = [
            {
                **dict.fromkeys((c.name for c in schema.columns), None),
                **dict.fromkeys((c.name for c in schema.columns if c.type == pa.float64()), 0.0),
                "split": "test",
                "class": None,
                "n": 1,
                "n_correct": 1,
                "selection": selection,
                "mode": mode,
                "k": k,
                "class_mean_accuracy": accuracy,
            }
            for selection, mode, k, accuracy in (
                ("none", "original", None, 0.681),
                ("none", "reconstruction", 49152, 0.641),
                ("class", "off", 10, 0.29),
                ("class", "off", 49152, 0.001),
            )
        ]
        one = commit(store, "masking", {"sae": name}, schema, rows)
        of = f"mask-{name}"
        nodes[f"masking/{of}"] = RecordedNode("masking", one.key, {**names, "evaluation": of})
        evaluations[of] = {"kind": "masking", "statistics": "s", "split": "test", "classes": None}
    experiment = {
        "name": "imagenet",
        "datasets": {"in": {"kind": "image_folder", "class_names": "imagenet"}},
        "backbones": {"clip": CLIP},
        "adapters": {"maple": adapter("in")},
        "saes": saes,
        "evaluations": evaluations,
    }
    store.records.write("imagenet", ExperimentRecord(nodes, experiment), newest=True)


def test_saes_are_matched_with_table_2_by_their_settings(store: Store) -> None:
    commit_imagenet(
        store,
        {
            "paper": SAE,
            "again": {**SAE, "seed": 1},
            "other": {**SAE, "l1_coefficient": 1e-4},
            "of-an-adapter": {**SAE, "backbone": "maple"},
        },
    )
    found = compare(store, tables=["table-2"])
    frame = found.frame.filter(pl.col("ours").is_not_null())
    assert set(frame["method"]) == {"all-11"}
    l0 = frame.filter(quantity="l0", source="arXiv 2412.05276 Table 2")
    assert l0.select("published", "ours", "n_seeds", "setting").rows() == [
        (148.56, 150.5, 2, "imagenet, measured on test"),
        (148.56, 100.5, 2, "imagenet, measured on the last training batches"),
    ]
    row = cell(frame, quantity="cross_entropy")
    assert (row["published"], row["ours"]) == (1.885, pytest.approx(1.36))
    assert not found.missing
    assert not found.remarks


def test_imagenet_with_the_sae_in_place(store: Store) -> None:
    commit_imagenet(store, {"paper": SAE})
    frame = compare(store, tables=["masking"]).frame.filter(pl.col("source") != "FastSAE 0.1.3")
    masked = frame.filter(pl.col("setting").str.contains("statistics s"))
    assert dict(masked.select("quantity", "ours").rows()) == pytest.approx(
        {"zero_shot": 68.1, "on_all": 64.1, "off_all": 0.1}
    )
    others = frame.filter(~pl.col("setting").str.contains("statistics s"))
    assert dict(others.select("quantity", "ours").rows()) == pytest.approx({"zero_shot": 68, "on_all": 64})


def test_datasets_and_models_are_told_by_their_configs() -> None:
    assert published_name({"kind": "coop", "name": "dtd"}) == "dtd"
    assert published_name({"kind": "coop", "name": "imagenet_a"}) is None
    assert published_name({"kind": "image_folder", "class_names": "imagenet"}) == "imagenet"
    assert published_name({"kind": "shapes"}) is None
    assert model_of(CLIP) == "ViT-B-16"
    assert model_of({"kind": "shapes_clip"}) is None
    assert model_of({**CLIP, "pretrained": None, "checkpoint": "/weights/ViT-B-16.pt"}) == "ViT-B-16"


def test_an_unknown_experiment_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="no experiment `nothing`"):
        compare(store, experiment="nothing")
