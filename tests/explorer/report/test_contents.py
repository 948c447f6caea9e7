"""What a report holds of a store: one experiment, and a choice of its latents and images."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.report.contents import Choice, Contents
from patchsae.explorer.report.one import OneExperiment
from patchsae.explorer.resources import routes
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support import wide_store


def _contents(store: Store, latents: str | None = "20", **choice: int) -> Contents:
    return Contents(OneExperiment(store, "small"), Choice(latents, **choice))


def _latents(contents: Contents) -> list[int]:
    [latents] = contents.latents.values()
    return latents


def _table(store: Store) -> pl.DataFrame:
    [statistics] = store.committed("statistics")
    return statistics.scan("latents").collect()


def test_an_experiment_of_another_name_is_refused_with_those_that_there_are(small_store: Store) -> None:
    with pytest.raises(Absent, match="experiment smal: this store has no record of it; did you mean `small`"):
        OneExperiment(small_store, "smal")


def test_nothing_of_another_experiment_is_seen(small_store: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(small_store.root, tmp_path / "store"))
    [other] = wide_store.commit_saes(store, [{"kind": "topk", "k": 3}], {"activations": "0" * 64})
    wide_store.record(store, "other", {"secret": other})
    assert other.key[:16] in {one["key"] for one in routes.answer(Library(store), "home")["saes"]}
    home = _contents(store).value("home")
    assert [one["name"] for one in home["experiments"]] == ["small"]
    assert other.key[:16] not in {one["key"] for one in home["saes"]}
    with pytest.raises(Absent):
        _contents(store).value(f"training/{other.key[:16]}")


def test_a_number_chooses_the_latents_that_fire_on_most_images(small_store: Store) -> None:
    table = _table(small_store)
    chosen = _latents(_contents(small_store, "20"))
    frequencies = table["frequency"].to_list()
    assert len(chosen) == 20
    assert [frequencies[latent] for latent in chosen] == sorted(frequencies, reverse=True)[:20]


def test_all_chooses_those_that_fire(small_store: Store) -> None:
    alive = _table(small_store).filter(~pl.col("dead"))["latent"]
    assert sorted(_latents(_contents(small_store, "all"))) == alive.to_list()


def test_conditions_and_ids_choose_latents(small_store: Store) -> None:
    table = _table(small_store)
    middle = table["max_activation"].median()
    wanted = table.filter(pl.col("max_activation") > middle)["latent"].to_list()
    assert 0 < len(wanted) < len(table)
    assert sorted(_latents(_contents(small_store, f"max_activation>{middle!r}"))) == wanted
    assert sorted(_latents(_contents(small_store, "3, 17,5"))) == [3, 5, 17]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("3,512", "--latents: 512 is no latent of relu, which has 0 to 511."),
        ("frequenzy>1", "no column `frequenzy`; did you mean `frequency`"),
        ("best", "`best` is no condition"),
    ],
)
def test_other_words_are_refused(small_store: Store, words: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        _contents(small_store, words)


def test_values_are_those_of_the_server_but_for_what_was_left_out(small_store: Store) -> None:
    contents = _contents(small_store, "20", images_per_latent=3)
    server = Library(small_store)
    [view] = contents.views
    for path in contents.paths:
        if path.split("/")[0] in ("training", "classes", "latents", "remapping"):
            assert contents.value(path) == routes.answer(server, path)
    number = _latents(contents)[0]
    path = f"latent/{view.key}/{number}"
    ours, theirs = contents.value(path), routes.answer(server, path)
    assert len(theirs["top"]) > 3
    assert ours["top"] == theirs["top"][:3]
    assert ours["row"] == theirs["row"]
    shown = {image for _, image in contents.pictures}
    assert {one["image"] for one in ours["top"]} <= shown
    home = contents.value("home")
    assert home["store"] is None
    assert "relu: 20 of 512 latents have a page. Tables and scatters have all." in home["report"]["left_out"]


def test_every_page_has_its_resources(small_store: Store) -> None:
    contents = _contents(small_store, "20", images=4)
    [view] = contents.views
    [images] = contents.images.values()
    assert len(images) == 4
    paths = set(contents.paths)
    assert len(paths) == len(contents.paths)
    assert {f"{of}/{view.key}/{one}" for one in _latents(contents) for of in ("latent", "maps")} <= paths
    assert {f"{of}/{view.key}/{one}" for one in images for of in ("image", "codes")} <= paths
    assert {f"class/{view.key}/{label}" for label in range(10)} <= paths
    assert {
        f"latents/{view.key}/column/{name}" for name in _table(small_store).columns if name != "artifact"
    } <= paths
