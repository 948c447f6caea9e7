from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.activations.extract import STAGE as EXTRACT
from patchsae.pipeline.activations.extract import ExtractStageConfig
from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.weights import STAGE as WEIGHTS
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.forecast import bytes_at_once, check_space
from patchsae.pipeline.images import index
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import plan, run_all, run_node


@pytest.fixture
def dataset(tmp_path: Path) -> ImageFolderConfig:
    for i in range(6):
        path = tmp_path / "photos" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, i, i)).save(path)
    return ImageFolderConfig(root=str(tmp_path / "photos"))


@pytest.fixture
def backbone(tiny_model: str, tiny_checkpoint: Path) -> OpenClipConfig:
    return OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint))


def nodes_of(dataset: ImageFolderConfig, backbone: OpenClipConfig) -> list[Node]:
    inputs = {"images": "index/photos", "weights": "weights/clip"}
    return [
        Node(index.STAGE, "photos", dataset, {}),
        Node(WEIGHTS, "clip", backbone, {}),
        Node(
            EXTRACT,
            "photos-clip",
            ExtractStageConfig(dataset=dataset, backbone=backbone, extract=backbone.extract),
            inputs,
        ),
    ]


def test_from_nothing_to_cached(store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig) -> None:
    nodes = nodes_of(dataset, backbone)
    before = plan(store, nodes)
    assert [(item.state, item.why) for item in before.values()] == [
        ("run", "never run"),
        ("run", "never run"),
        ("run", "waits for index/photos"),
    ]
    assert 6 * 17 * 32 * 2 < before["extract/photos-clip"].n_bytes < 6 * 17 * 32 * 2 + 10_000
    assert not store.root.exists()
    run_all(store, nodes)
    after = plan(store, nodes)
    assert {item.state for item in after.values()} == {"cached"}


def test_why_names_the_field_or_the_input(
    store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig, tmp_path: Path
) -> None:
    run_all(store, nodes_of(dataset, backbone))
    deeper = backbone.model_copy(update={"extract": ExtractConfig(hook_block=-1)})
    planned = plan(store, nodes_of(dataset, deeper))
    assert planned["weights/clip"].state == "cached"
    assert planned["extract/photos-clip"].why == "extract.hook_block: -2 -> -1"
    Image.new("RGB", (40, 40), (99, 0, 0)).save(tmp_path / "photos" / "a" / "0.png")
    nodes = nodes_of(dataset, backbone)
    assert plan(store, nodes)["index/photos"].why == "1 image changed (a/0.png)"


def test_a_touched_file_costs_an_index_and_nothing_after(
    store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig, tmp_path: Path
) -> None:
    nodes = nodes_of(dataset, backbone)
    run_all(store, nodes)
    (tmp_path / "photos" / "a" / "0.png").touch()
    assert plan(store, nodes)["index/photos"].state == "run"
    run_all(store, nodes[:2])
    assert plan(store, nodes)["extract/photos-clip"].state == "cached"


def test_a_missing_folder_blocks_what_needs_it_and_nothing_else(
    store: Store, backbone: OpenClipConfig, tmp_path: Path
) -> None:
    gone = ImageFolderConfig(root=str(tmp_path / "gone"), n_images=1_000_000)
    planned = plan(store, nodes_of(gone, backbone))
    assert planned["index/photos"].state == "blocked"
    assert "gone: no such folder" in planned["index/photos"].why
    assert planned["weights/clip"].state == "run"
    assert (planned["extract/photos-clip"].state, planned["extract/photos-clip"].why) == (
        "blocked",
        "needs index/photos",
    )
    assert 1 <= planned["extract/photos-clip"].n_bytes / (1_000_000 * 17 * 32 * 2) < 1.01
    with pytest.raises(UserError, match="no such folder"):
        run_node(store, planned["index/photos"], planned, Runtime())


def test_inputs_must_have_been_run(
    store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig
) -> None:
    nodes = nodes_of(dataset, backbone)
    planned = plan(store, nodes)
    with pytest.raises(UserError, match="extract/photos-clip needs index/photos, which has not been run"):
        run_node(store, planned["extract/photos-clip"], planned, Runtime())


def test_a_plan_that_cannot_fit_is_refused(
    store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without thumbnails, which would be larger than the activations of six images of this backbone.
    planned = plan(store, nodes_of(dataset.model_copy(update={"thumbnails": 0}), backbone))
    _, needed = bytes_at_once(planned.values())
    assert needed > 6 * 17 * 32 * 2
    monkeypatch.setattr(Store, "free_bytes", lambda _: needed)
    check_space(store, planned)
    monkeypatch.setattr(Store, "free_bytes", lambda _: needed - 1)
    with pytest.raises(UserError, match=r"needs about .*B .*extract/photos-clip"):
        check_space(store, planned)


def test_a_manifest_edited_by_hand_runs_again(
    store: Store, dataset: ImageFolderConfig, backbone: OpenClipConfig
) -> None:
    nodes = nodes_of(dataset, backbone)
    run_all(store, nodes)
    manifest = store.committed("extract")[0].path / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace('"n_images": 6', '"n_images": 7'))
    assert plan(store, nodes)["extract/photos-clip"].state == "damaged"
    run_all(store, nodes)
    assert plan(store, nodes)["extract/photos-clip"].state == "cached"
    assert store.committed("extract")[0].manifest.summary["n_images"] == 6
