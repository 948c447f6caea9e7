"""What import contracts cannot say about the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("explorer", "flows", "pipeline", "storage")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_nothing_lies_flat_in_pipeline() -> None:
    assert [path.name for path in (ROOT / "pipeline").iterdir() if path.is_file()] == ["__init__.py"]


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.stem)
def test_pipeline_names_no_folder_of_the_store(path: Path) -> None:
    """It reads and writes by the verbs of `Artifact` and `Builder`, which is all an object store would have."""
    source = path.read_text()
    assert not re.search(r"\b(artifact|out|builder|sae|store|inputs\[[^\]]*\])\.(path|root)\s*/", source)
    assert not re.search(r"from patchsae\.storage\.\w+ import [^\n]*\b(FOLDER|ARRAY|MANIFEST)\b", source)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_import_hides_a_circle(path: Path) -> None:
    """Under TYPE_CHECKING stand names of modules that are slow to import, and none of the own package's layers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            own = [
                one.module
                for one in node.body
                if isinstance(one, ast.ImportFrom) and (one.module or "").startswith("patchsae.")
            ]
            # The command line alone, whose help must not wait for any of them.
            assert not own or path.parent.name == "cli", own
