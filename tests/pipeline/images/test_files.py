"""Which files of a folder are images, and that only regular files of a bounded size are read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from patchsae.pipeline.images import files
from patchsae.pipeline.images.files import LeftOut, Walk, image_files, read_file, reason
from patchsae.storage.errors import UserError


def test_addresses_and_line_breaks_are_taken_out_of_messages() -> None:
    assert reason(ValueError("cannot read <_io.BytesIO object at 0x7F31802d>\n  of it")) == (
        "cannot read <_io.BytesIO object> of it"
    )
    assert reason(KeyError("x")) == "KeyError: 'x'"
    assert reason(OSError()) == "OSError"
    assert reason(FileNotFoundError(2, "No such file or directory", "/somewhere/1.png")) == (
        "No such file or directory"
    )


@pytest.fixture(params=["fifo", "folder", "socket", "device"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "thing.png"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "socket":
        # The path of a socket has at most about 100 characters, and `tmp_path` may have more.
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    else:
        path.symlink_to("/dev/zero")
    return path


def test_only_regular_files_are_read(no_file: Path) -> None:
    with pytest.raises(OSError, match=r"^is no regular file$"):
        read_file(no_file)


def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(b"x")
    plain = Path.stat

    def exchange(self: Path, **options: bool) -> os.stat_result:
        found = plain(self, **options)
        self.unlink()
        os.mkfifo(self)
        return found

    monkeypatch.setattr(Path, "stat", exchange)
    assert read_file(path) == b""


def test_the_size_of_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.png"
    with path.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)  # A hole: it takes no space.
    with pytest.raises(OSError, match=r"^has 1,073,741,825 bytes, and at most 1,073,741,824 are read$"):
        read_file(path)
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    path.write_bytes(b"abc")
    assert read_file(path) == b"abc"


def test_a_folder_lists_regular_files_alone(no_file: Path) -> None:
    (no_file.parent / "sound.PNG").write_bytes(b"x")
    assert [path.name for path in image_files(no_file.parent)] == ["sound.PNG"]


def test_absolute_paths_are_taken_out_of_messages() -> None:
    assert reason(ValueError("cannot read '/home/someone/photos/1.jpg': it is no image/jpeg")) == (
        "cannot read '1.jpg': it is no image/jpeg"
    )
    assert reason(RuntimeError("bad state 0x7ffe12 in /tmp/a/b")) == "RuntimeError: bad state in b"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with two images, and what people's folders have beside images."""
    folder = tmp_path / "photos"
    for name in (
        "a/1.jpg",
        "a/deep/er/2.PNG",
        ".git/x.jpg",
        "a/.DS_Store",
        "a/._1.jpg",
        "a/Thumbs.db",
        "a/3.heic",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "all").symlink_to(folder)
    (folder / "a" / "up").symlink_to("..")
    (folder / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    return folder


def test_hidden_files_and_linked_folders_are_left_out_and_told(odd: Path) -> None:
    left_out = LeftOut()
    assert Walk().images(odd, odd, left_out) == ["a/1.jpg", "a/deep/er/2.PNG"]
    assert left_out.sentences() == [
        "left out 3 hidden files and folders: .git, a/.DS_Store, a/._1.jpg (`hidden: true` looks at them)",
        "left out 2 linked folders: all, a/up (`follow_links: true` follows them)",
        "left out 1 link that leads nowhere: a/gone.jpg",
        "left out 2 files that are no images of the formats that are read: 1 .heic, 1 .db",
    ]


def test_hidden_files_and_linked_folders_count_where_asked_for(odd: Path) -> None:
    assert Walk(hidden=True).images(odd, odd, LeftOut()) == [
        ".git/x.jpg", "a/._1.jpg", "a/1.jpg", "a/deep/er/2.PNG",
    ]  # fmt: skip
    other = odd.parent / "other"
    (other / "b").mkdir(parents=True)
    (other / "b" / "4.jpg").write_bytes(b"x")
    (odd / "linked").symlink_to(other)
    (other / "b" / "back").symlink_to(other)
    found = Walk(follow_links=True).images(odd / "linked", odd, LeftOut())
    assert found == ["linked/b/4.jpg"], "a link to a folder that contains it is not followed"


def test_links_to_files_are_images(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "1.jpg").symlink_to("real")
    assert [path.name for path in image_files(tmp_path)] == ["1.jpg"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"folder .*: cannot be listed \(Permission denied\)"):
        image_files(tmp_path)


def test_names_are_shown_on_one_line() -> None:
    assert files.names(["a\nb.jpg", "ü.jpg"]) == "a\\nb.jpg, ü.jpg"
    assert files.names(["1", "2", "3", "4"]) == "1, 2, 3, ..."
