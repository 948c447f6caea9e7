"""Masking against the plain way: the whole model, a hook, one mask at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.classification import classifier
from patchsae.pipeline.core.stage import Inputs, Runtime
from patchsae.pipeline.evaluations.intervals import wilson_interval
from patchsae.pipeline.evaluations.kinds import reconstruction, statistics
from patchsae.pipeline.evaluations.kinds.masking import STAGE, MaskingConfig, MaskingStageConfig
from patchsae.pipeline.evaluations.kinds.reconstruction import (
    ReconstructionConfig,
    ReconstructionStageConfig,
)
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.masking.classify import Order, Reading, classify
from patchsae.pipeline.evaluations.masking.correct import Correct
from patchsae.pipeline.evaluations.masking.distinct import keys_of
from patchsae.pipeline.evaluations.masking.sweep import sweep
from patchsae.pipeline.evaluations.statistics.rankings import by_count, random_ranking, segments
from patchsae.pipeline.experiment.experiment import Experiment
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import DenseLatents, SparseLatents
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import activations, commit, index, run, train

N_IMAGES, N_TRAIN, N_LATENTS = 75, 40, 96
# Two classes share a name.
CLASS_NAMES = ["cup", "hat", "cup", "pen"]
KS = (1, 5, 20, 60)


@dataclass(frozen=True)
class Model:
    """A real CLIP with random weights, images, an SAE and a classifier that tells their classes apart."""

    config: OpenClipConfig
    backbone: ClipVit
    images: Tensor
    labels: np.ndarray
    sae: Sae
    classifier: Tensor  # [C, E]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tiny_model: str) -> Model:
    config = OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint))
    backbone = config.build({})
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 4, (N_IMAGES,), generator=generator)
    patterns = 0.6 * torch.randn(4, 3, 32, 32, generator=generator)
    images = patterns[labels] + torch.randn(N_IMAGES, 3, 32, 32, generator=generator)
    with torch.inference_mode():
        x = backbone.head(images)
        features = normalize(backbone.tail(x), dim=-1)
        means = torch.stack([features[labels == c].mean(0) for c in range(4)])
        d = x.shape[2]
        directions = normalize(torch.randn(N_LATENTS, d, generator=generator), dim=1)
        centre = x.mean((0, 1))
        strength = (x.flatten(0, 1) - centre) @ directions.T
        sae = Sae(directions.T.contiguous(), -strength.quantile(0.8, dim=0), 0.3 * directions, centre)
    return Model(config, backbone, images, labels.numpy(), sae, normalize(means - features.mean(0), dim=1))


def inputs_of(model: Model, store: Store, chunk_images: int = 3, n_suffix: int = 0) -> Inputs:
    """With `n_suffix` the last patches are called learned prompt tokens."""
    with torch.inference_mode():
        x = model.backbone.head(model.images).half().numpy()
    splits = ["train"] * N_TRAIN + ["test"] * (N_IMAGES - N_TRAIN)
    images = index(store, model.labels.tolist(), splits, CLASS_NAMES)
    inputs = {
        "activations": activations(
            store, x, chunk_images=chunk_images, chunks_per_shard=4, n_suffix=n_suffix
        ),
        "images": images,
        "sae": train(store, model.sae),
    }
    tensors = {"weights": model.classifier.contiguous(), "logit_scale": torch.tensor(100.0)}
    return {
        **inputs,
        "statistics": run(store, statistics.STAGE, StatisticsConfig(sae="s"), inputs),
        "selection_images": images,
        "weights": run(store, weights.STAGE, model.config, {}),
        "classifier": commit(
            store, "classifier", lambda out: out.write(classifier.FILE, save(tensors)), names=CLASS_NAMES
        ),
    }


def stage_config(model: Model, **fields: object) -> MaskingStageConfig:
    masking = MaskingConfig.model_validate({"statistics": "s", "ks": [*KS, "all"], "n_random": 2, **fields})
    return MaskingStageConfig(masking=masking, backbone=model.config)


def read(artifact: Artifact) -> pl.DataFrame:
    return artifact.scan("masking").collect()


def predict_with_hook(
    model: Model, rows: np.ndarray, replace: Callable[[Tensor], Tensor] | None, task: Sequence[int]
) -> np.ndarray:
    """Predictions among the classes `task` by the whole model, with the hooked block's output replaced."""
    handles = []
    if replace is not None:
        block = model.backbone.blocks[model.backbone.hook_block]
        handles.append(block.register_forward_hook(lambda module, args, output: replace(output)))
    features = model.backbone.model.encode_image(model.images[rows])
    for handle in handles:
        handle.remove()
    best = (normalize(features, dim=-1) @ model.classifier[list(task)].T).argmax(dim=-1)
    return np.array(task)[best.numpy()]


