"""What README and docs say of the tree is there: links, paths, generated pages, and every example of a query."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.store import Store

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "flows|pipeline|storage|src|tests|docs|benchmarks|\\.ci"
TWO = """
name: two
datasets:
  shapes: {kind: shapes, seed: 1, splits: {train: 24, test: 12}}
  digits: {kind: digits, n_images: 40}
backbones: {clip: {kind: shapes_clip}}
saes:
  relu: {kind: relu_l1, n_latents: 48, batch_size: 128, n_steps: 5, dataset: shapes, backbone: clip}
  other: {kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 5, dataset: digits, backbone: clip}
evaluations:
  statistics: {kind: statistics, sae: relu}
  of-other: {kind: statistics, sae: other}
  masking: {kind: masking, statistics: statistics, ks: [1, 10], n_random: 1}
  of-digits: {kind: masking, statistics: of-other, ks: [1, 10], n_random: 1, prompts: {templates: ["a photo"]}}
  reconstruction: {kind: reconstruction, sae: relu}
  frontier: {kind: frontier, saes: [relu]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two of everything that a page may ask about."""
    store = Store(tmp_path_factory.mktemp("docs") / "store")
    run(work_on(store, parse(TWO, "two")), Runtime())
    return store


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    if page.name != "spec.md":
        paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
        assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def sql_examples() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text()
        found += re.findall(r'patchsae query "([^"]+)"', text) + re.findall(
            r"```sql\n(.*?)```", text, flags=re.S
        )
    return [sql for sql in found if sql != "SQL"]


def test_there_are_examples_of_queries() -> None:
    assert len(sql_examples()) >= 3


@pytest.mark.parametrize("sql", sql_examples())
def test_every_query_of_a_page_runs_and_finds_rows(sql: str, store: Store) -> None:
    # Pages name a latent of the demo; any live one does here.
    alive = Catalog(store, "two").scan("latent_images").filter(sae="relu").collect()["latent"][0]
    sql = re.sub(r"latent = \d+", f"latent = {alive}", sql)
    done = CliRunner().invoke(app, ["query", sql, "--store", str(store.root), "--format", "json"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() != "[]", sql
