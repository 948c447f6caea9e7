"""What every registered dataset must do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.core import registry
from patchsae.pipeline.images import datasets
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.datasets.coop import CoopConfig
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.datasets.shapes import ShapesConfig
from tests.support.coop_data import tiny

KINDS = registry.variants(datasets, DatasetConfig)


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetConfig:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 9), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    if request.param == "coop":
        tiny(monkeypatch, tmp_path, "oxford_pets")
    known: dict[str, DatasetConfig] = {
        "coop": CoopConfig(name="oxford_pets", root=str(tmp_path)),
        "digits": DigitsConfig(n_images=40),
        "image_folder": ImageFolderConfig(root=str(tmp_path)),
        "shapes": ShapesConfig(seed=3, splits={"train": 30, "test": 10}),
    }
    # A new kind whose fields have defaults needs no line here.
    return known[request.param] if request.param in known else KINDS[request.param]()


def test_records_are_stable_and_unique(config: DatasetConfig) -> None:
    records = config.build().records()
    assert list(records) == list(config.build().records())
    assert len({record.source for record in records}) == len(records) == config.source().n_images
    names = config.build().class_names()
    assert all(names[record.label] == record.class_name for record in records)
    assert all(record.label in record.labels for record in records if record.labels)


def test_images_are_rgb_and_the_same_each_time(config: DatasetConfig) -> None:
    dataset = config.build()
    for record in list(dataset.records())[:5]:
        data = dataset.read(record)
        assert data == pickle.loads(pickle.dumps(dataset)).read(record)
        assert dataset.decode(data).mode == "RGB"


def test_fingerprint_and_prompts(config: DatasetConfig) -> None:
    assert config.build().fingerprint() == config.build().fingerprint()
    assert all(template.count("{}") == 1 for template in config.templates())