def dense_latents(model: Model, output: Tensor) -> Tensor:
    return model.sae.encode(output.half().float().flatten(0, 1))


@torch.inference_mode()
@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": "all"},
        {"tokens": "patches"},
        {"classes": ["cup", 1], "limit": 24},
        {"classes": "base"},
        {"classes": "novel"},
    ],
    ids=["all", "patches", "some images", "base", "novel"],
)
def test_masking_equals_hooks_one_mask_at_a_time(model: Model, store: Store, fields: dict[str, Any]) -> None:
    artifact = run(store, STAGE, stage_config(model, **fields), inputs_of(model, store))
    table = read(artifact)
    first = 1 if fields.get("tokens") == "patches" else 0
    images = np.arange(N_TRAIN, N_IMAGES)
    task = {"base": [0, 1], "novel": [2, 3]}.get(str(fields.get("classes")), [0, 1, 2, 3])
    if len(task) == 2:
        images = images[np.isin(model.labels[images], task)]
    elif "classes" in fields:
        images = images[model.labels[images] != CLASS_NAMES.index("pen")]
        assert len(images) > fields["limit"]
        images = images[: fields["limit"]]
    labels = model.labels[images]
    counts, latents = counts_above(model), latents_of(model)

    def masked(mask: np.ndarray) -> np.ndarray:
        """`mask` [images, S]."""

        def replace(output: Tensor) -> Tensor:
            f = dense_latents(model, output[:, first:]).unflatten(0, (len(labels), -1))
            x_hat = (f * torch.from_numpy(mask)[:, None]) @ model.sae.W_dec + model.sae.b_dec
            return torch.cat([output[:, :first], x_hat], dim=1)

        return predict_with_hook(model, images, replace, task)

    def ranked(selection: str, seed: int | None, label: int) -> np.ndarray:
        if selection == "class":
            return np.lexsort((np.arange(N_LATENTS), -counts[label]))
        if selection == "class_selective":
            total = np.maximum(counts.sum(0), 1)
            score = counts[label] * (counts[label] / total - 1 / len(CLASS_NAMES))
            return np.lexsort((np.arange(N_LATENTS), -score))
        if selection == "dataset":
            return np.lexsort((np.arange(N_LATENTS), -counts.sum(0)))
        return random_ranking(latents, N_LATENTS, int(seed or 0), alive_first=True)

    def check(rows: pl.DataFrame, predicted: np.ndarray) -> None:
        for row in rows.iter_rows(named=True):
            here = slice(None) if row["class"] is None else labels == row["class"]
            assert row["n"] == len(labels[here])
            assert row["n_correct"] == (predicted == labels)[here].sum(), row

    conditions = table.select("selection", "mode", "k", "seed").unique(maintain_order=True)
    assert len(conditions) == 2 + 5 * 2 * (len(KS) + 1)
    for selection, mode, k, seed in conditions.iter_rows():
        rows = table.filter(
            (pl.col("selection") == selection)
            & (pl.col("mode") == mode)
            & pl.col("k").eq_missing(k)
            & pl.col("seed").eq_missing(seed)
        )
        assert len(rows) == len(set(labels.tolist())) + 1
        if mode == "original":
            check(rows, predict_with_hook(model, images, None, task))
            continue

        mask = np.ones((len(labels), N_LATENTS), np.float32)
        if mode != "reconstruction":
            for i, label in enumerate(labels):
                mask[i, ranked(selection, seed, label)[:k]] = 0
            mask = 1 - mask if mode == "on" else mask
        check(rows, masked(mask))
    # The comparison would mean little if everything were predicted alike.
    overall = table.filter(pl.col("class").is_null())["accuracy"]
    assert overall.n_unique() > min(10, len(labels) // 3) and overall.max() > 0.6


@torch.inference_mode()
@pytest.mark.parametrize("tokens", ["all", "with_prompts"])
def test_prompt_tokens_are_replaced_only_if_asked_for(model: Model, store: Store, tokens: str) -> None:
    inputs = inputs_of(model, store, n_suffix=5)
    table = read(run(store, STAGE, stage_config(model, tokens=tokens, selections=[], ks=[1]), inputs))
    config = ReconstructionConfig.model_validate({"sae": "s", "tokens": tokens})
    stage_config_ = ReconstructionStageConfig(reconstruction=config, backbone=model.config)
    measured = run(store, reconstruction.STAGE, stage_config_, inputs)
    images = np.arange(N_TRAIN, N_IMAGES)
    labels, last = model.labels[images], 17 - (5 if tokens == "all" else 0)

    def x_hat(output: Tensor) -> Tensor:
        found = dense_latents(model, output[:, :last]) @ model.sae.W_dec + model.sae.b_dec
        return torch.cat([found.unflatten(0, (len(images), -1)), output[:, last:]], dim=1)

    def mean(output: Tensor) -> Tensor:
        return torch.cat(
            [output[:, :last].mean((0, 1)).expand(len(images), last, -1), output[:, last:]], dim=1
        )

    right = {
        way: (predict_with_hook(model, images, replace, [0, 1, 2, 3]) == labels).sum()
        for way, replace in (("reconstruction", x_hat), ("mean", mean))
    }
    whole = table.filter(pl.col("class").is_null(), mode="reconstruction")
    assert whole["n_correct"].to_list() == [right["reconstruction"]]
    rows = dict(measured.scan("reconstruction").collect().select("replaced", "n_correct").iter_rows())
    assert {way: rows[way] for way in right} == right
    x = model.backbone.head(model.images[images]).half().float()[:, :last].flatten(0, 1)
    error = x - (model.sae.encode(x) @ model.sae.W_dec + model.sae.b_dec)
    fvu = error.double().square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert measured.manifest.summary["fvu"] == pytest.approx(float(fvu), rel=1e-3)


def counts_above(model: Model) -> np.ndarray:
    """Tokens above tau per class on the train split: [C, S]."""
    with torch.inference_mode():
        f = dense_latents(model, model.backbone.head(model.images[:N_TRAIN])).numpy()
    above = (f.reshape(N_TRAIN, -1, N_LATENTS) > 0.2).sum(1)
    return np.stack([above[model.labels[:N_TRAIN] == c].sum(0) for c in range(4)])


def latents_of(model: Model) -> pl.DataFrame:
    with torch.inference_mode():
        f = dense_latents(model, model.backbone.head(model.images[:N_TRAIN])).numpy()
    return pl.DataFrame({"dead": f.max(0) == 0})


def test_table_and_summary(model: Model, store: Store) -> None:
    artifact = run(store, STAGE, stage_config(model), inputs_of(model, store))
    table, summary = read(artifact), artifact.manifest.summary
    assert table.columns[:10] == [
        "split",
        "selection",
        "mode",
        "k",
        "class",
        "n",
        "n_correct",
        "accuracy",
        "ci_low",
        "ci_high",
    ]
    assert table["split"].unique().to_list() == ["test"]
    whole, of_class = table.filter(pl.col("class").is_null()), table.filter(pl.col("class").is_not_null())
    assert (whole["n"] == N_IMAGES - N_TRAIN).all()
    keys = ["selection", "mode", "k", "seed"]
    sums = of_class.group_by(keys, maintain_order=True).agg(
        pl.col("n_correct").sum(), pl.col("accuracy").mean()
    )
    assert sums["n_correct"].to_list() == whole["n_correct"].to_list()
    np.testing.assert_allclose(sums["accuracy"], whole["class_mean_accuracy"])
    assert of_class["class_mean_accuracy"].is_null().all()
    assert ((table["ci_low"] <= table["accuracy"]) & (table["accuracy"] <= table["ci_high"])).all()
    # Class 0 and 2 are both called cup.
    assert of_class.filter(pl.col("class_name") == "cup")["class"].unique().to_list() == [0, 2]
    # All latents on is the reconstruction, all off one prediction for every image.
    all_on = whole.filter((pl.col("mode") == "on") & (pl.col("k") == N_LATENTS))
    reconstruction = whole.filter(pl.col("mode") == "reconstruction")
    assert all_on["n_correct"].unique().to_list() == reconstruction["n_correct"].to_list()
    assert reconstruction["k"].to_list() == [N_LATENTS]
    assert whole.filter(pl.col("mode") == "original")["k"].to_list() == [None]
    all_off = of_class.filter(
        (pl.col("mode") == "off") & (pl.col("k") == N_LATENTS) & (pl.col("selection") == "class")
    )
    assert sorted(all_off["accuracy"]) == [0, 0, 0, 1]
    random = whole.filter(selection="random", mode="off", k=5)
    assert random["seeds_accuracy"].to_list() == pytest.approx([random["accuracy"].mean()] * 2)
    assert (
        (table["seeds_ci_low"] <= table["seeds_accuracy"])
        & (table["seeds_accuracy"] <= table["seeds_ci_high"])
    ).all()
    others = table.filter(pl.col("selection") != "random")
    assert others["seeds_accuracy"].equals(others["accuracy"]) and others["seeds_ci_low"].equals(
        others["ci_low"]
    )
    # These classes are values of nothing that has a name, and the images have no other attribute.
    assert table["attribute"].is_null().all() and not [c for c in table.columns if c.startswith("accuracy_")]
    # 5 and 20 are there, 10 is not: the summary is of the nearest.
    off = whole.filter((pl.col("mode") == "off") & (pl.col("k") == 5))
    assert summary["off_class_k5"] == off.filter(pl.col("selection") == "class")["accuracy"].item()
    assert summary["off_random_k5"] == pytest.approx(
        off.filter(pl.col("selection") == "random")["accuracy"].mean()
    )
    assert summary["accuracy_all"] == reconstruction["accuracy"].item()
    assert summary["zero_shot_accuracy"] == whole.filter(pl.col("mode") == "original")["accuracy"].item()


def test_bytes_do_not_depend_on_the_order_of_parts(model: Model, tmp_path: Path) -> None:
    def backwards(stage, config, inputs, out, runtime, parts) -> None:  # type: ignore[no-untyped-def]
        """Each part by a worker of its own, as other machines do it."""
        for part in reversed(parts):
            stage.do_part(stage.worker(config, inputs, out, runtime), out, part)

    outputs = []
    for runtime in (Runtime(), Runtime(map_parts=backwards)):
        store = Store(tmp_path / str(len(outputs)))
        artifact = run(store, STAGE, stage_config(model), inputs_of(model, store), runtime)
        outputs.append([(output.path, output.sha256) for output in artifact.manifest.outputs])
    assert outputs[0] == outputs[1] and outputs[0][0][0] == "tables/masking.parquet"
    assert len(outputs[0]) == 1


def test_rows_say_by_name_what_they_are_about(small_store: Store) -> None:
    table = Catalog(small_store).scan("masking").collect()
    names = table.select("dataset", "backbone", "sae", "evaluation").unique()
    assert names.rows() == [("digits", "tiny", "relu", "masking")]


def test_k_of_all_latents_and_more_is_all(model: Model, store: Store) -> None:
    inputs = inputs_of(model, store)
    fields = {"selections": ["dataset"], "modes": ["off"]}
    several = read(run(store, STAGE, stage_config(model, ks=[3, N_LATENTS, 5000, "all"], **fields), inputs))
    one = read(run(store, STAGE, stage_config(model, ks=["all", 3], **fields), inputs))
    assert several.drop("artifact").equals(one.drop("artifact"))
    assert several.filter(pl.col("mode") == "off")["k"].unique().sort().to_list() == [3, N_LATENTS]


def test_masks_need_the_same_classes(model: Model, store: Store) -> None:
    inputs = inputs_of(model, store)
    other = index(store, [0, 1], ["test", "test"], ["dog", "cat"])
    with pytest.raises(UserError, match=r"the dataset has other classes \(4\) than .* selected on \(2\)"):
        run(store, STAGE, stage_config(model), {**inputs, "selection_images": other})


def test_only_the_chosen_tokens_are_replaced(model: Model) -> None:
    seen: list[Tensor] = []

    class Watching:
        def features(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.eye(4)[[1, 2]].repeat(len(x) // 2, 1)

    x = torch.randn(2, 6, model.sae.width)
    latents = LatentEncoder(model.sae)(x[:, 1:4].flatten(0, 1))
    correct, order = Correct.zeros(1, 1, 2, 4), Order(torch.arange(N_LATENTS)[None])
    labels, ks, modes = np.array([1, 3]), np.array([5]), ("on", "off")
    readings = [
        Reading(torch.eye(4), torch.eye(4, dtype=torch.bool)[labels]),
        # A second attribute, of which the second image has the values 0 and 2, and the first has 3.
        Reading(
            torch.tensor([[0, 0, 0.5, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]),
            torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]]).bool(),
        ),
    ]
    watching: Any = Watching()
    keys = keys_of(N_LATENTS)
    outcomes = classify(
        x, latents, torch.tensor(labels), readings, [order], ks, model.sae, watching, modes, range(1, 4), keys
    )
    correct.add(outcomes, labels)
    original, together = seen
    reconstruction, bias, on, off = together.split(2)
    assert torch.equal(original, x)
    for replaced in (reconstruction, bias, on, off):
        assert torch.equal(replaced[:, :1], x[:, :1]) and torch.equal(replaced[:, 4:], x[:, 4:])
    f = model.sae.encode(x[:, 1:4].flatten(0, 1))
    for replaced, kept in ((reconstruction, f), (bias, 0 * f), (on, f * (torch.arange(N_LATENTS) < 5))):
        expected = (kept @ model.sae.W_dec + model.sae.b_dec).view(2, 3, -1)
        torch.testing.assert_close(replaced[:, 1:4], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(on + off, reconstruction + bias, rtol=1e-4, atol=1e-4)
    assert correct.original.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1]]
    assert correct.masked.shape == (1, 2, 1, 2, 4)


