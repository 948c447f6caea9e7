"""What a command imports: a library that takes a second to load is loaded only where it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchsae.flows.cli import completion
from patchsae.pipeline.saes.files import READABLE, WRITABLE
from patchsae.storage.store import Store

HEAVY = {
    "torch",
    "torchvision",
    "open_clip",
    "prefect",
    "distributed",
    "polars",
    "zarr",
    "sklearn",
    "wandb",
}
STORE_ONLY = {"polars", "zarr"}
CODE = """
import sys
from patchsae.flows.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as error:
    assert not error.code, error.code
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def imported(arguments: list[str], **environment: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=sorted(HEAVY)), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()) if done.stderr.strip() else set()


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["run", "--help"], ["kinds", "-h"]],
    ids=lambda words: " ".join(words),
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(arguments) == set()


@pytest.mark.parametrize(
    "words", ["run de", "run demo --only tr", "export train", "export x --format sae", "kinds to"]
)
def test_completion_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "patchsae.flows.cli.app"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "_PYTHON__M_PATCHSAE.FLOWS.CLI.APP_COMPLETE": "complete_bash",
            "_PATCHSAE_COMPLETE": "complete_bash",
            "COMP_WORDS": f"patchsae {words}",
            "COMP_CWORD": str(len(words.split())),
        },
    )
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "patchsae.flows.cli.completion" in names
    assert names & HEAVY == set()


@pytest.mark.parametrize(
    "command", [["status"], ["tables"], ["query", "SELECT 1 AS one"]], ids=lambda words: words[0]
)
def test_a_look_into_a_store_loads_no_torch(command: list[str], small_store: Store) -> None:
    assert imported([*command, "--store", str(small_store.root)]) <= STORE_ONLY


def test_a_plan_loads_no_server_and_no_models(tmp_path: Path) -> None:
    found = imported(["plan", "demo", "--store", str(tmp_path / "s")])
    assert found & {"prefect", "distributed", "open_clip", "torchvision", "sklearn", "wandb"} == set()


def test_completion_offers_the_formats_there_are() -> None:
    assert completion.formats_to_write("") == sorted(WRITABLE)
    assert completion.formats_to_read("s") == sorted(name for name in READABLE if name.startswith("s"))
