"""`patchsae compare-paper`: what it prints and writes, and its exit status."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from patchsae.storage.store import Store
from tests.support.adaptation_store import adapter, commit_adaptation
from tests.support.command import patchsae, sentence


def test_a_fresh_clone_sees_the_published_tables_and_what_to_run(tmp_path: Path) -> None:
    store = tmp_path / "nowhere"
    shown = patchsae("compare-paper", "--store", store)
    assert shown.exit_code == 1
    assert "table-1: Table 1 of the paper" in shown.stdout
    assert "EuroSAT        base      maple    low_to_high        4.10" in shown.stdout
    assert "run `patchsae run paper-table1`" in shown.stdout.replace("\n", " ")
    assert "0 rows with ours beside a published figure; 299 rows with one." in shown.stdout
    assert not store.exists()


def test_what_can_be_compared_ends_with_0_and_is_written_by_suffix(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    values = {("maple", "base"): {"accuracy_before": 0.911699, "accuracy_after": 0.95, "high": 11.5}}
    datasets = {"cats": {"kind": "coop", "name": "oxford_pets"}}
    commit_adaptation(store, "mine", datasets, {"maple": adapter("cats")}, values)
    shown = patchsae("compare-paper", "--store", store.root, "--table", "table-1")
    assert shown.exit_code == 0
    [high] = [
        line for line in shown.stdout.splitlines() if line.startswith("OxfordPets") and " high " in line
    ][:1]
    assert high.split() == ["OxfordPets", "base", "maple", "high", "11.11", "11.50", "+0.39", "1", "mine"]
    # CLIP has no seeds, and what rounds to 0 has no minus.
    clip = patchsae("compare-paper", "--store", store.root, "--table", "base-to-novel")
    [line] = [line for line in clip.stdout.splitlines() if line.startswith("OxfordPets     base      clip ")]
    assert line.split()[2:6] == ["clip", "accuracy", "91.17", "91.17"]
    assert line.split()[6:] == ["+0.00", "mine"]
    assert "base-to-novel:" not in shown.stdout

    for name in ("rows.csv", "rows.parquet"):
        written = patchsae("compare-paper", "--store", store.root, "--seeds", "--output", tmp_path / name)
        assert written.exit_code == 0
        assert written.stdout == ""
        # What is missing is said even so, on standard error.
        assert "patchsae run paper-table2" in written.stderr
    rows = pl.read_csv(tmp_path / "rows.csv")
    high = rows.filter(table="table-1", dataset="oxford_pets", quantity="high", classes="base")
    assert high.select("published", "ours", "seed", "source").rows() == [
        (11.11, 11.5, None, "arXiv 2412.05276 Table 1"),
        (11.11, 11.5, 1, "arXiv 2412.05276 Table 1"),
    ]
    text = tmp_path / "table.txt"
    assert patchsae("compare-paper", "--store", store.root, "--output", text).exit_code == 0
    assert "OxfordPets" in text.read_text()


def test_bad_options_are_one_sentence(tmp_path: Path) -> None:
    refused = patchsae("compare-paper", "--store", tmp_path, "--output", tmp_path / "rows.xlsx")
    assert refused.exit_code == 2
    assert "the suffix `.xlsx` tells no format" in sentence(refused)
    refused = patchsae("compare-paper", "--store", tmp_path, "--experiment", "nothing")
    assert refused.exit_code == 2
    assert "no experiment `nothing`" in sentence(refused)
