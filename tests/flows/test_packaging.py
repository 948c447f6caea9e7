"""Installed, the project is one name, `patchsae`: it claims no other, and takes no module from the current folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.prefect_server import ROOT

PATCHSAE = str(Path(sys.executable).with_name("patchsae"))


@pytest.fixture
def clashing(tmp_path: Path) -> Path:
    """A user's folder with packages of the names our folders have."""
    for name in ("explorer", "flows", "pipeline", "storage", "tests"):
        package = tmp_path / "my work" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise ImportError('the user\\'s own {name} was imported')\n")
    for name in ("queue", "yaml", "torch", "patchsae"):
        (tmp_path / "my work" / f"{name}.py").write_text(
            f"raise ImportError('the user\\'s own {name} was imported')\n"
        )
    return tmp_path / "my work"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )


def test_only_patchsae_is_installed(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys\n"
        "sys.path = [p for p in sys.path if p not in ('', '.')]\n"
        "print([n for n in ('patchsae', 'explorer', 'flows', 'pipeline', 'storage', 'tests', 'benchmarks') if u.find_spec(n)])"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout.strip() == "['patchsae']", done.stderr


def test_a_folder_with_the_same_names_disturbs_nothing(clashing: Path) -> None:
    done = run(clashing, PATCHSAE, "plan", "demo", "--store", "a store")
    assert done.returncode == 0, done.stderr
    assert "17 stages: 0 cached, 17 to run" in done.stdout


@pytest.mark.slow
def test_a_run_with_all_its_processes_takes_nothing_from_the_folder(clashing: Path) -> None:
    """Prefect's server, its flows, Dask's workers and torchrun's ranks."""
    (clashing / "own.yaml").write_text(
        "name: own\n"
        "datasets: {shapes: {kind: shapes, seed: 3, splits: {train: 700, test: 700}, label: colour}}\n"
        "backbones: {clip: {kind: shapes_clip}}\n"
        "saes: {relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 64, batch_size: 64, n_steps: 5}}\n"
        "evaluations: {statistics: {kind: statistics, sae: relu, tau: 0.01}}\n"
    )
    done = run(clashing, PATCHSAE, "run", "own.yaml", "--store", "a store", "--processes", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert list((clashing / "a store" / "statistics").glob("*/manifest.json"))


@pytest.mark.slow
def test_a_wheel_holds_patchsae_alone(tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--quiet", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"patchsae", next(top for top in tops if top.endswith(".dist-info"))}
    in_tree = {
        f"patchsae/{path.relative_to(ROOT).as_posix()}"
        for folder in ("explorer", "flows", "pipeline", "storage")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_tree <= set(names)
    assert {"patchsae/__init__.py", "patchsae/api.py", "patchsae/py.typed"} <= set(names)
