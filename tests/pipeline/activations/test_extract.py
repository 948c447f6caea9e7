from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchsae.pipeline.activations import extract
from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.backbone import BackboneConfig, ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.images import index, indexed
from patchsae.pipeline.images.dataset import DatasetConfig, Record
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.storage.activations import Activations, ActivationTemplate, to_float32
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes
from patchsae.storage.store import Store
from tests.support.nodes import plan, run_all, run_node


def nodes_of(dataset: DatasetConfig, backbone: BackboneConfig) -> list[Node]:
    config = extract.ExtractStageConfig(dataset=dataset, backbone=backbone, extract=backbone.extract)
    return [
        Node(index.STAGE, "data", dataset, {}),
        Node(weights.STAGE, "clip", backbone, {}),
        Node(extract.STAGE, "data-clip", config, {"images": "index/data", "weights": "weights/clip"}),
    ]


def extracted(store: Store, runtime: Runtime, nodes: list[Node]) -> Artifact:
    return run_all(store, nodes, runtime)["extract/data-clip"]


@pytest.fixture
def backbone(tiny_model: str, tiny_checkpoint: Path) -> OpenClipConfig:
    return OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchsae.storage.activations._CHUNK_BYTES", 17 * 32 * 2 * 7)


def test_row_i_is_image_i_through_the_head(store: Store, runtime: Runtime, backbone: OpenClipConfig) -> None:
    dataset = DigitsConfig(n_images=100)
    nodes = nodes_of(dataset, backbone)
    artifact = extracted(store, runtime, nodes)
    activations = Activations(artifact)
    assert (activations.n_images, activations.tokens_per_image, activations.width) == (100, 17, 32)
    assert activations.attributes["hook_block"] == 1
    loaded = backbone.build({}).to("cpu")
    images = indexed.indexed_images(dataset, store.committed("index")[0], loaded.preprocess)
    with torch.inference_mode():
        expected = loaded.head(torch.stack([images[i] for i in range(100)]))
    stored = torch.from_numpy(to_float32(activations.read(0, 100), "float16"))
    torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_workers_and_batch_change_no_byte(
    runtime: Runtime, backbone: OpenClipConfig, tmp_path: Path, dtype: str
) -> None:
    configured = backbone.model_copy(update={"extract": ExtractConfig(dtype=dtype)})  # type: ignore[arg-type]
    nodes = nodes_of(DigitsConfig(n_images=100), configured)
    settings = [
        runtime,
        replace(runtime, workers=2, batch_images=3),
        replace(runtime, workers=1, batch_images=64),
    ]
    outputs = [
        extracted(Store(tmp_path / f"store {i}"), setting, nodes).manifest.outputs
        for i, setting in enumerate(settings)
    ]
    assert outputs[0] == outputs[1] == outputs[2]


def test_resumes_at_the_missing_shards(
    store: Store, runtime: Runtime, backbone: OpenClipConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = nodes_of(DigitsConfig(n_images=100), backbone)
    whole = extracted(Store(tmp_path / "other"), runtime, nodes).manifest.outputs
    n_forward = 0
    plain = extract.to_stored

    def stop_at_ninth(*arguments: object) -> np.ndarray:
        nonlocal n_forward
        n_forward += 1
        if n_forward == 9:
            raise KeyboardInterrupt
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(extract, "to_stored", stop_at_ninth)
    with pytest.raises(KeyboardInterrupt):
        extracted(store, runtime, nodes)
    planned = plan(store, nodes)["extract/data-clip"]
    assert planned.state == "resume"
    n_done = planned.key and store.at("extract", planned.key).ledger.n_done()
    n_forward = -1000
    artifact = extracted(store, runtime, nodes)
    assert n_done
    assert n_forward + 1000 == len(whole) - 1 - n_done
    assert artifact.manifest.outputs == whole


def test_a_truncated_shard_is_computed_again_and_nothing_else(
    store: Store, runtime: Runtime, backbone: OpenClipConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = nodes_of(DigitsConfig(n_images=100), backbone)
    artifact = extracted(store, runtime, nodes)
    shard = artifact.path / "activations.zarr" / "c" / "3" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    planned = plan(store, nodes)["extract/data-clip"]
    assert planned.state == "damaged"
    assert str(shard) in planned.why
    written: list[int] = []
    plain = extract.write_shards
    monkeypatch.setattr(
        extract,
        "write_shards",
        lambda out, writer, parts, batches: written.extend(parts) or plain(out, writer, parts, batches),
    )
    assert extracted(store, runtime, nodes).manifest.outputs == artifact.manifest.outputs
    assert written == [3]


def test_an_image_that_changed_since_the_index_is_refused(
    store: Store, runtime: Runtime, backbone: OpenClipConfig, tmp_path: Path
) -> None:
    for i in range(4):
        path = tmp_path / "a folder" / "thing" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), i).save(path)
    nodes = nodes_of(ImageFolderConfig(root=str(tmp_path / "a folder")), backbone)
    run_all(store, nodes[:2], runtime)
    planned = plan(store, nodes)
    Image.new("L", (9, 9), 77).save(path)
    with pytest.raises(UserError, match=r"thing/3\.png: is not the image that was indexed.*--rerun index`\."):
        run_node(store, planned["extract/data-clip"], planned, runtime)
    # Of a worker process too, the sentence alone arrives.
    with pytest.raises(UserError) as caught:
        run_node(store, planned["extract/data-clip"], planned, replace(runtime, workers=1))
    assert str(caught.value).startswith("thing/3.png: is not") and "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(
        UserError,
        match=r"thing/3\.png: cannot be read any more \(No such file or directory\).*--rerun index`\.",
    ):
        run_node(store, planned["extract/data-clip"], planned, runtime)
    assert not store.committed("extract")


def test_an_image_that_an_older_version_decoded_is_refused(tmp_path: Path) -> None:
    data = b"a format of an older version"
    (tmp_path / "1.png").write_bytes(data)
    dataset = ImageFolderConfig(root=str(tmp_path)).build()
    images = indexed.IndexedImages(
        dataset, [Record("1.png", 0, "thing", "train")], [digest_bytes(data)], lambda image: image
    )
    with pytest.raises(UserError, match=r"^1\.png: is no image of the formats .*--rerun index`\."):
        images[0]


def test_values_that_do_not_fit_name_the_layer_and_the_maximum() -> None:
    values = torch.tensor([[1.0, -70000.0]])
    with pytest.raises(
        UserError, match=r"block 10: activations up to 70000 do not fit float16; set extract.dtype"
    ):
        extract.to_stored(values, "float16", "block 10")
    assert extract.to_stored(values, "bfloat16", "block 10").dtype == np.uint16
    with pytest.raises(UserError, match="check the weights"):
        extract.to_stored(torch.tensor([float("nan")]), "bfloat16", "block 10")


def test_batches_never_straddle_a_shard() -> None:
    template = ActivationTemplate(50, 3, 4, "float16", chunk_images=4, chunks_per_shard=3)
    batches = extract.batches_of(template, [1, 4], 8)
    assert batches == [list(range(12, 20)), list(range(20, 24)), [48, 49]]
