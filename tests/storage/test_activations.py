from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from patchsae.storage.activations import (
    ARRAY,
    ActivationDtype,
    Activations,
    ActivationTemplate,
    ActivationWriter,
    to_float32,
)
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.chunk_reader import ChunkReader
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.shards import encode
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

TEMPLATE: dict[str, Any] = {
    "n_images": 23,
    "tokens_per_image": 5,
    "width": 4,
    "chunk_images": 2,
    "chunks_per_shard": 3,
}


LAYOUT = TokenLayout(1, (2, 1), 2)


def writer_in(folder: Path, template: ActivationTemplate) -> ActivationWriter:
    return ActivationWriter(begin(folder), template, LAYOUT, {})


def begin(folder: Path) -> Builder:
    store = Store(folder)
    return store.begin(store.at("extract", artifact_key("extract", 1, {}, {})))


def written(
    folder: Path, dtype: ActivationDtype = "float16", shards: tuple[int, ...] = (0, 1, 2, 3)
) -> tuple[Artifact, np.ndarray]:
    template = ActivationTemplate(dtype=dtype, **TEMPLATE)
    values = np.random.default_rng(0).standard_normal((23, 5, 4)).astype(np.float16)
    stored = (
        values if dtype == "float16" else (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    )
    out = begin(folder)
    writer = ActivationWriter(out, template, LAYOUT, {})
    for shard in shards:
        images = template.shard_range(shard)
        out.ledger.record(shard, [writer.write(images.start, stored[images.start : images.stop])])
    return Store(folder).commit(out, 1, {}, {}, {}, {}), stored


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: ActivationDtype) -> None:
    artifact, stored = written(tmp_path, dtype)
    activations = Activations(artifact)
    assert (activations.n_images, activations.tokens_per_image, activations.width) == (23, 5, 4)
    assert activations.dtype == dtype
    assert activations.layout == LAYOUT
    np.testing.assert_array_equal(activations.read(3, 20), stored[3:20])
    assert [r for s in range(activations.n_shards) for r in activations.shard_range(s)] == list(range(23))
    assert [r for c in activations.chunk_ranges(3, 20) for r in c] == list(range(3, 20))


