"""Image files from others: what their pixels become, and that what cannot be decoded ends in one sentence."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from patchsae.pipeline.images import pixels
from patchsae.pipeline.images.files import FORMATS
from patchsae.pipeline.images.pixels import MAX_ASPECT, Facts, Reading, as_rgb, decode_rgb, inspect
from tests.support.photos import exif_of


def saved(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def encoded(format_name: str, size: tuple[int, int] = (6, 5), **options: object) -> bytes:
    return saved(Image.new("RGB", size, (200, 10, 30)), format_name, **options)


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
    monkeypatch.setattr(pixels, "MAX_PIXELS", 30)
    assert decode_rgb(encoded("PNG")).size == (6, 5)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 29)
    assert "has more than 29 pixels" in refusal(encoded("PNG"))


def test_an_image_may_not_be_a_line() -> None:
    assert decode_rgb(encoded("PNG", (1, MAX_ASPECT))).size == (1, MAX_ASPECT)
    assert "has 1,001 x 1 pixels, and one side is over 1,000 times the other" in refusal(
        encoded("PNG", (MAX_ASPECT + 1, 1))
    )


STORED = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [99, 99, 99], [199, 199, 199]]], np.uint8
)


def turned(orientation: object, format_name: str = "PNG") -> bytes:
    """The image `STORED` (3 wide, 2 high) with an EXIF orientation."""
    return saved(Image.fromarray(STORED), format_name, exif=exif_of(orientation))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, STORED),
        (2, STORED[:, ::-1]),
        (3, STORED[::-1, ::-1]),
        (4, STORED[::-1]),
        (5, STORED.transpose(1, 0, 2)),
        (6, np.rot90(STORED, -1)),
        (7, np.rot90(STORED, 2).transpose(1, 0, 2)),
        (8, np.rot90(STORED)),
        (0, STORED),
        (9, STORED),
    ],
)
def test_images_are_turned_as_their_orientation_says(orientation: int, upright: np.ndarray) -> None:
    data = turned(orientation)
    assert np.array_equal(np.asarray(decode_rgb(data)), upright)
    height, width, _ = upright.shape
    treatment = f"orientation {orientation}" if orientation in range(2, 9) else ""
    assert inspect(data) == Facts(width, height, treatment)
    ignoring = Reading(orientation="ignore")
    assert np.array_equal(np.asarray(decode_rgb(data, ignoring)), STORED)
    assert inspect(data, ignoring) == Facts(3, 2)


def test_a_tiff_is_turned_once_whoever_turns_it() -> None:
    data = turned(6, "TIFF")
    assert np.array_equal(np.asarray(decode_rgb(data)), np.rot90(STORED, -1))
    assert inspect(data) == Facts(2, 3)  # Pillow always turned these, so nothing has changed for them.


def test_the_size_of_a_turned_jpeg_is_that_of_the_whole_image() -> None:
    assert inspect(encoded("JPEG", (640, 100), exif=exif_of(8))) == Facts(100, 640, "orientation 8")


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20), b"x"])
def test_broken_exif_data_leave_the_image_as_it_is(exif: bytes) -> None:
    data = encoded("JPEG", exif=exif)
    assert decode_rgb(data).size == (6, 5)
    assert inspect(data) == Facts(6, 5)


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return image


# Each is a transparent pixel and an opaque one; what is stored under the first is not white.
TRANSPARENT = {
    "RGBA": saved(Image.fromarray(np.array([[[10, 20, 30, 0], [200, 100, 50, 255]]], np.uint8))),
    "palette": saved(palette(), transparency=0),
    "GIF": saved(palette(), "GIF", transparency=0),
    "WebP": saved(
        Image.fromarray(np.array([[[10, 20, 30, 0], [200, 100, 50, 255]]], np.uint8)),
        "WEBP",
        lossless=True,
        exact=True,
    ),
    "a colour of RGB": saved(
        Image.fromarray(np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)), transparency=(10, 20, 30)
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize(
    ("background", "first"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#804020", (128, 64, 32)), ("none", (10, 20, 30))],
)
def test_transparent_pixels_are_put_on_the_background(
    name: str, background: str, first: tuple[int, ...]
) -> None:
    data, reading = TRANSPARENT[name], Reading(background=background)
    image = decode_rgb(data, reading)
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [first, (200, 100, 50)]
    assert inspect(data, reading).treatment == ("" if background == "none" else f"background {background}")


def test_grey_with_alpha_is_mixed_with_the_background() -> None:
    data = saved(Image.fromarray(np.array([[[0, 0], [0, 128], [0, 255]]], np.uint8), "LA"))
    assert np.asarray(decode_rgb(data))[0, :, 0].tolist() == [255, 127, 0]


def test_an_opaque_alpha_channel_is_no_treatment() -> None:
    data = saved(Image.new("RGBA", (4, 3), (1, 2, 3, 255)))
    assert inspect(data) == Facts(4, 3)
    assert decode_rgb(data).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(format_name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = saved(frames[0], format_name, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    red, green, _ = decode_rgb(data).getpixel((4, 4))  # type: ignore[misc]
    assert red > 200 and green < 50
    assert inspect(data) == Facts(8, 8)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled(format_name: str) -> None:
    data = saved(Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), format_name)
    image = decode_rgb(data)
    assert np.asarray(image)[0].tolist() == [[0, 0, 0], [1, 1, 1], [128, 128, 128], [255, 255, 255]]
    assert inspect(data) == Facts(4, 1)


def test_sixteen_bits_of_colour_are_scaled() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 257, 65535, 32896, 65535, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert np.asarray(decode_rgb(data))[0].tolist() == [[0, 1, 255], [128, 255, 0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 1]], np.float32), "floating-point pixels"),
        (np.array([[0, 70_000]], np.int32), "outside 0 to 65,535"),
        (np.array([[-1, 7]], np.int32), "outside 0 to 65,535"),
    ],
)
def test_numbers_without_a_defined_white_are_refused(values: np.ndarray, message: str) -> None:
    data = saved(Image.fromarray(values), "TIFF")
    assert message in refusal(data)
    with pytest.raises(OSError, match=message):
        inspect(data)


def test_cmyk_becomes_the_colours_that_are_printed() -> None:
    data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decode_rgb(data).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240 and green < 15 and blue < 15
    assert inspect(data) == Facts(16, 16)


def test_an_image_of_pillow_is_read_like_a_file() -> None:
    for data in (turned(6), *TRANSPARENT.values()):
        with Image.open(io.BytesIO(data)) as image:
            assert as_rgb(image).tobytes() == decode_rgb(data).tobytes()


def test_what_inspect_finds_readable_is_what_can_be_decoded() -> None:
    """`inspect` decodes a JPEG at an eighth of its size, which must not let a broken one through."""
    rng = random.Random(0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    bases = [
        saved(image, "JPEG", **options)
        for image in (noise, noise.convert("L"), noise.convert("CMYK"))
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0})
    ]
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        data = bytearray(rng.choice(bases))
        match rng.randrange(4):
            case 0:
                del data[rng.randrange(len(data)) :]
            case 1:
                at = rng.randrange(len(data))
                del data[at : at + rng.randrange(1, 200)]
            case 2:
                at = rng.randrange(len(data))
                data[at : at + 300] = bytes(len(data[at : at + 300]))
            case _:
                for _ in range(rng.randrange(1, 6)):
                    data[rng.randrange(len(data))] = rng.choice((0, 0xD9, 0xFF, rng.randrange(256)))
        found = [_verdict(read, bytes(data)) for read in (decode_rgb, inspect)]
        assert found[0] == found[1]
        outcomes[found[0] is None] += 1
    assert min(outcomes.values()) > 200, outcomes


def _verdict(read: object, data: bytes) -> str | None:
    try:
        read(data)  # type: ignore[operator]
    except OSError as error:
        return str(error)
    return None
