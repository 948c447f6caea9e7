"""The temporary folder of a run is deleted, at the latest by the next run; nothing of others ever is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from patchsae.flows.run_folder import PREFIX, delete, run_folder

HOLD = (
    "from patchsae.flows.run_folder import run_folder\n"
    "with run_folder() as folder:\n"
    "    (folder.path / 'sub').mkdir(); (folder.path / 'sub' / 'file').touch()\n"
    "    print(folder.path, flush=True); input()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def hold() -> tuple[subprocess.Popen[str], Path]:
    """A process in its run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def abandoned() -> Path:
    process, path = hold()
    process.kill()
    process.communicate()
    assert (path / "sub" / "file").exists()
    return path


def test_it_is_private_and_gone_at_the_end(temporary: Path) -> None:
    with run_folder() as folder:
        assert folder.path.parent == temporary
        assert folder.path.stat().st_mode & 0o777 == 0o700
        (folder.path / "link").symlink_to(temporary)
        with run_folder() as inner:
            assert inner == folder
        assert folder.path.exists()
    assert list(temporary.iterdir()) == []


def test_the_next_run_deletes_what_was_abandoned_and_nothing_in_use(temporary: Path) -> None:
    process, used = hold()
    left = abandoned()
    with run_folder() as folder:
        assert not left.exists()
        assert set(temporary.iterdir()) == {used, folder.path}
        assert (used / "sub" / "file").exists()
    process.communicate("\n")
    assert process.returncode == 0 and list(temporary.iterdir()) == []


def test_a_folder_that_another_process_still_holds_is_kept(temporary: Path) -> None:
    """As the temporary server does, if only the main process was killed."""
    with run_folder() as folder:
        heir = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[folder.lock]
        )
        copy = temporary / f"{PREFIX}copy"
        folder.path.rename(copy)
    assert not folder.path.exists()
    with run_folder():
        assert (copy / "lock").exists()
    heir.communicate(b"\n")
    with run_folder():
        assert not copy.exists()


def test_what_others_planted_is_left_alone(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(0o700)
    (precious / "lock").touch()
    (precious / "photo").touch()
    (temporary / f"{PREFIX}link").symlink_to(precious)
    (temporary / f"{PREFIX}file").touch()
    os.mkfifo(temporary / f"{PREFIX}fifo")
    # Made, but its owner has not come to lock it.
    (temporary / f"{PREFIX}new").mkdir(0o700)
    linked = temporary / f"{PREFIX}linked-lock"
    linked.mkdir(0o700)
    (linked / "lock").symlink_to(precious / "lock")
    shared = abandoned()
    shared.chmod(0o770)
    planted = set(temporary.iterdir())
    with run_folder():
        pass
    assert set(temporary.iterdir()) == planted
    assert {path.name for path in precious.iterdir()} == {"lock", "photo"}
    shared.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: shared.stat().st_uid + 1)
        with run_folder():
            pass
        assert shared.exists()
    with run_folder():
        assert not shared.exists()


def test_what_is_written_while_it_is_deleted_is_left_to_the_next(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = abandoned()
    remove = Path.rmdir

    def written_before(folder: Path) -> None:
        (folder / "late").touch()
        remove(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", written_before)
        delete(path)
    assert path.exists()
    with run_folder():
        assert not path.exists()
