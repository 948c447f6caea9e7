"""The statistics against a plain dense computation, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from patchsae.pipeline.activations.parts import PartImages, part_rows
from patchsae.pipeline.core.stage import Runtime, map_parts_here
from patchsae.pipeline.evaluations.evaluated import open_encoder
from patchsae.pipeline.evaluations.kinds.statistics import STAGE, StatisticsConfig
from patchsae.pipeline.evaluations.statistics.counts import (
    RELATIVE_ERROR,
    Firings,
    PartCounts,
    TopImages,
    bin_middles,
    bins_of,
)
from patchsae.pipeline.evaluations.statistics.tables import (
    histogram_quantiles,
    label_entropy,
    label_std,
    quantile_column,
)
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import DenseLatents, SparseLatents
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import SmallWorld, activations, run, train

# Class 0 and 3 share a name, class 4 has one image, and class 2 none in the train split.
CLASS_NAMES = ["cup", "hat", "pen", "cup", "tie"]
LABELS = [1, 0, 3, 3, 1, 0, 4, 1, 3, 0, 1, 3, 0, 1, 0, 3, 1, 2, 2, 0, 1]
SPLITS = ["train"] * 17 + ["test"] * 4
N_TRAIN = 17


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return SmallWorld.make(LABELS, SPLITS, CLASS_NAMES)


def read(artifact: Artifact, name: str) -> pl.DataFrame:
    return artifact.scan(name).collect()


def config(**fields: object) -> StatisticsConfig:
    return StatisticsConfig.model_validate({"sae": "s", "k_images": 4, **fields})


@pytest.fixture
def statistics(world: SmallWorld, store: Store) -> Artifact:
    return run(store, STAGE, config(), world.inputs(store))


def test_latents_table(world: SmallWorld, statistics: Artifact) -> None:
    f = world.f[:N_TRAIN].astype(np.float64)
    n, n_tokens, n_latents = f.shape
    labels = world.labels[:N_TRAIN]
    mean = f.mean(axis=1)
    fires = mean > 0
    table = read(statistics, "latents")
    assert table.columns[:11] == [
        "latent",
        "n_images",
        "frequency",
        "token_frequency",
        "mean_activation",
        "max_activation",
        "label_entropy",
        "label_std",
        "n_classes",
        "dead",
        "dense",
    ]
    np.testing.assert_array_equal(table["latent"], np.arange(n_latents))
    np.testing.assert_array_equal(table["n_images"], fires.sum(0))
    np.testing.assert_allclose(table["frequency"], fires.mean(0))
    np.testing.assert_allclose(table["token_frequency"], (f > 0).mean((0, 1)))
    np.testing.assert_array_equal(table["n_tokens"], (f > 0).sum((0, 1)))
    np.testing.assert_array_equal(table["n_tokens_above"], (f > 0.2).sum((0, 1)))
    np.testing.assert_array_equal(table["max_activation"], f.max((0, 1)))
    np.testing.assert_array_equal(table["dead"], ~fires.any(0))
    np.testing.assert_array_equal(table["dense"], (f > 0).mean((0, 1)) > 0.1)
    np.testing.assert_array_equal(
        table["n_classes"], [len(set(labels[fires[:, s]].tolist())) for s in range(n_latents)]
    )
    np.testing.assert_allclose(
        table["decoder_norm"], np.linalg.norm(world.sae.W_dec.numpy(), axis=1), rtol=1e-6
    )
    assert table["dead"].any() and not table["dead"].all()
    assert set(
        table.filter("dead").select("mean_activation", "label_entropy", "label_std", "q50").row(0)
    ) == {None}
    for row in table.filter(~pl.col("dead")).iter_rows(named=True):
        s = row["latent"]
        best = np.argsort(-mean[:, s], kind="stable")[:4]
        best = best[mean[best, s] > 0]
        p = np.array([mean[best, s][labels[best] == c].sum() for c in range(5)]) / mean[best, s].sum()
        p = p[p > 0]
        positive = f[:, :, s][f[:, :, s] > 0]
        assert row["label_entropy_k"] == len(best)
        assert row["mean_activation"] == pytest.approx(mean[fires[:, s], s].mean(), rel=1e-6)
        assert row["mean_token_activation"] == pytest.approx(positive.mean(), rel=1e-6)
        assert row["label_entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
        assert row["label_std"] == pytest.approx(labels[best].std(), abs=1e-9)
        for q in (0.1, 0.5, 0.9, 0.99):
            exact = np.quantile(positive, q, method="inverted_cdf")
            assert row[quantile_column(q)] == pytest.approx(exact, rel=RELATIVE_ERROR)
    summary = statistics.manifest.summary
    assert summary["l0"] == pytest.approx((f > 0).sum() / (n * n_tokens))
    assert summary["dead_fraction"] == pytest.approx((~fires.any(0)).mean())


def test_latent_images_table(world: SmallWorld, statistics: Artifact) -> None:
    f = world.f[:N_TRAIN]
    mean = f.astype(np.float64).mean(axis=1)
    table = read(statistics, "latent_images")
    assert table.columns[:6] == ["latent", "rank", "image", "activation", "token", "label"]
    expected = []
    for s in range(f.shape[2]):
        images = np.argsort(-mean[:, s].astype(np.float32), kind="stable")[:4]
        for rank, image in enumerate(i for i in images if mean[i, s] > 0):
            token = int(f[image, :, s].argmax())
            expected.append((s, rank + 1, image, token, world.labels[image], f[image, token, s]))
    found = table.select("latent", "rank", "image", "token", "label", "token_activation").rows()
    assert found == [tuple(np.array(row).tolist()) for row in expected] or found == expected
    np.testing.assert_allclose(
        table["activation"], [mean[image, latent] for latent, _, image, *_ in expected], rtol=1e-6
    )
    # Latents that fewer than k images fire have fewer rows.
    per_latent = table.group_by("latent").len()["len"]
    assert per_latent.min() < 4 == per_latent.max()


def test_class_latents_table(world: SmallWorld, statistics: Artifact) -> None:
    f = world.f[:N_TRAIN].astype(np.float64)
    table = read(statistics, "class_latents")
    assert table.columns[:5] == ["class", "latent", "n_tokens", "n_images", "mean_activation"]
    expected = {}
    for c in range(5):
        of_class = f[world.labels[:N_TRAIN] == c]
        fires = of_class.mean(1) > 0
        for s in np.flatnonzero(fires.any(0)):
            mean = of_class.mean(1)[fires[:, s], s].mean()
            expected[c, int(s)] = ((of_class[:, :, s] > 0.2).sum(), fires[:, s].sum(), mean)
    assert list(zip(table["class"], table["latent"], strict=True)) == list(expected)
    np.testing.assert_array_equal(table["n_tokens"], [e[0] for e in expected.values()])
    np.testing.assert_array_equal(table["n_images"], [e[1] for e in expected.values()])
    np.testing.assert_allclose(table["mean_activation"], [e[2] for e in expected.values()], rtol=1e-6)
    # Classes 0 and 3 share a name and stay apart; class 2 has no training image.
    assert set(table["class"]) == {0, 1, 3, 4}


def test_only_some_images_count_when_asked(world: SmallWorld, store: Store) -> None:
    # By name, which two classes share, and by id.
    artifact = run(store, STAGE, config(classes=["cup", 4], limit=6), world.inputs(store))
    rows = [i for i in range(N_TRAIN) if LABELS[i] in (0, 3, 4)][:6]
    f = world.f[rows]
    table = read(artifact, "latents")
    np.testing.assert_array_equal(table["n_tokens"], (f > 0).sum((0, 1)))
    np.testing.assert_array_equal(table["frequency"], (f.mean(1) > 0).mean(0))
    np.testing.assert_allclose(table["token_frequency"], (f > 0).mean((0, 1)))
    assert set(read(artifact, "latent_images")["image"]) <= set(rows)
    assert set(read(artifact, "class_latents")["class"]) == {LABELS[i] for i in rows} == {0, 3, 4}
    assert artifact.manifest.summary["n_images"] == 6
    with pytest.raises(UserError, match="no class `cap`; did you mean `cup`"):
        run(store, STAGE, config(classes=["cap"]), world.inputs(store))
    with pytest.raises(UserError, match="no image of the split `train` is of one of pen"):
        run(store, STAGE, config(classes=["pen"]), world.inputs(store))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_density", [0.0, 1.0])
def test_tables_do_not_depend_on_how_latents_are_found(
    world: SmallWorld,
    statistics: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    max_density: float,
) -> None:
    choice = EncoderChoice(precision, max_density)
    monkeypatch.setattr(EncoderChoice, "for_device", lambda *_: choice)
    other = Store(tmp_path / "other")
    artifact = run(other, STAGE, config(), world.inputs(other))
    for name in ("latents", "latent_images", "class_latents"):
        assert read(artifact, name).equals(read(statistics, name)), name


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_dense_latents_are_counted_as_sparse_ones_are(density: float) -> None:
    """To the byte: of ties, of tokens at tau, of classes that go on in the next block."""
    generator = torch.Generator().manual_seed(3)
    n_images, n_tokens, n_latents, tau = 7, 11, 40, 0.5
    labels = np.array([0, 0, 2, 2, 2, 5, 5])
    # Quarters, so that many values are equal and some equal tau.
    f = torch.randint(1, 6, (n_images, n_tokens, n_latents), generator=generator) / 4
    f *= torch.rand(f.shape, generator=generator) < density
    found = []
    for kind in ("dense", "sparse"):
        counts = PartCounts(n_latents, 3)
        for block in (slice(0, 3), slice(3, 7)):
            latents = DenseLatents(f[block].flatten(0, 1))
            given = latents if kind == "dense" else latents.sparse()
            counts.add(given, np.arange(n_images)[block], labels[block], tau, first_token=1)
        found.append(counts.arrays())
    dense, sparse = found
    assert dense.keys() == sparse.keys() and len(sparse["classes.latent"])
    for name, values in sparse.items():
        assert dense[name].dtype == values.dtype, name
        np.testing.assert_array_equal(dense[name], values, err_msg=name)


def test_whoever_resumes_finds_latents_as_they_were_found(
    world: SmallWorld, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, out = world.inputs(store), store.begin(store.at("statistics", "0" * 64))
    for precision in ("bfloat16", "float32"):
        choice = EncoderChoice(precision, 0.125)
        monkeypatch.setattr(EncoderChoice, "for_device", lambda *_, choice=choice: choice)
        STAGE.prepare(config(), inputs, out, Runtime())
        assert open_encoder(inputs, out, "cpu").choice == EncoderChoice("bfloat16", 0.125)


def test_only_patch_tokens_count_when_asked(world: SmallWorld, store: Store) -> None:
    artifact = run(store, STAGE, config(tokens="patches", k_images=1), world.inputs(store))
    f = world.f[:N_TRAIN, 1:]
    table = read(artifact, "latents")
    np.testing.assert_array_equal(table["n_tokens"], (f > 0).sum((0, 1)))
    np.testing.assert_allclose(table["token_frequency"], (f > 0).mean((0, 1)))
    best = read(artifact, "latent_images")
    # Positions stay those of the activation array.
    for latent, image, token in best.select("latent", "image", "token").iter_rows():
        assert token == f[image, :, latent].argmax() + 1


def test_tokens_behind_the_patches_are_counted_only_if_asked_for(world: SmallWorld, store: Store) -> None:
    inputs = {**world.inputs(store), "activations": activations(store, world.x, 2, 2, n_prefix=1, n_suffix=2)}
    f = world.f[:N_TRAIN]
    for tokens, counted in (("patches", f[:, 1:3]), ("all", f[:, :3]), ("with_prompts", f)):
        table = read(run(store, STAGE, config(tokens=tokens), inputs), "latents")
        np.testing.assert_array_equal(table["n_tokens"], (counted > 0).sum((0, 1)))
        np.testing.assert_allclose(table["token_frequency"], (counted > 0).mean((0, 1)))


def test_paper_convention(world: SmallWorld, store: Store) -> None:
    inputs = world.inputs(store)
    table = read(run(store, STAGE, config(convention="paper", k_images=10), inputs), "latents")
    f = torch.from_numpy(world.f[:N_TRAIN])
    labels = torch.from_numpy(world.labels[:N_TRAIN])
    mean = f.mean(1)
    n_fired = (mean > 0).sum(0)
    value, image = mean.topk(10, dim=0)
    entropy = []
    for s in range(mean.shape[1]):
        of_label = torch.stack([value[labels[image[:, s]] == c, s].sum() for c in range(5)])
        p = of_label / of_label.sum()
        entropy.append(-(p * torch.log(p + 1e-9)).sum())
    np.testing.assert_allclose(table["frequency"], n_fired / N_TRAIN, rtol=1e-6)
    np.testing.assert_allclose(table["mean_activation"].to_numpy(), mean.sum(0) / n_fired, rtol=1e-5)
    np.testing.assert_allclose(table["label_entropy"].to_numpy(), entropy, atol=1e-6)
    dead = table.filter("dead")
    assert len(dead) and dead["mean_activation"].is_nan().all() and dead["label_entropy"].is_nan().all()


def test_paper_convention_gives_no_entropy_for_fewer_than_ten_slots(world: SmallWorld, store: Store) -> None:
    table = read(run(store, STAGE, config(convention="paper", k_images=9), world.inputs(store)), "latents")
    assert (table["label_entropy"] == -1).all()


@pytest.mark.parametrize(("chunk_images", "chunks_per_shard"), [(1, 1), (3, 2), (8, 5)])
def test_results_do_not_depend_on_the_shards(
    world: SmallWorld, statistics: Artifact, tmp_path: Path, chunk_images: int, chunks_per_shard: int
) -> None:
    other = Store(tmp_path / "other")
    artifact = run(other, STAGE, config(), world.inputs(other, chunk_images, chunks_per_shard))
    for name in ("latents", "latent_images", "class_latents"):
        one, two = (read(a, name).drop("artifact") for a in (statistics, artifact))
        assert one.columns == two.columns and len(one) == len(two)
        for column in one.columns:
            if one[column].dtype.is_float():
                np.testing.assert_allclose(one[column].to_numpy(), two[column].to_numpy(), rtol=1e-6)
            else:
                assert one[column].equals(two[column])


def tables_bytes(artifact: Artifact) -> dict[str, str]:
    return {output.path: output.sha256 for output in artifact.manifest.outputs}


def test_bytes_do_not_depend_on_the_order_of_parts_or_on_resuming(world: SmallWorld, tmp_path: Path) -> None:
    def backwards(stage, config, inputs, out, runtime, parts) -> None:  # type: ignore[no-untyped-def]
        """Each part by a worker of its own, as other machines do it."""
        for part in reversed(parts):
            stage.do_part(stage.worker(config, inputs, out, runtime), out, part)

    stores = [Store(tmp_path / name) for name in ("plain", "backwards", "resumed")]
    plain = run(stores[0], STAGE, config(), world.inputs(stores[0]))
    turned = run(stores[1], STAGE, config(), world.inputs(stores[1]), Runtime(map_parts=backwards))
    inputs = world.inputs(stores[2])
    out = stores[2].begin(stores[2].at("statistics", plain.key))
    assert STAGE.prepare(config(), inputs, out, Runtime()) == 5
    worker = STAGE.worker(config(), inputs, out, Runtime())
    for part in (3, 1):
        STAGE.do_part(worker, out, part)
    done: list[int] = []

    def counting(stage, config, inputs, out, runtime, parts) -> None:  # type: ignore[no-untyped-def]
        done.extend(parts)
        map_parts_here(stage, config, inputs, out, runtime, parts)

    resumed = run(stores[2], STAGE, config(), inputs, Runtime(map_parts=counting))
    assert done == [0, 2, 4]
    assert tables_bytes(plain) == tables_bytes(turned) == tables_bytes(resumed)
    assert set(tables_bytes(plain)) == {
        f"tables/{name}.parquet" for name in ("latents", "latent_images", "class_latents")
    }
    assert not (plain.path / "parts").exists()


def test_classes_are_merged_in_groups(
    world: SmallWorld, statistics: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchsae.pipeline.evaluations.statistics.merge._CELLS", 2 * world.sae.n_latents)
    other = Store(tmp_path / "grouped")
    grouped = run(other, STAGE, config(), world.inputs(other))
    assert sum("class_latents/part-" in output.path for output in grouped.manifest.outputs) == 3
    for name in ("latents", "class_latents"):
        assert read(grouped, name).equals(read(statistics, name))


def test_a_split_that_is_not_there_is_named(world: SmallWorld, store: Store) -> None:
    with pytest.raises(UserError, match=r"split `val`.*`train`"):
        run(store, STAGE, config(split="val"), world.inputs(store))


def test_parts_are_the_shards_cut_to_the_split(world: SmallWorld, store: Store) -> None:
    opened = Activations(world.inputs(store)["activations"])

    def parts(rows: Sequence[int]) -> list[list[int]]:
        return [part.tolist() for part in part_rows(opened, np.array(rows))]

    assert parts(range(17)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16]]
    assert parts(range(17, 21)) == [[17, 18, 19], [20]]
    # Shards without any of the rows are no parts.
    assert parts([2, 9, 11, 20]) == [[2], [9, 11], [20]]


def test_a_part_reads_any_of_its_images(world: SmallWorld, store: Store) -> None:
    opened = Activations(world.inputs(store, chunk_images=3, chunks_per_shard=4)["activations"])
    rows = np.array([12, 14, 15, 16, 17, 20])
    found = PartImages(opened, rows, "cpu").take([17, 12, 20, 14])
    np.testing.assert_array_equal(found.numpy(), world.x[[17, 12, 20, 14]].astype(np.float32))


def test_bins_hold_their_values() -> None:
    value = np.geomspace(2.0**-14, 1023.9, 10_001).astype(np.float32)
    middle = bin_middles()[bins_of(value)]
    assert np.abs(middle / value - 1).max() <= RELATIVE_ERROR
    assert bins_of(np.array([1e-9, 1e9], np.float32)).tolist() == [0, len(bin_middles()) - 1]


def test_quantiles_never_exceed_the_largest_value() -> None:
    value = np.array([3.01, 3.01, 0.5], np.float32)
    histogram = np.bincount(bins_of(value), minlength=len(bin_middles()))[None]
    (median,), (last,) = histogram_quantiles(histogram, [0.3, 0.999], value[:1])
    assert median == pytest.approx(0.5, rel=RELATIVE_ERROR)
    assert last <= value[0]


def test_equal_activations_keep_the_lower_image_id() -> None:
    top = TopImages(n_latents=2, k=2)
    for image in (9, 4, 7, 1):
        one = np.array([0], np.int32)
        top.add(
            {
                "latent": one,
                "activation": np.ones(1, np.float32),
                "image": np.array([image]),
                "token": one,
                "peak": np.ones(1, np.float32),
                "label": one,
            }
        )
        top.best()
    assert top.best()["image"].tolist() == [1, 4]


def test_the_first_of_equal_tokens_is_kept() -> None:
    # Two images of three tokens; latent 1 is equally strong on tokens 1 and 2 of each.
    latents = SparseLatents(
        offsets=torch.tensor([0, 1, 3, 4, 5, 6, 7]),
        latent=torch.tensor([0, 0, 1, 1, 0, 1, 1], dtype=torch.int32),
        value=torch.tensor([2.0, 1.0, 3.0, 3.0, 0.1, 3.0, 3.0]),
        n_latents=2,
    )
    firings = Firings.of(latents, tokens_per_image=3, tau=0.2)
    assert firings.slot.tolist() == [0, 0, 1, 1] and firings.latent.tolist() == [0, 1, 0, 1]
    assert firings.token.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(firings.peak, [2, 3, 0.1, 3])
    np.testing.assert_allclose(firings.total, [3, 6, 0.1, 6], rtol=1e-6)
    assert firings.n_tokens.tolist() == [2, 2, 1, 2] and firings.n_above.tolist() == [2, 2, 0, 2]


def test_a_class_may_go_on_in_the_next_block(world: SmallWorld) -> None:
    def counts(blocks: list[list[int]]) -> dict[str, np.ndarray]:
        part = PartCounts(world.sae.n_latents, 4)
        for images in blocks:
            x = torch.from_numpy(world.x[images]).float().flatten(0, 1)
            part.add(LatentEncoder(world.sae)(x), images, np.array([2] * len(images)), tau=0.2)
        return part.arrays()

    one, two = counts([[0, 1, 2, 3]]), counts([[0, 1], [2], [3]])
    assert one["classes.label"].tolist() == two["classes.label"].tolist() == [2]
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name], rtol=1e-6)


def test_entropy_and_deviation_of_labels_in_closed_form() -> None:
    best = {
        "latent": np.array([0, 0, 2, 2, 2]),
        "activation": np.array([1.0, 1.0, 2.0, 1.0, 1.0], np.float32),
        "label": np.array([4, 4, 1, 5, 5]),
    }
    entropy = label_entropy(best, 3, 10, "corrected")
    np.testing.assert_allclose(entropy, [0.0, np.nan, np.log(2)])
    assert not np.signbit(entropy[0])
    np.testing.assert_allclose(label_std(best, 3), [0.0, np.nan, np.sqrt(32 / 9)])


def test_an_sae_that_never_fires(world: SmallWorld, store: Store) -> None:
    dead = Sae(world.sae.W_enc, torch.full((world.sae.n_latents,), -1e3), world.sae.W_dec, world.sae.b_dec)
    artifact = run(store, STAGE, config(), {**world.inputs(store), "sae": train(store, dead)})
    assert read(artifact, "latents")["dead"].all()
    assert len(read(artifact, "latent_images")) == len(read(artifact, "class_latents")) == 0
