"""Cached activations: one Zarr v3 array (image, token, channel) per artifact, written in whole shards.

A shard is the unit of writing and of resuming, a chunk the unit of reading. Chunks carry a crc32c, so a
flipped byte is an error and not a number; a shard that was never written reads as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.artifacts import Artifact
from storage.atomic import write_atomic
from storage.errors import UserError
from storage.keys import digest_buffers
from storage.ledger import FileRecord

ActivationDtype = Literal["float16", "bfloat16"]

ARRAY = "activations.zarr"
DIMENSIONS = ("image", "token", "channel")
_CHUNK_BYTES = 2_500_000
_SHARD_BYTES = 200_000_000
# Zarr has no bfloat16: its bits are stored as uint16 and the attribute `dtype` says so.
_NAN_BITS = {"float16": 0x7E00, "uint16": 0x7FC0}
_CRC_BYTES = 4
_ABSENT = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class ActivationTemplate:
    """The array before it has data: the shape decides chunks and shards, and so the parts of the work."""

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
        """Chunks of about 2.5 MB and shards of about 200 MB, and at least eight shards where there are
        enough images, so that small data sets resume too."""
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
        """Bytes of the data on disk, without the few per cent of indexes."""
        return self.n_images * self.tokens_per_image * self.width * 2

    def shard_range(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.n_images))


class ActivationWriter:
    """Writes whole shards. Several writers may work on different shards at once."""

    def __init__(self, folder: Path, template: ActivationTemplate, attributes: Mapping[str, Any]) -> None:
        self.folder = folder / ARRAY
        self.template = template
        if not (self.folder / "zarr.json").is_file():
            self._create(attributes)

    def _create(self, attributes: Mapping[str, Any]) -> None:
        t = self.template
        is_float16 = t.dtype == "float16"
        zarr.create_array(
            store=self.folder,
            shape=(t.n_images, t.tokens_per_image, t.width),
            chunks=(t.chunk_images, t.tokens_per_image, t.width),
            shards=(t.shard_images, t.tokens_per_image, t.width),
            dtype="float16" if is_float16 else "uint16",
            fill_value=float("nan") if is_float16 else _NAN_BITS["uint16"],
            compressors=[Crc32cCodec()],
            serializer=BytesCodec(),
            dimension_names=DIMENSIONS,
            attributes={**attributes, "dtype": t.dtype},
            config={"write_empty_chunks": True},
            overwrite=True,
        )

    def metadata_file(self) -> Path:
        return self.folder / "zarr.json"

    def shard_file(self, shard: int) -> Path:
        return self.folder / "c" / str(shard) / "0" / "0"

    def write(self, start: int, values: np.ndarray) -> FileRecord:
        """Writes one whole shard, atomically and onto the disk for good, and returns what the ledger needs.

        `values`: [images, tokens, channels], float16, or uint16 bits of bfloat16. Raises ValueError if
        `values` is not exactly one shard: two writers of one shard would overwrite each other.
        """
        shard, offset = divmod(start, self.template.shard_images)
        expected = self.template.shard_range(shard)
        if offset or values.shape != (len(expected), self.template.tokens_per_image, self.template.width):
            raise ValueError(
                f"images {start} to {start + len(values)} are not one whole shard "
                f"({expected.start} to {expected.stop}): two writers would race on it"
            )
        path = self.shard_file(shard)
        buffers = encode_shard(values, self.template.chunk_images, self.template.chunks_per_shard)
        # Digests take as long as the disk, so both go at once.
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(digest_buffers, buffers)
            write_atomic(path, *buffers)
            return FileRecord(
                path.relative_to(self.folder.parent).as_posix(),
                sum(buffer.nbytes for buffer in buffers),
                digest.result(),
            )


def encode_shard(values: np.ndarray, chunk_images: int, chunks_per_shard: int) -> list[memoryview]:
    """A shard in Zarr v3's sharding format: chunks, each followed by its crc32c, then an index of (offset, size)
    pairs with a crc32c of its own.

    Equal to what Zarr writes and several times as fast, since nothing is copied or read back. The last chunk
    is padded with NaN to full size; chunks past the end of the array are marked absent, as the format has it.
    """
    index = np.full((chunks_per_shard, 2), _ABSENT, "<u8")
    buffers: list[memoryview] = []
    offset = 0
    bits = np.ascontiguousarray(values).view(np.uint16)
    for number, start in enumerate(range(0, len(bits), chunk_images)):
        chunk = bits[start : start + chunk_images]
        if len(chunk) < chunk_images:
            padded = np.full((chunk_images, *bits.shape[1:]), _NAN_BITS[str(values.dtype)], np.uint16)
            padded[: len(chunk)] = chunk
            chunk = padded
        buffers += _with_crc32c(chunk)
        index[number] = (offset, chunk.nbytes + _CRC_BYTES)
        offset += chunk.nbytes + _CRC_BYTES
    return [*buffers, *_with_crc32c(index)]


def _with_crc32c(data: np.ndarray) -> tuple[memoryview, memoryview]:
    flat = data.reshape(-1).view(np.uint8)
    return memoryview(flat.data), memoryview(google_crc32c.value(flat).to_bytes(_CRC_BYTES, "little"))


class Activations:
    """The cached activations of one artifact, read only.

    `read` returns float16, or uint16 bits when `dtype` is `bfloat16`.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._array: zarr.Array = zarr.open_array(artifact.path / ARRAY, mode="r")
        self.attributes: dict[str, Any] = dict(self._array.attrs)
        self.dtype: ActivationDtype = self.attributes["dtype"]
        self.n_images, self.tokens_per_image, self.width = self._array.shape
        self.chunk_images: int = self._array.chunks[0]
        self.shard_images: int = (self._array.shards or self._array.chunks)[0]
        self.n_prefix_tokens: int = self.attributes["n_prefix_tokens"]

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_images / self.shard_images)

    def shard_range(self, shard: int) -> range:
        return range(shard * self.shard_images, min((shard + 1) * self.shard_images, self.n_images))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images `start` to `stop`: [images, tokens, channels]. Raises UserError naming a damaged shard."""
        try:
            return np.asarray(self._array[start:stop])
        except (ValueError, OSError) as error:
            shards = range(start // self.shard_images, -(-stop // self.shard_images))
            files = ", ".join(str(self.artifact.path / ARRAY / "c" / str(s) / "0" / "0") for s in shards)
            raise UserError(
                f"{files}: damaged ({error}); `patchsae verify --discard` drops what is damaged and the "
                "next run computes that again."
            ) from error

    def chunk_ranges(self, start: int, stop: int) -> list[range]:
        """The chunks that cover images `start` to `stop`, cut to that range."""
        first = start // self.chunk_images
        last = -(-stop // self.chunk_images)
        return [
            range(max(start, c * self.chunk_images), min(stop, (c + 1) * self.chunk_images))
            for c in range(first, last)
        ]


def to_float32(values: np.ndarray, dtype: ActivationDtype) -> np.ndarray:
    """Stored values as float32, exactly. `values`: float16, or uint16 bits of bfloat16."""
    if dtype == "float16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)
