"""Image files from others: what cannot be decoded ends in one sentence, which is the same every time."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.images import files
from patchsae.pipeline.images.files import FORMATS, MAX_ASPECT, decode_rgb, image_files, read_file, reason


def encoded(format_name: str, size: tuple[int, int] = (6, 5), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(buffer, format_name, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refusal(data: bytes) -> str:
    with pytest.raises(OSError) as caught:
        decode_rgb(data)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and "0x" not in sentence
    return sentence


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_that_is_listed_is_read(format_name: str) -> None:
    image = decode_rgb(encoded(format_name))
    assert (image.mode, image.size) == ("RGB", (6, 5))


def test_jpegs_of_several_images_are_read_as_their_first() -> None:
    other = Image.new("RGB", (6, 5), (0, 0, 255))
    data = encoded("MPO", save_all=True, append_images=[other])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO", "Pillow wrote a plain JPEG, which would test nothing"
    red, _, blue = decode_rgb(data).getpixel((3, 2))  # type: ignore[misc]
    assert red > 150 and blue < 100


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show\n%%EOF\n"
BLP = b"BLP1" + struct.pack("<6i", 0, 8, 9, 9, 4, 0) + bytes(2000)


@pytest.mark.parametrize(
    "data",
    [
        EPS,
        BLP,
        encoded("AVIF"),
        encoded("DDS"),
        encoded("TGA"),
        encoded("ICO"),
        encoded("JPEG2000"),
        b"",
        b"a",
    ],
    ids=["EPS", "BLP", "AVIF", "DDS", "TGA", "ICO", "JPEG2000", "empty", "text"],
)
def test_other_formats_are_refused_whatever_the_suffix_says(data: bytes) -> None:
    assert refusal(data) == refusal(data)
    assert "is no image of the formats that are read (JPEG, PNG," in refusal(data)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        struct.error("unpack"),
        NotImplementedError(),
        RecursionError("deep"),
        ZeroDivisionError("0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: object) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert type(error).__name__ in refusal(encoded("PNG"))


def test_what_is_wrong_with_the_machine_is_not_said_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError, KeyboardInterrupt):

        def fail(image: object, error: type[BaseException] = error) -> None:
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(error):
            decode_rgb(encoded("PNG"))


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_the_pixels_are_bounded_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded it"))
    assert refusal(png_header(*size)) == "has more than 100,000,000 pixels, the most that are decoded"


def test_an_image_of_the_largest_size_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_PIXELS", 30)
    assert decode_rgb(encoded("PNG")).size == (6, 5)
    monkeypatch.setattr(files, "MAX_PIXELS", 29)
    assert "has more than 29 pixels" in refusal(encoded("PNG"))


def test_an_image_may_not_be_a_line() -> None:
    assert decode_rgb(encoded("PNG", (1, MAX_ASPECT))).size == (1, MAX_ASPECT)
    assert "has 1,001 x 1 pixels, and one side is over 1,000 times the other" in refusal(
        encoded("PNG", (MAX_ASPECT + 1, 1))
    )


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