@pytest.mark.parametrize(("max_density", "kind"), [(1.0, SparseLatents), (0.0, DenseLatents)])
def test_prefix_identity(model: Model, max_density: float, kind: type) -> None:
    with torch.inference_mode():
        x = model.backbone.head(model.images[:6])
        latents = LatentEncoder(model.sae, EncoderChoice("float32", max_density)).block(x.flatten(0, 1))
        assert isinstance(latents, kind)
        dense = model.sae.encode(x.flatten(0, 1))
        x_hat = latents.decode(latents.value, model.sae.W_dec) + model.sae.b_dec
        ks = np.array([1, 2, 7, 50])
        ranking = torch.stack(
            [torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(i)) for i in range(6)]
        )
        for k, R_k in zip(ks, sweep(latents, 6, ranking, ks, model.sae.W_dec), strict=True):
            mask = torch.zeros(6, N_LATENTS).scatter_(1, ranking[:, :k], 1.0)
            mask = mask.repeat_interleave(x.shape[1], dim=0)
            on = (dense * mask) @ model.sae.W_dec + model.sae.b_dec
            off = (dense * (1 - mask)) @ model.sae.W_dec + model.sae.b_dec
            torch.testing.assert_close(model.sae.b_dec + R_k, on, rtol=1e-5, atol=3e-6)
            torch.testing.assert_close(x_hat - R_k, off, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(("max_density", "atol"), [(1.0, 0.0), (0.0, 3e-6)])
def test_a_ranking_for_all_images_is_one_for_each(model: Model, max_density: float, atol: float) -> None:
    with torch.inference_mode():
        encoder = LatentEncoder(model.sae, EncoderChoice("float32", max_density))
        latents = encoder.block(model.backbone.head(model.images[:4]).flatten(0, 1))
        ranking, ks = torch.arange(N_LATENTS)[None], np.array([4, 40])
        shared = [R_k.clone() for R_k in sweep(latents, 4, ranking, ks, model.sae.W_dec)]
        own = [R_k.clone() for R_k in sweep(latents, 4, ranking.expand(4, -1), ks, model.sae.W_dec)]
    for a, b in zip(shared, own, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_the_reference_s_constant_bias_changes_nothing(model: Model) -> None:
    # It subtracts one number from every channel, and LayerNorm takes it out again (spec 5.1).
    with torch.inference_mode():
        x = model.backbone.head(model.images)
        plain = model.backbone.tail(x)
        torch.testing.assert_close(model.backbone.tail(x + 0.105131256516992), plain, rtol=1e-4, atol=1e-5)
        offset = torch.zeros(x.shape[2])
        offset[::2] = 2**0.5 * 0.105131256516992
        assert (model.backbone.tail(x + offset) - plain).abs().max() > 1e-3


def test_ties_go_to_the_lower_id_and_uncounted_latents_follow() -> None:
    assert by_count(np.array([0, 3, 0, 7, 3, 0]), 5).tolist() == [3, 1, 4, 0, 2]


def test_each_rank_belongs_to_the_first_k_that_uses_it() -> None:
    assert segments(np.array([1, 2, 5])).tolist() == [0, 1, 2, 2, 2]
    assert segments(np.array([], np.int64)).tolist() == []


def test_random_rankings() -> None:
    latents = pl.DataFrame({"dead": [i % 3 == 0 for i in range(30)]})
    one = random_ranking(latents, 30, seed=0, alive_first=True)
    assert sorted(one.tolist()) == list(range(30))
    assert (one[:20] % 3 != 0).all() and (one[20:] % 3 == 0).all()
    assert one.tolist() != random_ranking(latents, 30, seed=1, alive_first=True).tolist()
    everything = random_ranking(latents, 20, seed=0, alive_first=False)
    assert (everything % 3 == 0).any()


def test_wilson_interval_in_closed_form() -> None:
    # The ends solve (p - share)^2 = z^2 p (1 - p) / n.
    n_correct, n = np.array([0, 3, 10]), np.array([10, 10, 10])
    low, high = wilson_interval(n_correct, n)
    assert low[0] == 0 and high[2] == 1
    for p, share in ((low[1], 0.3), (high[1], 0.3), (high[0], 0.0), (low[2], 1.0)):
        assert (p - share) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / 10)


def test_ks_are_put_in_order() -> None:
    assert MaskingConfig(statistics="s", ks=("all", 5, 1, 5)).ks == (1, 5, "all")
    with pytest.raises(ValidationError):
        MaskingConfig(statistics="s", ks=(0,))


def experiment() -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "datasets": {"a": {"kind": "digits"}, "b": {"kind": "digits", "n_images": 99}},
            "backbones": {"clip": {"kind": "shapes_clip"}},
            "saes": {"s": {"kind": "relu_l1", "dataset": "a", "backbone": "clip"}},
            "evaluations": {
                "own": {"kind": "masking", "statistics": "stats"},
                "other": {"kind": "masking", "statistics": "stats", "dataset": "b"},
                "stats": {"kind": "statistics", "sae": "s"},
            },
        }
    )


def test_the_dag_fills_in_names() -> None:
    nodes = {node.address: node for node in experiment().nodes()}
    own, other = nodes["masking/own"], nodes["masking/other"]
    assert own.inputs["activations"] == "extract/a-clip" and other.inputs["activations"] == "extract/b-clip"
    assert other.inputs["selection_images"] == "index/a" and other.inputs["statistics"] == "statistics/stats"
    assert (own.names.dataset, other.names.dataset) == ("a", "b")
    for node in (own, other):
        assert (node.names.backbone, node.names.sae, node.names.evaluation) == ("clip", "s", node.name)
    # What a name stands for is an input, the name itself is in no key.
    assert own.config.key_config() == other.config.key_config()
    assert not {"dataset", "statistics", "backbone"} & own.config.key_config().keys()
    assert not {"dataset", "sae"} & nodes["statistics/stats"].config.key_config().keys()


def test_masking_needs_statistics() -> None:
    itself = {"m": MaskingConfig(statistics="m")}
    with pytest.raises(UserError, match="`m`, which is no evaluation of kind"):
        experiment().model_copy(update={"evaluations": itself}).nodes()
