"""A report as files: whole or not at all, and with nothing of the machine that made it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patchsae.explorer.content import dump
from patchsae.explorer.report import write
from patchsae.explorer.report.contents import Choice, Contents
from patchsae.explorer.report.one import OneExperiment
from patchsae.explorer.report.write import MARK, Report, page_of_report
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.command import patchsae, sentence

CHOICE = Choice("3", images_per_latent=2, images=1)
_CALL = re.compile(rb'patchsae\.receive\("([^"]+)",(.*)\);\n', re.DOTALL)


def _report(store: Store) -> Report:
    return Report(store, "small", CHOICE)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(small_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "report"
    _report(small_store).write(folder)
    return folder


def test_every_resource_is_a_script_that_hands_over_its_value(written: Path, small_store: Store) -> None:
    contents = Contents(OneExperiment(small_store, "small"), CHOICE)
    found = {}
    for name, data in _files(written / "data").items():
        match = _CALL.fullmatch(data)
        assert match is not None, name
        assert name == f"{match[1].decode()}.js"
        found[match[1].decode()] = match[2]
    assert set(found) == set(contents.paths)
    path = next(one for one in contents.paths if one.startswith("latent/"))
    assert json.loads(found[path]) == json.loads(dump(contents.value(path)))


def test_nothing_tells_where_it_was_made(written: Path, small_store: Store) -> None:
    places = {str(small_store.root.parent), str(small_store.root.resolve().parent), f"{Path.home()}/"}
    for name, data in _files(written).items():
        told = [place for place in (*places, platform.node()) if place.encode() in data]
        assert not told, (name, told)


def test_the_page_asks_for_one_classic_script_and_nothing_from_elsewhere(written: Path) -> None:
    page = (written / "index.html").read_text()
    assert 'data-mode="report"' in page
    assert 'type="module"' not in page
    for address in re.findall(r'(?:src|href)="([^"#][^"]*)"', page):
        assert (written / address).is_file(), address
    assert not re.search(r"^(import|export) ", (written / "explorer.js").read_text(), re.MULTILINE)


def test_an_index_page_of_another_form_is_noticed() -> None:
    with pytest.raises(AssertionError, match="data-mode"):
        page_of_report("<html></html>")


def test_the_forecast_is_near_and_not_below(written: Path, small_store: Store) -> None:
    expected = _report(small_store).forecast()
    made = [len(data) for name, data in _files(written).items() if name.startswith(("data", "pictures"))]
    assert len(made) <= expected.n_files <= 2 * len(made)
    assert 0.8 * sum(made) <= expected.n_bytes <= 3 * sum(made)


def test_an_interrupted_report_leaves_the_folder_as_it_was(
    small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = _report(small_store)
    folder = tmp_path / "report"
    n_written = 0

    def interrupted(path: Path, data: bytes) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 20:
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr(write, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_by_the_next_report(small_store: Store, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {
        "dead": f".report.{platform.node()}-{gone.pid}.tmp",
        "alive": f".report.{platform.node()}-{os.getppid()}.tmp",
        "elsewhere": f".report.other-{gone.pid}.tmp",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    _report(small_store).write(tmp_path / "report")
    assert {path.name for path in tmp_path.iterdir()} == {"report", names["alive"], names["elsewhere"]}


def test_a_report_is_replaced_as_a_whole_and_only_on_demand(small_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    _report(small_store).write(folder)
    (folder / "older.js").write_text("")
    with pytest.raises(UserError, match="holds a report already; give another folder, or --force"):
        _report(small_store).write(folder)
    _report(small_store).write(folder, replace=True)
    assert not (folder / "older.js").exists()
    assert (folder / MARK).is_file()
    assert list(tmp_path.iterdir()) == [folder]


def test_files_of_others_are_never_replaced(small_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds files that are no report; give a new folder"):
        _report(small_store).write(folder, replace=True)
    with pytest.raises(UserError, match=r"letter\.txt: is a file; give a new folder"):
        _report(small_store).write(folder / "letter.txt")
    assert _files(folder) == {"letter.txt": b"dear"}


def test_the_command_writes_a_report_and_says_how_to_open_it(small_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    arguments = (
        "report",
        "small",
        "--to",
        folder,
        "--store",
        small_store.root,
        "--latents",
        "2",
        "--images",
        "0",
    )
    done = patchsae(*arguments)
    assert done.exit_code == 0, done.output
    n_files = len(_files(folder))
    assert re.fullmatch(
        rf"{folder}/index\.html: [\d.]+ [kM]B in {n_files:,} files\. Open it in a browser; .*\n", done.stdout
    )
    assert "relu: 2 of 512 latents have a page." in done.stderr
    assert "holds a report already" in sentence(patchsae(*arguments))


def test_the_command_refuses_an_experiment_that_is_not_there(small_store: Store, tmp_path: Path) -> None:
    refused = sentence(patchsae("report", "large", "--to", tmp_path / "r", "--store", small_store.root))
    assert refused == "experiment large: this store has no record of it; there is `small`."
    nowhere = sentence(patchsae("report", "small", "--to", tmp_path / "r", "--store", tmp_path / "none"))
    assert nowhere == f"{tmp_path / 'none'}: no store here; give its folder, or run an experiment first."
    assert not (tmp_path / "r").exists()
