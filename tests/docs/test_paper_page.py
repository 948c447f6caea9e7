"""docs/paper.md names presets, addresses, columns and tables that exist."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate import TABLES as TABLES_OF_STAGES
from patchsae.pipeline.experiment.experiment import PRESETS, load
from patchsae.pipeline.results.paper.compare import COLUMNS
from patchsae.pipeline.results.paper.published import CONFIDENCE, DATASETS, TABLES

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(title: str, column: int) -> list[str]:
    """The cells of a column of a section's table or tables, without headers."""
    rows = [line.split("|")[1:-1] for line in section(title).splitlines() if line.startswith("|")]
    return [row[column].strip() for row in rows]


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_presets_are_those_there_are() -> None:
    named = [words(cell)[0] for cell in cells("Presets", 0)[:8] if words(cell)]
    assert set(named) == {path.stem for path in PRESETS.glob("*.yaml")} - {"demo", "demo-sweep", "adaptation"}


def test_addresses_and_tables_of_figures_exist() -> None:
    known = {node.address for node in load("paper-compat").nodes()}
    tables = {schema.name for schemas in TABLES_OF_STAGES.values() for schema in schemas} | {"artifacts"}
    n_addresses = 0
    for addresses, named in zip(
        cells("Tables and figures", 1)[2:], cells("Tables and figures", 2)[2:], strict=True
    ):
        stage, first = "", ""
        for word in words(addresses):
            if word in ("paper-table1", "paper-table2", "adaptation", "adaptation_seeds"):
                continue
            if "/" in word:
                stage, first = word.split("/")
            name = word.rpartition("/")[2]
            name = first + name.removeprefix("...") if name.startswith("...") else name
            for dataset in DATASETS:
                address = f"{stage}/{re.sub(r'^D(?=-)', dataset, name)}"
                assert address in known, address
                n_addresses += 1
        assert words(named), named
        of_table = words(named.partition(":")[0])
        assert set(of_table) <= tables, named
    assert n_addresses >= 11 * len(DATASETS)


def test_columns_and_words_are_those_of_the_comparison() -> None:
    named = [word for cell in cells("Compare", 0)[2:] for word in words(cell)]
    assert named == [name for name in COLUMNS if name in named]
    assert set(named) == set(COLUMNS)
    assert [words(cell)[0] for cell in cells("The published figures", 0)[2:]] == list(CONFIDENCE)
    assert set(words(cells("Compare", 1)[2])) == set(TABLES)
