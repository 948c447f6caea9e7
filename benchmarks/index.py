"""Indexing photographs of 12 megapixels: reading, digesting, and finding out whether each can be decoded.

The photographs are made here: noise of several scales, saved as a camera does (JPEG, quality 90, 4:2:0), 3.3 MB each.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Measurement, parser, report, seconds
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.pixels import decode_rgb, inspect
from patchsae.storage.store import Store

SIZE = (4032, 3024)
_SCALES = ((400, 60), (100, 40), (25, 25), (6, 12), (2, 6))
"""Size of a blotch in pixels, and its contrast: about 1 / frequency, as in photographs."""
EXPERIMENT = """
name: photos
datasets: {{photos: {{kind: image_folder, root: {root!r}}}}}
backbones: {{clip: {{kind: shapes_clip}}}}
"""


def photograph(seed: int, **options: object) -> bytes:
    """A JPEG of 12 megapixels."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    pixels = np.full((height, width, 3), 120, np.float32) + 3 * rng.standard_normal(
        (height, width, 1), np.float32
    )
    for blotch, contrast in _SCALES:
        for channel in range(3):
            small = rng.standard_normal((height // blotch + 2, width // blotch + 2), np.float32)
            pixels[..., channel] += contrast * np.asarray(
                Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)
            )
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def write_folder(folder: Path, data: bytes, n_images: int) -> None:
    """`n_images` photographs in three classes, told apart by some bytes after the end of the image."""
    for number in range(n_images):
        path = folder / f"class {number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + str(number).encode())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=300)
    options.add_argument("--listed", type=int, default=20_000, help="files of a folder that is only listed")
    arguments = options.parse_args()
    data, progressive = photograph(0), photograph(0, progressive=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "photos", data, arguments.images)
        work = work_on(
            Store(folder / "store"),
            parse(EXPERIMENT.format(root=str(folder / "photos")), "photos"),
            ["index"],
        )
        started, used = time.perf_counter(), time.process_time()
        run(work, Runtime())
        taken, used = time.perf_counter() - started, time.process_time() - used
        write_folder(folder / "many", b"", arguments.listed)
        listing = seconds(lambda: ImageFolderConfig(root=str(folder / "many")).source())
    found = {
        f"indexing {arguments.images} photographs": Measurement(value=taken, target=5.0, unit="s"),
        "... processor time": Measurement(value=used, target=None, unit="s"),
        f"listing {arguments.listed:,} files": Measurement(value=listing, target=None, unit="s"),
    }
    for kind, image in (("JPEG", data), ("progressive JPEG", progressive)):
        ratio = seconds(lambda image=image: decode_rgb(image)) / seconds(lambda image=image: inspect(image))  # type: ignore[misc]
        found[f"{kind}: decoding whole / finding out whether it can be decoded"] = Measurement(
            value=ratio, target=None, unit="x"
        )
    report("index", found, arguments.json)


if __name__ == "__main__":
    main()
