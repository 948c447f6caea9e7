"""Fetching a data set: it is complete or not there, whenever it is stopped, and an archive may not write elsewhere."""

from __future__ import annotations

import errno
import shutil
import stat
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.images.coop import archive, fetch
from patchsae.pipeline.images.coop.archive import unpack
from patchsae.pipeline.images.coop.facts import FACTS, Name
from patchsae.pipeline.images.coop.found import belongs, look
from patchsae.storage.errors import UserError
from tests.support.coop_data import tiny


def zipped(folder: Path, file: Path, above: str = "") -> Path:
    """A zip of a folder's content, with `above` in front of every name."""
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("__MACOSX/._junk", b"")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                out.write(path, above + path.relative_to(folder).as_posix())
    return file


class Mirror:
    """Stands for Hugging Face. It has archives of the tiny data sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def download(self, repo_id: str, filename: str, *, revision: str, local_dir: Path) -> str:
        self.asked.append((repo_id, filename, revision))
        if self.error is not None:
            raise self.error
        local_dir.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(self.folder / filename, local_dir / filename))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    there = Mirror(tmp_path / "mirror")
    there.folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", there.download)
    return there


def publish(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, name: Name, above: str | None = None) -> None:
    facts = tiny(monkeypatch, mirror.folder / "content", name)
    folder = mirror.folder / "content" / facts.folder
    zipped(folder, mirror.folder / facts.archive, f"{facts.folder}/" if above is None else above)


@pytest.mark.parametrize(
    "name", ["oxford_pets", "stanford_cars", "fgvc_aircraft", "imagenetv2", "imagenet_a"]
)
@pytest.mark.parametrize("above", [None, "", "data/of/somebody/"])
def test_a_data_set_is_fetched_however_it_was_packed(
    name: Name, above: str | None, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, name, above)
    root = tmp_path / "data"
    assert look(name, root).state == "missing"
    told: list[str] = []
    fetch.fetch(name, root, Reporter(), told.append)
    assert look(name, root).state == "found" and not look(name, root).missing()
    assert told == [f"{name}: fetching {FACTS[name].archive} from {fetch.MIRROR}"]
    # Nothing but the data set and a lock is left, and nothing is fetched a second time.
    assert sorted(path.name for path in root.iterdir()) == sorted([".patchsae-fetch", FACTS[name].folder])
    assert [path.name for path in (root / ".patchsae-fetch").iterdir()] == [f"{name}.lock"]
    fetch.fetch(name, root, Reporter())
    assert mirror.asked == [(fetch.MIRROR, FACTS[name].archive, fetch._REVISION)]


def test_of_two_that_fetch_at_once_one_waits(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, "oxford_pets")
    told: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch.fetch, "oxford_pets", tmp_path, Reporter(), told.append) for _ in range(2)]
        for one in both:
            one.result()
    assert look("oxford_pets", tmp_path).state == "found" and len(mirror.asked) == 1
    assert sum("fetching" in sentence for sentence in told) == 1


class Killed(BaseException):
    """As with a SIGKILL, nothing is cleared up."""


@pytest.mark.parametrize("at", ["fetched", "first file", "last file", "unpacked", "renamed"])
def test_a_killed_fetch_leaves_no_half_a_folder(
    at: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, "oxford_pets")
    root, n_files = tmp_path / "data", 28
    with monkeypatch.context() as dying:
        n_written = 0

        def write(*given: Any) -> None:
            nonlocal n_written
            n_written += 1
            if n_written == {"first file": 1, "last file": n_files}.get(at):
                raise Killed
            whole(*given)

        def die(*_: Any) -> None:
            raise Killed

        whole = archive._write
        dying.setattr(archive, "_write", write)
        if at in ("fetched", "unpacked", "renamed"):
            where = {
                "fetched": (fetch, "_unpack"),
                "unpacked": (fetch.os, "sync"),
                "renamed": (fetch, "sync_file"),
            }
            dying.setattr(*where[at], die)
        with pytest.raises(Killed):
            fetch.fetch("oxford_pets", root, Reporter())
    folder = root / "oxford_pets"
    assert folder.exists() == (at == "renamed")
    fetch.fetch("oxford_pets", root, Reporter())
    assert look("oxford_pets", root).state == "found"
    assert sum(path.is_file() for path in folder.rglob("*")) == n_files
    assert [path.name for path in (root / ".patchsae-fetch").iterdir()] == ["oxford_pets.lock"]


def test_a_folder_that_is_there_is_left_alone(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, "oxford_pets")
    own = tmp_path / "data" / "oxford_pets" / "images" / "mine.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="oxford_pets: is there, but not complete; move it away to fetch it"):
        fetch.fetch("oxford_pets", tmp_path / "data", Reporter())
    assert own.read_bytes() == b"mine" and not mirror.asked
    assert look("oxford_pets", tmp_path / "data").missing() == ["split_zhou_OxfordPets.json"]


def test_what_is_not_the_data_set_is_kept_to_be_looked_at(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, "oxford_pets")
    facts = FACTS["oxford_pets"]
    monkeypatch.setitem(FACTS, "oxford_pets", type(facts)(**{**vars(facts), "n_classes": 37}))  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"oxford_pets\.zip: is not the data set that was expected.*has 3 classes"
    ):
        fetch.fetch("oxford_pets", tmp_path / "data", Reporter())
    assert not (tmp_path / "data" / "oxford_pets").exists()
    assert (tmp_path / "data" / ".patchsae-fetch" / "oxford_pets" / "oxford_pets.zip").is_file()


def test_what_goes_wrong_is_one_sentence(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: Name = "dtd") -> str:
        with pytest.raises(UserError) as error:
            fetch.fetch(name, tmp_path / "data", Reporter())
        assert not (tmp_path / "data" / FACTS[name].folder).exists()
        return str(error.value)

    assert "imagenet: is not in the mirror; get it from https://image-net.org" in refused("imagenet")
    for error in (
        ConnectionError("no route"),
        huggingface_hub.errors.LocalEntryNotFoundError("offline"),
        huggingface_hub.errors.HfHubHTTPError.__bases__[0]("gone"),
    ):
        mirror.error = error
        assert "could not be fetched" in refused() and "run the same command again" in refused()
    mirror.error = OSError(errno.ENOSPC, "No space left on device")
    assert "the disk is full" in refused()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "--fetch: needs the package huggingface_hub, which is not installed" in refused()


def _member(name: str, mode: int = 0o644 | stat.S_IFREG) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (_member("dtd/../../evil"), "which leads out of its folder"),
        (_member("/evil"), "which leads out of its folder"),
        (_member("dtd\\..\\evil"), "which leads out of its folder"),
        (_member("dtd/link", 0o777 | stat.S_IFLNK), "is no file but a link or device"),
        (_member("dtd/pipe", 0o666 | stat.S_IFIFO), "is no file but a link or device"),
        (_member("dtd/images"), "cannot be unpacked"),
        (_member("dtd/images/1.jpg"), "cannot be unpacked"),
    ],
)
def test_an_archive_may_not_write_elsewhere(member: zipfile.ZipInfo, sentence: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "dtd.zip", tmp_path / "unpacked" / "dtd"
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(_member("dtd/images/1.jpg"), b"image")
        out.writestr(_member("dtd/split_zhou_DescribableTextures.json"), b"{}")
        out.writestr(member, b"../../evil")
    with pytest.raises(UserError, match=sentence):
        unpack(file, folder, "split_zhou_DescribableTextures.json", Reporter())
    assert not list(tmp_path.rglob("evil")) and not any(path.is_symlink() for path in tmp_path.rglob("*"))
    if "cannot be" not in sentence:
        assert not folder.exists()


def test_an_archive_that_is_none_is_refused(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(mirror, monkeypatch, "dtd")
    whole = (mirror.folder / "dtd.zip").read_bytes()
    damaged = bytearray(whole)
    damaged[2_000] ^= 0xFF
    (tmp_path / "other").write_bytes(b"")
    for content in (b"no zip", whole[: len(whole) // 2], bytes(damaged)):
        (mirror.folder / "dtd.zip").write_bytes(content)
        with pytest.raises(UserError, match=r"dtd\.zip: cannot be unpacked|dtd\.zip: is not the data set"):
            fetch.fetch("dtd", tmp_path / "data", Reporter())
        assert not (tmp_path / "data" / "dtd").exists()
    (mirror.folder / "dtd.zip").unlink()
    zipped(mirror.folder / "content" / "dtd" / "images", mirror.folder / "dtd.zip")
    with pytest.raises(
        UserError, match=r"holds no `split_zhou_DescribableTextures\.json`, but test_0, test_1"
    ):
        fetch.fetch("dtd", tmp_path / "data", Reporter())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    (mirror.folder / "dtd.zip").write_bytes(whole)
    with pytest.raises(UserError, match=r"unpacking dtd.zip takes .*, and 10 bytes are free"):
        fetch.fetch("dtd", tmp_path / "data", Reporter())


def test_every_data_set_says_what_belongs_to_it() -> None:
    assert {
        name: belongs(FACTS[name]) for name in ("stanford_cars", "fgvc_aircraft", "imagenet", "eurosat")
    } == {
        "stanford_cars": ["split_zhou_StanfordCars.json"],
        "fgvc_aircraft": [
            "images/",
            "variants.txt",
            *(f"images_variant_{split}.txt" for split in ("train", "val", "test")),
        ],
        "imagenet": ["images/train/", "images/val/", "classnames.txt"],
        "eurosat": ["2750/", "split_zhou_EuroSAT.json"],
    }
