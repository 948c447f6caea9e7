"""The table `thumbnails` of an index: a small picture of every image, so that explorers need not open the originals.

Only datasets of image files have it. Images that are rendered are rendered again when they are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

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
# Memory of what Parquet notes of a row group.
_BYTES_PER_GROUP = 2_000
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


class Thumbnails:
    """The thumbnails of an index. It holds no file open, and knows in which row group each of them is."""

    def __init__(self, images: Artifact) -> None:
        """Raises UserError if the table is damaged."""
        self._files: list[tuple[Path, pq.FileMetaData]] = []
        self._groups: list[tuple[int, int]] = []
        first: list[int] = []
        if images.table_files(THUMBNAILS.name):
            images.scan(THUMBNAILS.name)  # Compares the files with their digests, once per process.
        for path in images.table_files(THUMBNAILS.name):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                bounds = metadata.row_group(group).column(0).statistics
                if bounds is not None and bounds.has_min_max:
                    first.append(bounds.min)
                    self._groups.append((len(self._files), group))
            self._files.append((path, metadata))
        # Files are in the order of their parts, and so of their images.
        self._first = np.array(first, np.int64)

    @property
    def n_bytes(self) -> int:
        """About the memory that is held."""
        return _BYTES_PER_GROUP * len(self._groups)

    def read(self, images: Sequence[int]) -> dict[int, bytes]:
        """The WebP files of some images, by row number, without those of which there are none.

        Only the row groups are read that they are in. Raises OSError if the table was deleted meanwhile.
        """
        wanted = set(images)
        found: dict[int, bytes] = {}
        places = np.searchsorted(self._first, sorted(wanted), side="right") - 1
        for place in np.unique(places[places >= 0]).tolist():
            number, group = self._groups[place]
            path, metadata = self._files[number]
            with pq.ParquetFile(path, metadata=metadata) as file:
                table = file.read_row_group(group, columns=["image", "webp"], use_threads=False)
            for image, webp in zip(table["image"].to_pylist(), table["webp"].to_pylist(), strict=True):
                if image in wanted:
                    found[image] = webp
        return found
