"""What the resources answer for a small finished experiment, against its tables."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from starlette.testclient import TestClient

from patchsae.explorer.resources.columns import page, where
from patchsae.storage.store import Store
from tests.explorer.conftest import Open


@pytest.fixture
def client(explore: Open, small_store: Store) -> TestClient:
    return explore(small_store)


def ask(client: TestClient, path: str, **query: Any) -> dict[str, Any]:
    answered = client.get(f"/api/{path}", params=query)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


def view_of(client: TestClient) -> str:
    return str(ask(client, "home")["views"][0]["key"])


def table(store: Store, stage: str, name: str) -> pl.DataFrame:
    [artifact] = store.committed(stage)
    return artifact.scan(name).collect()


def test_home_tells_what_the_store_holds(client: TestClient, small_store: Store) -> None:
    home = ask(client, "home")
    [experiment] = home["experiments"]
    assert experiment["name"] == "small" and not experiment["earlier"]
    nodes = {node["address"]: node for node in experiment["nodes"]}
    assert nodes["train/relu"]["state"] == "committed"
    assert nodes["statistics/statistics"]["inputs"]["sae"] == "train/relu"
    [view], [sae], [frontier] = home["views"], home["saes"], home["frontiers"]
    assert (view["sae"], view["dataset"], view["split"]) == ("relu", "digits", "train")
    assert sae["views"] == [view["key"]] and sae["d"] == 32 and sae["n_latents"] == 512
    assert frontier["picked"] == sae["key"] and frontier["rows"][0]["sae"] == "relu"
    assert {one["kind"] for one in home["comparisons"]} == {"remapping", "matching"}
    assert home["problems"] == [] and home["advice"] is None


def test_a_latent_has_its_rows_of_the_tables(client: TestClient, small_store: Store) -> None:
    view = view_of(client)
    top, pairs = (table(small_store, "statistics", name) for name in ("latent_images", "class_latents"))
    number = int(pairs["latent"].mode()[0])
    found = ask(client, f"latent/{view}/{number}")
    mine = top.filter(latent=number).sort("rank")
    assert [one["image"] for one in found["top"]] == mine["image"].to_list()
    images = table(small_store, "index", "images")
    assert found["top"][0]["source"] == images["source"][int(mine["image"][0])]
    of_latent = pairs.filter(latent=number)
    assert found["n_classes"] == len(of_latent)
    assert sum(one["n_images"] for one in found["classes"]) == of_latent["n_images"].sum()
    assert found["row"]["n_images"] == of_latent["n_images"].sum()


def test_latents_are_filtered_sorted_and_paged(client: TestClient, small_store: Store) -> None:
    view, latents = view_of(client), table(small_store, "statistics", "latents")
    asked = {"where": "frequency>0.01;dead=false", "sort": "-frequency", "limit": 3, "offset": 2}
    found = ask(client, f"latents/{view}/rows", **asked)
    kept = latents.filter((pl.col("frequency") > 0.01) & ~pl.col("dead")).sort(
        "frequency", descending=True, maintain_order=True
    )
    assert found["n_matched"] == len(kept) > 5 and found["n_latents"] == 512
    assert [row[0] for row in found["rows"]] == kept["latent"][2:5].to_list()
    column = ask(client, f"latents/{view}/column/label_entropy")
    assert column["values"] == latents["label_entropy"].to_list()


def test_latents_are_filtered_by_columns_of_other_tables(client: TestClient, small_store: Store) -> None:
    view = view_of(client)
    names = {one["name"]: one for one in ask(client, f"view/{view}")["columns"]}
    assert names["matching.nearest_cosine"]["table"] == "matching_latents"
    assert names["matching.nearest_cosine"]["sentence"].startswith("Largest cosine")
    matched = table(small_store, "matching", "matching_latents").filter(side="first")
    median = matched["mass"].median()
    found = ask(
        client, f"latents/{view}/rows", where=f"matching.mass>{median}", columns="matching.mass", limit=1000
    )
    kept = matched.filter(pl.col("mass") > median).sort("latent")
    assert 0 < len(kept) < 512 and found["columns"] == ["latent", "matching.mass"]
    assert [tuple(row) for row in found["rows"]] == kept.select("latent", "mass").rows()
    plain = ask(client, f"latents/{view}/rows", limit=1)
    assert plain["columns"] == table(small_store, "statistics", "latents").drop("artifact").columns


def test_a_class_adds_its_own_columns_and_those_of_remappings(client: TestClient, small_store: Store) -> None:
    view, pairs = view_of(client), table(small_store, "statistics", "class_latents")
    asked = {"class": 3, "columns": "class_n_images,remapping.x,remapping.activity", "limit": 1000}
    found = ask(client, f"latents/{view}/rows", **asked)
    rows = {row[0]: row[1:] for row in found["rows"]}
    assert len(rows) == 512 and found["rows"][0][1] == pairs.filter(pl.col("class") == 3)["n_images"].max()
    members = table(small_store, "remapping", "remapping_latents").filter(pl.col("class") == 3)
    assert len(members) > 0
    for latent, x, activity in members.select("latent", "x", "activity").rows():
        assert rows[latent][1:] == [x, activity]
    counts = dict(pairs.filter(pl.col("class") == 3).select("latent", "n_images").rows())
    assert all(row[0] == counts.get(latent, 0) for latent, row in rows.items())


def test_the_curves_of_a_class_are_those_of_the_table_masking(client: TestClient, small_store: Store) -> None:
    view, masking = view_of(client), table(small_store, "masking", "masking")
    [found] = ask(client, f"class/{view}/2")["masking"]
    for of, rows in (
        (found, masking.filter(pl.col("class") == 2)),
        (found["all"], masking.filter(pl.col("class").is_null())),
    ):
        curves = {(one["selection"], one["mode"]): one["points"] for one in of["curves"]}
        plain = rows.filter(pl.col("selection") != "none")
        assert set(curves) == set(plain.select("selection", "mode").unique().rows()) and len(curves) >= 4
        for (selection, mode), points in curves.items():
            mine = plain.filter(selection=selection, mode=mode).unique("k").sort("k")
            assert [one["k"] for one in points] == mine["k"].to_list()
            for name in ("accuracy", "ci_low", "ci_high"):
                assert [one[name] for one in points] == pytest.approx(mine[f"seeds_{name}"].to_list())
        references = {one["name"]: one["accuracy"] for one in of["references"]}
        assert references == dict(rows.filter(selection="none").select("mode", "accuracy").rows())


def test_a_remapping_has_its_bounds_and_every_latent_that_is_counted(
    client: TestClient, small_store: Store
) -> None:
    [key] = [one["key"] for one in ask(client, "home")["comparisons"] if one["kind"] == "remapping"]
    summary = ask(client, f"remapping/{key}")
    assert summary["first"]["key"] == summary["second"]["key"] and len(summary["classes"]) == 10
    found = ask(client, f"remapping/{key}/class/4")
    pairs = table(small_store, "statistics", "class_latents").filter(
        pl.col("class") == 4, pl.col("n_tokens") > 0
    )
    counts = dict(pairs.select("latent", "n_tokens").rows())
    assert {one["latent"]: (one["x"], one["y"]) for one in found["points"]} == {
        i: (n, n) for i, n in counts.items()
    }
    pooled = sorted([*counts.values(), *counts.values(), *([0] * 2 * (512 - len(counts)))], reverse=True)
    assert found["U"] == max(1, pooled[summary["upper"] - 1]) and found["L"] == pooled[summary["lower"] - 1]
    assert {one["latent"] for one in found["points"] if one["group"] == "high"} == {
        latent for latent, n in counts.items() if n >= found["U"]
    }
    assert sum(one["n"] for one in found["predictions"] if one["k"] is None and one["model"] == "before") > 0


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("latent/{view}/512", 404, "0 to 511"),
        ("latent/{view}/-1", 404, "0 to 511"),
        ("view/0123456789abcdef", 404, "is not in this store"),
        ("class/{view}/10", 404, "0 to 9"),
        ("latents/{view}/rows?where=frequenzy>1", 400, "frequency"),
        ("latents/{view}/rows?where=frequency>much", 400, "is a number"),
        ("latents/{view}/rows?where=frequency~much", 400, "is no text"),
        ("latents/{view}/rows?where=frequency", 400, "is no condition"),
        ("latents/{view}/rows?sort=nothing", 400, "no column `nothing`"),
        ("latents/{view}/rows?limit=-1", 400, "is no whole number"),
        ("sql?q=select from", 400, "query:"),
        ("sql?q=select * from read_csv('/etc/passwd')", 400, "reads files"),
        ("nothing", 404, "no such page"),
    ],
)
def test_what_is_wrong_gets_a_sentence(client: TestClient, path: str, status: int, words: str) -> None:
    answered = client.get(f"/api/{path.format(view=view_of(client))}")
    assert answered.status_code == status
    assert words in answered.json()["error"]


def test_a_text_is_looked_into_without_regard_to_capitals() -> None:
    frame = pl.DataFrame({"name": ["Red [circle]", "blue", None]})
    kept = frame.filter(where(frame, "name ~ RED ["))
    assert kept["name"].to_list() == ["Red [circle]"]


def test_what_has_no_value_comes_last_in_either_order() -> None:
    frame = pl.DataFrame({"latent": [0, 1, 2, 3], "score": [1.0, float("nan"), None, 2.0]})
    orders = {sort: [row[0] for row in page(frame, {"sort": sort})["rows"]] for sort in ("score", "-score")}
    assert orders == {"score": [0, 3, 1, 2], "-score": [3, 0, 1, 2]}
