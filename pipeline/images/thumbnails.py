"""The table `thumbnails` of an index: a small picture of every image, so that explorers need not open the originals.

Only datasets of image files have it. Images that are rendered are rendered again when they are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchsae.pipeline.images.pixels import Thumbnail
from patchsae.storage.artifacts import Artifact
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import Column, TableSchema

THUMBNAILS = TableSchema(
    "thumbnails",
    "A small picture of every readable image, for explorers. Only datasets of image files have this table, if they have "
    "fewer than 100,000 images or their field `thumbnails` asks for it.",
    (
        Column("image", pa.int64(), "Row number of the image in the table `images`."),
        Column("width", pa.int32(), "Width of the small picture in pixels."),
        Column("height", pa.int32(), "Height of the small picture in pixels."),
        Column(
            "webp",
            pa.binary(),
            "The file of the small picture, in WebP: the whole image as it is shown, turned upright and on its "
            "background, made smaller if its longest side is over `thumbnails` pixels.",
        ),
    ),
    # About 130 KB, so that little is read for the pictures of one page.
    rows_per_group=64,
)
# Bytes of a WebP file per square of the side, as measured on photographs.
_BYTES_PER_SQUARE = 0.22


def expected_thumbnail_bytes(side: int) -> float:
    """About the size of a thumbnail in the table."""
    return _BYTES_PER_SQUARE * side**2 + 40 if side else 0.0


def to_arrays(thumbnails: Sequence[Thumbnail | None]) -> dict[str, np.ndarray]:
    """The thumbnails of a part of an index as arrays for its scratch: of the images that can be read."""
    files = [b"" if one is None else one.webp for one in thumbnails]
    sizes = [(0, 0) if one is None else (one.width, one.height) for one in thumbnails]
    return {
        "ends": np.cumsum([0, *map(len, files)]),
        "size": np.array(sizes, np.int32).reshape(-1, 2),
        "webp": np.frombuffer(b"".join(files), np.uint8),
    }


def columns(
    arrays: ScratchArrays | Mapping[str, np.ndarray], first: int
) -> dict[str, Sequence[object] | np.ndarray]:
    """The columns of the table, from the arrays of a part whose first readable image has the row number `first`."""
    ends, size, webp = arrays["ends"], arrays["size"], arrays["webp"].tobytes()
    is_there = np.diff(ends) > 0
    files = [webp[a:b] for a, b in itertools.pairwise(ends.tolist()) if b > a]
    return {
        "image": np.arange(first, first + len(files)),
        "width": size[is_there, 0],
        "height": size[is_there, 1],
        "webp": files,
    }


def thumbnails_of(images: Artifact, rows: Sequence[int]) -> dict[int, bytes]:
    """The WebP files of some images of an index, by row number; none of images, or of indexes, that have none.

    Only the row groups are read that hold one of the images. Raises UserError if the table is damaged.
    """
    wanted, found = sorted(set(rows)), {}
    if not images.table_files(THUMBNAILS.name):
        return {}
    images.scan(THUMBNAILS.name)  # Compares the files with their digests, once per process.
    for path in images.table_files(THUMBNAILS.name):
        with pq.ParquetFile(path) as file:
            groups = [
                group
                for group in range(file.num_row_groups)
                if _holds(file.metadata.row_group(group).column(0).statistics, wanted)
            ]
            if groups:
                table = file.read_row_groups(groups, columns=["image", "webp"])
                for image, webp in zip(table["image"].to_pylist(), table["webp"].to_pylist(), strict=True):
                    found[image] = webp
    return {image: found[image] for image in wanted if image in found}


def _holds(bounds: pq.Statistics | None, rows: Sequence[int]) -> bool:
    """Whether a row group with these bounds of `image` may hold one of the ascending rows. An empty one has none."""
    if bounds is None or not bounds.has_min_max:
        return False
    at = int(np.searchsorted(rows, bounds.min))
    return at < len(rows) and rows[at] <= bounds.max
