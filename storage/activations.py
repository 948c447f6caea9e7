"""Cached activations: one Zarr v3 array (image, token, channel) per artifact of the stage `extract`.

A shard is the unit of writing and of resuming; a chunk is the unit of reading. Every chunk has a crc32c, so
reading a damaged chunk raises an error, and so does reading a chunk that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import write_atomic
from patchsae.storage.errors import Damaged, UserError
from patchsae.storage.files import REMEDY, FileRecord
from patchsae.storage.keys import digest_buffers
from patchsae.storage.shards import NAN_BITS, encode, read_index
from patchsae.storage.tokens import ARRAY, METADATA, TokenLayout

ActivationDtype = Literal["float16", "bfloat16"]

_METADATA = "zarr.json"
DIMENSIONS = ("image", "token", "channel")
_CHUNK_BYTES = 2_500_000
_SHARD_BYTES = 200_000_000


def shard_file(root: Path, shard: int) -> Path:
    """The file of a shard in the artifact's folder `root`."""
    return root / ARRAY / "c" / str(shard) / "0" / "0"


@dataclass(frozen=True)
class ActivationTemplate:
    """The shape of an activation array, and its chunks and shards. One shard is one part of the work."""

    n_images: int
    tokens_per_image: int
    width: int
    dtype: ActivationDtype
    chunk_images: int
    chunks_per_shard: int

    @classmethod
    def plan(
        cls, n_images: int, tokens_per_image: int, width: int, dtype: ActivationDtype
    ) -> ActivationTemplate:
        """Chunks of about 2.5 MB and shards of about 200 MB.

        There are at least eight shards if there are eight chunks, so that small datasets can be resumed too.
        """
        image_bytes = tokens_per_image * width * 2
        chunk_images = max(1, _CHUNK_BYTES // image_bytes)
        n_chunks = math.ceil(n_images / chunk_images)
        chunks_per_shard = max(1, _SHARD_BYTES // (chunk_images * image_bytes))
        return cls(
            n_images,
            tokens_per_image,
            width,
            dtype,
            chunk_images,
            max(1, min(chunks_per_shard, n_chunks // 8)),
        )

    @property
    def shard_images(self) -> int:
        return self.chunk_images * self.chunks_per_shard

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_images / self.shard_images)

    @property
    def n_bytes(self) -> int:
        """Bytes of the array's data. Padding, checksums and indexes come to it, a few per cent."""
        return self.n_images * self.tokens_per_image * self.width * 2

    def shard_range(self, shard: int) -> range:
        """The rows of the images in a shard."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.n_images))


def _metadata(t: ActivationTemplate, attributes: Mapping[str, Any]) -> bytes:
    """The file `zarr.json` of an activation array."""
    is_float16 = t.dtype == "float16"
    store = MemoryStore()
    zarr.create_array(
        store=store,
        shape=(t.n_images, t.tokens_per_image, t.width),
        chunks=(t.chunk_images, t.tokens_per_image, t.width),
        shards=(t.shard_images, t.tokens_per_image, t.width),
        dtype="float16" if is_float16 else "uint16",
        fill_value=float("nan") if is_float16 else NAN_BITS["uint16"],
        compressors=[Crc32cCodec()],
        serializer=BytesCodec(),
        dimension_names=DIMENSIONS,
        attributes={**attributes, "dtype": t.dtype},
        config={"write_empty_chunks": True},
    )
    found = sync(store.get(_METADATA, default_buffer_prototype()))
    assert found is not None
    return found.to_bytes()


class ActivationWriter:
    """Writes whole shards of an activation array. Several writers may write different shards at once."""

    def __init__(
        self, out: Builder, template: ActivationTemplate, layout: TokenLayout, attributes: Mapping[str, Any]
    ) -> None:
        self._out = out
        self.template = template
        # Everything in it follows from the arguments, so what a killed or damaged run left is replaced.
        metadata = _metadata(template, {**layout.attributes(), **attributes})
        name = METADATA
        if not FileRecord.of_bytes(name, metadata).is_sound(out.path):
            write_atomic(out.path / name, metadata)
        out.declare(name, metadata)

    def write(self, start: int, values: np.ndarray) -> FileRecord:
        """Writes one whole shard atomically, forces it to the disk, and returns its record for the ledger.

        `values` [images, tokens, channels] begin at image `start`; float16, or uint16 bits of bfloat16.
        Raises ValueError if they are not exactly one shard: two writers of one shard would overwrite each
        other.
        """
        shard, offset = divmod(start, self.template.shard_images)
        expected = self.template.shard_range(shard)
        if offset or values.shape != (len(expected), self.template.tokens_per_image, self.template.width):
            raise ValueError(
                f"images {start} to {start + len(values)} are not one whole shard "
                f"({expected.start} to {expected.stop}): two writers would race on it"
            )
        path = shard_file(self._out.path, shard)
        buffers = encode(values, self.template.chunk_images, self.template.chunks_per_shard)
        # The digest takes about as long as writing to the disk, so a thread computes it at the same time.
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(digest_buffers, buffers)
            write_atomic(path, *buffers)
            return FileRecord(
                path.relative_to(self._out.path).as_posix(),
                sum(buffer.nbytes for buffer in buffers),
                digest.result(),
            )


class Activations:
    """Reads the cached activations of one artifact. Raises UserError if its metadata are damaged."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        artifact.read(METADATA)  # Raises UserError if it is damaged.
        self._array: zarr.Array = zarr.open_array(artifact.path / ARRAY, mode="r", zarr_format=3)
        self.attributes: dict[str, Any] = dict(self._array.attrs)
        self.dtype: ActivationDtype = self.attributes["dtype"]
        self.n_images, self.tokens_per_image, self.width = self._array.shape
        self.chunk_images: int = self._array.chunks[0]
        self.shard_images: int = (self._array.shards or self._array.chunks)[0]
        self.layout = TokenLayout.of(self.attributes)

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_images / self.shard_images)

    def shard_range(self, shard: int) -> range:
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.n_images))

    def read(self, start: int, stop: int) -> np.ndarray:
        """The activations of images `start` to `stop` as stored: [images, tokens, channels].

        Their type is float16, or uint16 bits if `dtype` is `bfloat16`. Raises UserError naming a damaged
        shard.
        """
        self._check_present(start, stop)
        try:
            return np.asarray(self._array[start:stop])
        except (ValueError, OSError) as error:
            raise self._damaged(range(start, stop), str(error)) from error

    def shard_file(self, shard: int) -> Path:
        return shard_file(self.artifact.path, shard)

    def _check_present(self, start: int, stop: int) -> None:
        """Raises UserError unless every chunk was written. Zarr would return NaN for the others."""
        for shard in range(start // self.shard_images, -(-stop // self.shard_images)):
            images = self.shard_range(shard)
            chunks = range(
                (max(start, images.start) - images.start) // self.chunk_images,
                -(-(min(stop, images.stop) - images.start) // self.chunk_images),
            )
            try:
                index = read_index(self.shard_file(shard), self.shard_images // self.chunk_images)
            except OSError as error:
                raise self._damaged(images, error.strerror or "cannot be read") from None
            if not len(index):
                raise self._damaged(images, "its index does not match its checksum")
            if (index[chunks.start : chunks.stop] < 0).any():
                raise self._damaged(images, "a chunk was never written")

    def check_finite(self, images: np.ndarray, values: np.ndarray) -> None:
        """Raises UserError, naming the shard, if a stored value is NaN or infinite.

        `values` [n, ...] are as stored, those of image `images[i]` at i.
        """
        # A value is NaN or infinite if all bits of its exponent are set.
        exponent = np.uint16(0x7C00 if self.dtype == "float16" else 0x7F80)
        bits = values.view(np.uint16)
        largest = np.bitwise_and(bits, 0x7FFF).max(axis=tuple(range(1, bits.ndim)))
        bad = images[largest >= exponent]
        if len(bad):
            raise self.not_finite(bad)

    def not_finite(self, images: np.ndarray) -> UserError:
        """The error that says that these images have values that are NaN or infinite."""
        shard = shard_file(self.artifact.path, int(images[0]) // self.shard_images)
        return Damaged(
            f"{shard}: image {int(images[0])} has values that are not finite; run again with `--rerun extract`."
        )

    def _damaged(self, images: range | np.ndarray, why: str) -> UserError:
        """The error that says that the shards of these images cannot be used."""
        shards = dict.fromkeys(int(image) // self.shard_images for image in images)
        files = ", ".join(str(self.shard_file(shard)) for shard in shards)
        return Damaged(f"{files}: damaged ({why}); {REMEDY}")

    def chunk_ranges(self, start: int, stop: int) -> list[range]:
        """The rows `start` to `stop`, split where chunks begin."""
        first = start // self.chunk_images
        last = -(-stop // self.chunk_images)
        return [
            range(max(start, c * self.chunk_images), min(stop, (c + 1) * self.chunk_images))
            for c in range(first, last)
        ]


def to_float32(values: np.ndarray, dtype: ActivationDtype) -> np.ndarray:
    """Stored values, which are float16 or uint16 bits of bfloat16, as float32. The conversion is exact."""
    if dtype == "float16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)
