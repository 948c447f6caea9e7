"""The training stream: a pure function of (seed, step), complete, well mixed, the same for any number of threads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.pipeline.activations.shuffle import ShuffleOrder, expected_groups, permutation
from patchsae.pipeline.activations.stream import Batch, Stream, measure_mixing
from patchsae.storage.activations import (
    ActivationDtype,
    Activations,
    ActivationTemplate,
    ActivationWriter,
    to_float32,
)
from patchsae.storage.chunk_reader import ChunkReader
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

N_IMAGES, TOKENS, WIDTH, PREFIX = 45, 6, 8, 1


def _cache(folder: Path, dtype: ActivationDtype = "float16", n_suffix: int = 0) -> Activations:
    """Activations whose every vector tells its image and token."""
    template = ActivationTemplate(N_IMAGES, TOKENS, WIDTH, dtype, chunk_images=4, chunks_per_shard=3)
    store = Store(folder)
    out = store.begin(store.at("extract", artifact_key("extract", 1, {}, {})))
    writer = ActivationWriter(
        out,
        template,
        TokenLayout(PREFIX, (1, TOKENS - PREFIX - n_suffix), n_suffix),
        {},
    )
    image, token = np.mgrid[:N_IMAGES, :TOKENS]
    values = np.stack([image, token] + [np.zeros_like(image)] * (WIDTH - 2), axis=-1).astype(np.float32)
    stored = (
        values.astype(np.float16) if dtype == "float16" else (values.view(np.uint32) >> 16).astype(np.uint16)
    )
    for shard in range(template.n_shards):
        rows = template.shard_range(shard)
        out.ledger.record(shard, [writer.write(rows.start, stored[rows.start : rows.stop])])
    return Activations(store.commit(out, 1, {}, {}, {}, {}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    return _cache(tmp_path_factory.mktemp("cache"))


# Three chunks of 4 images of 6 tokens a block, so that the 45 images need several.
BLOCK = 3 * 4 * TOKENS * WIDTH * 2


def _pairs(batches: list[Batch]) -> list[tuple[int, int]]:
    return [pair for b in batches for pair in zip(b.image.tolist(), b.token.tolist(), strict=True)]


def _same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("activations", "image", "token"))


@pytest.mark.parametrize("mix", ["tokens", "images"])
@pytest.mark.parametrize("tokens", ["all", "patches", "prefix"])
def test_every_token_comes_once_per_epoch(cache: Activations, mix: str, tokens: str) -> None:
    rows = range(6, 43)
    stream = Stream(cache, rows, 1, seed=3, tokens=tokens, mix=mix, block_bytes=BLOCK)  # type: ignore[arg-type]
    chosen = {"all": range(TOKENS), "patches": range(PREFIX, TOKENS), "prefix": range(PREFIX)}[tokens]
    everything = [(i, t) for i in rows for t in chosen]
    assert stream.n_tokens == len(everything)
    n = stream.n_tokens // stream.tokens_per_batch
    first, second = (_pairs(list(stream.batches(e * n, (e + 1) * n))) for e in (0, 1))
    assert sorted(first) == sorted(second) == everything
    assert first != second


@pytest.mark.parametrize("mix", ["tokens", "images"])
def test_prompt_tokens_are_streamed_only_if_asked_for(tmp_path: Path, mix: str) -> None:
    cache = _cache(tmp_path, n_suffix=2)
    for tokens, chosen in (
        ("all", range(4)),
        ("patches", range(1, 4)),
        ("with_prompts", range(6)),
        ("prefix", range(1)),
    ):
        stream = Stream(cache, range(3, 20), 1, seed=3, tokens=tokens, mix=mix, block_bytes=BLOCK)  # type: ignore[arg-type]
        batches = list(stream.batches(0, stream.n_tokens // stream.tokens_per_batch))
        assert sorted(_pairs(batches)) == [(i, t) for i in range(3, 20) for t in chosen]
        for batch in batches:
            np.testing.assert_array_equal(batch.to_float32()[:, 1], batch.token)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_vector_is_the_one_of_its_image_and_token(tmp_path: Path, dtype: ActivationDtype) -> None:
    cache = _cache(tmp_path, dtype)
    for mix in ("tokens", "images"):
        batch = Stream(cache, range(N_IMAGES), 7, seed=0, mix=mix, block_bytes=BLOCK).batch(4)  # type: ignore[arg-type]
        values = batch.to_float32()
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(values[:, 0], batch.image)
        np.testing.assert_array_equal(values[:, 1], batch.token)
        np.testing.assert_array_equal(values, to_float32(batch.activations, cache.dtype))


def test_images_come_whole_and_in_token_order(cache: Activations) -> None:
    batch = Stream(cache, range(N_IMAGES), 5, seed=1, mix="images", block_bytes=BLOCK).batch(2)
    assert len(batch.image) == 5 * TOKENS
    assert (batch.image.reshape(5, TOKENS) == batch.image[::TOKENS, None]).all()
    assert (batch.token.reshape(5, TOKENS) == np.arange(TOKENS)).all()
    assert len(set(batch.image.tolist())) == 5


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("first", [0, 1, 7, 100])
def test_the_same_batches_from_any_step_with_any_number_of_threads(
    cache: Activations, threads: int, first: int
) -> None:
    # 45 images x 6 tokens and batches of 37: batches straddle blocks and epochs.
    stream = Stream(cache, range(N_IMAGES), 37, seed=5, block_bytes=BLOCK)
    found = list(stream.batches(first, first + 25, threads))
    again = Stream(cache, range(N_IMAGES), 37, seed=5, block_bytes=BLOCK)
    assert len(found) == 25
    assert all(_same(batch, again.batch(first + k)) for k, batch in enumerate(found))


def test_a_batch_may_be_larger_than_the_data(cache: Activations) -> None:
    stream = Stream(cache, range(3), 40, seed=0, block_bytes=BLOCK)
    pairs = _pairs([stream.batch(0)])
    assert sorted(pairs[:18]) == sorted(pairs[18:36]) == [(i, t) for i in range(3) for t in range(TOKENS)]


def test_seeds_differ(cache: Activations) -> None:
    a, b = (Stream(cache, range(N_IMAGES), 37, seed, block_bytes=BLOCK).batch(0) for seed in (0, 1))
    assert not np.array_equal(a.image, b.image)


def test_data_of_one_block_is_read_once(cache: Activations, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read_into = ChunkReader.read_into

    def counting(self: ChunkReader, images: range, place: np.ndarray) -> None:
        reads.append(images.start)
        read_into(self, images, place)

    monkeypatch.setattr(ChunkReader, "read_into", counting)
    stream = Stream(cache, range(N_IMAGES), 90, seed=0)
    assert len(list(stream.batches(0, 30, threads=2))) == 30  # ten epochs
    assert sorted(reads) == [chunk.start for chunk in stream.chunks]


@pytest.mark.parametrize("threads", [0, 3])
def test_a_damaged_shard_is_named(tmp_path: Path, threads: int) -> None:
    cache = _cache(tmp_path)
    shard = next(path for path in tmp_path.rglob("c/1/0/0"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    stream = Stream(cache, range(N_IMAGES), 37, seed=0, block_bytes=BLOCK)
    with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
        list(stream.batches(0, 8, threads))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_chunks_are_read_as_zarr_reads_them(tmp_path: Path, dtype: ActivationDtype) -> None:
    cache = _cache(tmp_path, dtype)
    reader = ChunkReader(cache)
    for start, stop in ((0, N_IMAGES), (5, 7), (6, 43)):
        for images in cache.chunk_ranges(start, stop):
            expected = cache.read(images.start, images.stop)
            place = np.zeros_like(expected)
            reader.read_into(images, place)
            np.testing.assert_array_equal(place, expected)


@pytest.mark.parametrize("where", [0.3, 0.99])
def test_a_flipped_bit_is_found_in_chunks_and_indexes(tmp_path: Path, where: float) -> None:
    cache = _cache(tmp_path)
    shard = cache.shard_file(1)
    content = bytearray(shard.read_bytes())
    content[int(where * len(content))] ^= 4
    shard.write_bytes(content)
    reader = ChunkReader(cache)
    with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
        for images in cache.chunk_ranges(12, 24):
            reader.read_into(images, np.empty((len(images), TOKENS, WIDTH), np.float16))


def test_a_truncated_shard_is_found(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    shard = cache.shard_file(1)
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"c/1/0/0: damaged"):
        ChunkReader(cache).read_into(range(12, 16), np.empty((4, TOKENS, WIDTH), np.float16))


def test_an_empty_selection_is_refused(cache: Activations) -> None:
    with pytest.raises(ValueError, match="nothing to shuffle"):
        Stream(cache, range(5, 5), 8, seed=0)


def test_blocks_bound_how_far_mixing_goes(cache: Activations) -> None:
    whole = Stream(cache, range(N_IMAGES), 90, seed=0)
    mixing = measure_mixing(whole, whole.batches(0, 60))
    assert mixing.positions_present == 1
    assert mixing.positions == pytest.approx(1, abs=0.01)
    assert mixing.images == pytest.approx(1, abs=0.02)
    blocks = Stream(cache, range(N_IMAGES), 24, seed=0, block_bytes=BLOCK // 3)
    assert measure_mixing(blocks, blocks.batches(0, 60)).images < 0.4
    unmixed = Stream(cache, range(N_IMAGES), 4, seed=0, mix="images")
    assert measure_mixing(unmixed, unmixed.batches(0, 60)).images < 0.3


def test_expected_groups_against_the_hypergeometric_formula() -> None:
    for n_groups, size, n in ((5, 4, 3), (10, 2, 19), (7, 7, 20), (3, 5, 15), (4, 6, 1)):
        members = n_groups * size
        exact = n_groups * (1 - math.comb(members - size, n) / math.comb(members, n))
        assert expected_groups(n_groups, size, n) == pytest.approx(exact, rel=1e-9)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(12, 0, 0).tolist() == [10, 0, 4, 9, 2, 7, 6, 5, 8, 3, 1, 11]
    assert sorted(permutation(1000, 1, 2, 3).tolist()) == list(range(1000))


@given(
    units=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    chunks_per_block=st.integers(1, 5),
    first=st.integers(0, 400),
    n=st.integers(1, 200),
)
def test_pieces_tile_the_endless_sequence(
    units: list[int], chunks_per_block: int, first: int, n: int
) -> None:
    order = ShuffleOrder(units, chunks_per_block, seed=0)
    at_once = [(p.block, k) for p in order.pieces(first, n) for k in range(p.start, p.stop)]
    one_by_one = [(p.block, p.start) for k in range(n) for p in order.pieces(first + k, 1)]
    assert at_once == one_by_one
    for position, (block, k) in enumerate(at_once, first):
        assert block.epoch == position // order.n_units
        assert k < sum(units[chunk] for chunk in block.chunks)
        assert len(block.chunks) <= order.max_chunks_per_block <= chunks_per_block
