"""What README and docs say of the tree is there: links, paths, generated pages, and every example of a query."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import patchsae
from docs import generate
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
backbones:
  clip: {kind: shapes_clip}
  early: {kind: shapes_clip, extract: {hook_block: 1}}
adapters:
  probe: {kind: linear_probe, backbone: clip, dataset: shapes, shots: null, views: 0, epochs: 2}
saes:
  relu: {kind: relu_l1, n_latents: 48, batch_size: 128, n_steps: 5, dataset: shapes, backbone: clip}
  other: {kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 5, dataset: digits, backbone: clip}
evaluations:
  statistics: {kind: statistics, sae: relu}
  gallery: {kind: gallery, statistics: statistics}
  of-other: {kind: statistics, sae: other}
  masking: {kind: masking, statistics: statistics, ks: [1, 10], n_random: 1}
  of-digits: {kind: masking, statistics: of-other, ks: [1, 10], n_random: 1, prompts: {templates: ["a photo"]}}
  reconstruction: {kind: reconstruction, sae: relu}
  frontier: {kind: frontier, saes: [relu]}
  early: {kind: statistics, sae: relu, backbone: early}
  grid: {kind: masking, statistics: [statistics, early], ks: [1], n_random: 1, attributes: []}
  remapping: {kind: remapping, before: statistics, after: early, n_bootstrap: 0}
  adaptation: {kind: adaptation, sae: relu, taus: [], ks: [all], n_bootstrap: 0}
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
        [sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_signature_makes_the_page_of_the_api_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The other pages take seconds to write and have the test above.
    monkeypatch.setattr(generate, "tables_page", (ROOT / "docs" / "tables.md").read_text)
    monkeypatch.setattr(generate, "kinds_page", (ROOT / "docs" / "kinds.md").read_text)
    monkeypatch.setattr(sys, "argv", ["docs.generate", "--check"])
    generate.main()
    assert capsys.readouterr().out == "everything is up to date\n"

    source = generate.API.read_text()
    assert source.count("def top(self, k: int = 10)") == 1
    changed = tmp_path / "api.py"
    changed.write_text(source.replace("def top(self, k: int = 10)", "def top(self, k: int = 20)"))
    monkeypatch.setattr(generate, "API", changed)
    with pytest.raises(SystemExit, match=r"^docs/api\.md: not what the code says"):
        generate.main()


def test_the_page_of_the_api_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for name in patchsae.__all__:
        assert f"\n## `{name}`\n" in page
        members = vars(getattr(patchsae, name)) if name.startswith(("Open", "Encoded")) else {}
        fields = getattr(getattr(patchsae, name), "__dataclass_fields__", {})
        for member in members:
            if not member.startswith("_") and member not in fields:
                assert f"\n### `{name}.{member}`\n" in page


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


def test_the_python_of_the_page_on_queries_runs_and_leaves_the_store_as_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "query.md").read_text(), flags=re.S)
    assert len(blocks) == 3
    key = next((store.root / "extract").iterdir()).name
    (tmp_path / "store").symlink_to(store.root)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    before = sorted(store.root.rglob("*"))
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("1389", "1").replace('"demo"', '"two"').replace("KEY", key), names)
    assert sorted(store.root.rglob("*")) == before
