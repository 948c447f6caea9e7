"""ShapesCLIP as shipped: its accuracy, its size, its record and its tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from patchsae.pipeline.shapes import clip as shapes_clip
from patchsae.pipeline.shapes import world as shapes_world
from patchsae.pipeline.shapes.clip.tokenizer import WordTokenizer
from patchsae.pipeline.shapes.world import TEMPLATES
from patchsae.storage.errors import UserError

N_IMAGES = 1000


@pytest.fixture(scope="module")
def scenes() -> list[shapes_world.Scene]:
    """Single-object held-out scenes of a seed that training never touched."""
    plans = (shapes_world.layout(1, "heldout", index) for index in range(2 * N_IMAGES))
    singles = [plan for plan in plans if len(plan.placements) == 1][:N_IMAGES]
    assert len(singles) == N_IMAGES
    return [shapes_world.draw(plan) for plan in singles]


@pytest.fixture(scope="module")
def image_features(scenes: list[shapes_world.Scene]) -> torch.Tensor:
    model, preprocess, _ = shapes_clip.load()
    images = torch.stack([preprocess(Image.fromarray(scene.image)) for scene in scenes])
    with torch.inference_mode():
        return torch.cat([model.encode_image(part, normalize=True) for part in images.split(200)])


@pytest.mark.parametrize("attribute", ["shape", "colour", "texture", "background"])
def test_zero_shot_accuracy_on_held_out_images(
    attribute: str, scenes: list[shapes_world.Scene], image_features: torch.Tensor
) -> None:
    model, _, tokenizer = shapes_clip.load()
    values = shapes_world.PRETRAINING_VALUES[attribute]
    texts = [template.format(value) for value in values for template in TEMPLATES[attribute]]
    with torch.inference_mode():
        text_features = model.encode_text(tokenizer(texts), normalize=True)
    text_features = F.normalize(text_features.unflatten(0, (len(values), -1)).mean(1), dim=-1)
    predicted = (image_features @ text_features.T).argmax(1)
    truth = torch.tensor(
        [
            values.index(s.background if attribute == "background" else s.objects[0].value(attribute))
            for s in scenes
        ]
    )
    assert (predicted == truth).float().mean().item() >= 0.90


def test_the_weights_are_small_and_the_record_says_where_they_come_from() -> None:
    assert shapes_clip.WEIGHTS.stat().st_size <= 10_000_000
    record = json.loads((shapes_clip.FOLDER / "training.json").read_text())
    assert record["command"].startswith("python -m pipeline.shapes_clip.train")
    assert len(record["git_revision"]) == 40
    assert record["images_seen"] > 0
    for attribute in ("shape", "colour", "texture", "background"):
        assert record["heldout_accuracy"][attribute] >= 0.90


def test_loading_gives_an_open_clip_model_and_its_preprocessing() -> None:
    model, preprocess, tokenizer = shapes_clip.load()
    assert type(model).__module__ == "open_clip.model"
    assert not model.training
    assert len(model.visual.transformer.resblocks) >= 6
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
    image = preprocess(Image.fromarray(pixels))
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.float32
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(image, expected)
    assert tokenizer.vocab_size == model.vocab_size


def test_a_model_without_weights_says_how_to_train_it(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text((shapes_clip.FOLDER / "model.json").read_text())
    with pytest.raises(UserError, match=r"python -m patchsae\.pipeline\.shapes\.clip\.train"):
        shapes_clip.load(tmp_path)


def test_the_vocabulary_covers_captions_prompts_and_withheld_words() -> None:
    _, _, tokenizer = shapes_clip.load()
    for split in shapes_world.SPLITS:
        tokenizer([shapes_world.layout(0, split, index).caption for index in range(300)])
    for attribute, values in shapes_world.VALUES.items():
        tokenizer([t.format(v) for t in TEMPLATES[attribute] for v in values])


def test_the_tokenizer_follows_open_clip() -> None:
    tokenizer = WordTokenizer(["a", "red", "circle"], context_length=6)
    ids = tokenizer(["A red circle.", "circle"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[4, 1, 2, 3, 5, 0], [4, 3, 5, 0, 0, 0]]
    assert ids.argmax(dim=1).tolist() == [4, 2]  # where the text tower is pooled
    assert tokenizer("circle").shape == (1, 6)
    assert tokenizer("circle", context_length=3).tolist() == [[4, 3, 5]]


def test_the_tokenizer_refuses_what_it_cannot_read() -> None:
    tokenizer = WordTokenizer(["a", "red", "circle"], context_length=5)
    with pytest.raises(UserError, match=r"does not know the word 'dog'.*a, red, circle"):
        tokenizer("a red dog")
    with pytest.raises(UserError, match="at most 3, shorten it"):
        tokenizer("a red red circle")
