"""The pages' modules that need no browser, by node where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
PAGES = Path(__file__).parents[3] / "explorer/pages"


@pytest.mark.skipif(NODE is None, reason="no node here; tests/explorer/browser sees the same in a browser")
def test_geometry_and_state(tmp_path: Path) -> None:
    assert NODE is not None
    # node takes `.js` for a module only where a package.json says so, and the pages need none.
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copytree(PAGES, tmp_path / "explorer/pages")
    shutil.copytree(Path(__file__).parent, tmp_path / "tests/explorer/pages")
    done = subprocess.run(
        [NODE, "--test", "tests/explorer/pages"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 25" in done.stdout