def test_bfloat16_bits_are_read_back_exactly() -> None:
    values = np.array([1.0, -2.5, 3.140625, 1e30], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(to_float32(bits, "bfloat16"), expected)
    assert to_float32(np.array([1.5], np.float16), "float16").dtype == np.float32


def test_plain_zarr_reads_it_with_named_dimensions(tmp_path: Path) -> None:
    artifact, stored = written(tmp_path)
    array = zarr.open_array(artifact.path / ARRAY, mode="r")
    np.testing.assert_array_equal(array[:], stored)
    assert array.metadata.dimension_names == ("image", "token", "channel")  # type: ignore[union-attr]


def test_a_gap_is_never_a_number(tmp_path: Path) -> None:
    artifact, stored = written(tmp_path, shards=(0, 2, 3))
    activations = Activations(artifact)
    for start, stop in ((6, 8), (0, 23), (5, 7), (10, 13)):
        with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
            activations.read(start, stop)
    place = np.empty((2, 5, 4), np.float16)
    with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
        ChunkReader(activations).read_into(range(6, 8), place)
    np.testing.assert_array_equal(activations.read(12, 23), stored[12:])


def test_a_chunk_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    artifact, stored = written(tmp_path)
    path = artifact.path / ARRAY / "c" / "1" / "0" / "0"
    whole = b"".join(encode(stored[6:10], 2, 3))  # Two of the three chunks, with a sound index.
    path.write_bytes(whole)
    activations = Activations(artifact)
    np.testing.assert_array_equal(activations.read(6, 10), stored[6:10])
    with pytest.raises(UserError, match=r"c/1/0/0: damaged \(a chunk was never written\)"):
        activations.read(6, 12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error_that_names_the_shard(
    tmp_path: Path, dtype: ActivationDtype, value: float
) -> None:
    artifact, stored = written(tmp_path, dtype)
    activations = Activations(artifact)
    activations.check_finite(np.arange(23), stored)
    bits = np.array([value], np.float32).view(np.uint32) >> 16
    stored[13, 2, 1] = value if dtype == "float16" else bits[0]
    with pytest.raises(UserError, match=r"c/2/0/0: image 13 has values"):
        activations.check_finite(np.arange(23), stored)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damaged_metadata_are_an_error_and_are_written_anew(tmp_path: Path, damage: str) -> None:
    artifact, stored = written(tmp_path)
    path = artifact.path / ARRAY / "zarr.json"
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data.replace(b"23", b"22", 1))
        case "delete":
            path.unlink()
        case _:
            path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    with pytest.raises(UserError, match=r"zarr\.json"):
        Activations(artifact)
    store = Store(tmp_path)
    store.drop(artifact)
    out = store.begin(artifact)
    ActivationWriter(out, ActivationTemplate(dtype="float16", **TEMPLATE), LAYOUT, {})
    assert path.read_bytes() == data
    assert out.ledger.missing(4) == [], "the shards are kept"
    again = store.commit(out, 1, {}, {}, {}, {})
    assert again.manifest.outputs == artifact.manifest.outputs
    np.testing.assert_array_equal(Activations(again).read(0, 23), stored)


@pytest.mark.parametrize(("start", "n_images"), [(0, 5), (3, 6), (1, 6), (18, 6)])
def test_anything_but_a_whole_shard_is_refused(tmp_path: Path, start: int, n_images: int) -> None:
    writer = writer_in(tmp_path, ActivationTemplate(dtype="float16", **TEMPLATE))
    with pytest.raises(ValueError, match="race"):
        writer.write(start, np.zeros((n_images, 5, 4), np.float16))


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    artifact, _ = written(tmp_path)
    path = artifact.path / ARRAY / "c" / "1" / "0" / "0"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[7] ^= 1
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    activations = Activations(artifact)
    activations.read(0, 6)
    with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
        activations.read(6, 12)


def test_shapes_decide_chunks_and_shards() -> None:
    template = ActivationTemplate.plan(1_281_167, 197, 768, "float16")
    assert template.chunk_images == 8
    assert 150e6 < template.shard_images * 197 * 768 * 2 < 210e6
    assert template.n_bytes == 1_281_167 * 197 * 768 * 2
    small = ActivationTemplate.plan(2_000, 65, 128, "float16")
    assert small.n_shards >= 8


def test_shards_have_the_bytes_zarr_itself_writes(tmp_path: Path) -> None:
    artifact, stored = written(tmp_path / "ours")
    template = ActivationTemplate(dtype="float16", **TEMPLATE)
    plain = begin(tmp_path / "plain")
    ActivationWriter(plain, template, LAYOUT, {})
    zarr.open_array(plain.path / ARRAY, mode="r+")[:] = stored
    for shard in range(3):
        name = Path(ARRAY) / "c" / str(shard) / "0" / "0"
        assert (artifact.path / name).read_bytes() == (plain.path / name).read_bytes()


def test_tokens_are_selected_by_where_they_stand() -> None:
    layout = TokenLayout(n_prefix=2, grid=(3, 4), n_suffix=5)
    assert layout.n_tokens == 19
    assert layout.select("all") == range(14)
    assert layout.select("with_prompts") == range(19)
    assert layout.select("prefix") == range(2)
    assert layout.select("patches") == range(2, 14)
    assert TokenLayout.of(layout.attributes()) == layout
    # Arrays of older stores say nothing of suffix tokens.
    assert TokenLayout.of({"n_prefix_tokens": 1, "grid": [2, 2]}) == TokenLayout(1, (2, 2))
    assert "n_suffix_tokens" not in TokenLayout(1, (2, 2)).attributes()
