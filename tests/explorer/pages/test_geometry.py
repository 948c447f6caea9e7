"""The pages' arithmetic of pixels and tokens, by node where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")


@pytest.mark.skipif(
    NODE is None, reason="no node here; tests/explorer/browser clicks at corners in a browser"
)
def test_pixels_and_tokens_agree(tmp_path: Path) -> None:
    assert NODE is not None
    pages = Path(__file__).parents[3] / "explorer/pages"
    # node takes `.js` for a module only where a package.json says so, and the pages need none.
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "explorer/pages/draw").mkdir(parents=True)
    shutil.copy(pages / "draw/geometry.js", tmp_path / "explorer/pages/draw")
    (tmp_path / "tests/explorer/pages").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("geometry.test.mjs"), tmp_path / "tests/explorer/pages")
    done = subprocess.run(
        [NODE, "--test", "tests/explorer/pages"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 21" in done.stdout
