"""A store about photographs of many shapes, under models that crop, squeeze, and have an oblong grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
from open_clip import pretrained
from PIL import Image

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.support.checkpoints import save_weights
from tests.support.photos import exif_of

CLASSES = ("<script>document.title = 'broken'</script>", "\"quoted\" & 'single' <b>bold</b>", "plain")
"""Names that would break a page which took them for markup."""
SIZES = ((96, 48), (40, 110), (60, 60), (33, 70), (200, 31))
"""Width and height of the stored pixels; those of number 3 are turned by a quarter when shown."""
TURNED, GREY, ALPHA = 3, 2, 1
_PER_SPLIT = 15
_MODEL, _SQUEEZED = "patchsae-tiny", "squeezed"
_EXPERIMENT = """
name: photographs
datasets:
  photos: {{kind: image_folder, root: {root!r}, csv: {csv!r}}}
backbones:
  cropping: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
  squeezing: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}, preprocessing: squeezed}}
  oblong: {{kind: open_clip, model: patchsae-tiny-oblong, checkpoint: {oblong!r}}}
saes:
  cropped: {{kind: topk, dataset: photos, backbone: cropping, n_latents: 64, k: 4, batch_size: 64, n_steps: 30}}
  squeezed: {{kind: topk, dataset: photos, backbone: squeezing, n_latents: 64, k: 4, batch_size: 64, n_steps: 30}}
  oblong: {{kind: topk, dataset: photos, backbone: oblong, n_latents: 64, k: 4, batch_size: 64, n_steps: 30}}
evaluations:
  cropped: {{kind: statistics, sae: cropped}}
  squeezed: {{kind: statistics, sae: squeezed}}
  oblong: {{kind: statistics, sae: oblong}}
"""


def preprocessing(sae: str) -> Any:
    """open_clip's own transform in front of an SAE, by its name: PIL image -> float32 [3, height, width]."""
    size = (24, 40) if sae == "oblong" else 32
    mode: Any = "squash" if sae == "squeezed" else "shortest"
    settings = open_clip.transform.PreprocessCfg(size=size, resize_mode=mode)
    return open_clip.transform.image_transform_v2(settings, is_train=False)


def squeezing_is_known() -> Any:
    """A patch under which open_clip knows the preprocessing `squeezed` of the tiny model."""
    tags = {_MODEL: {_SQUEEZED: {"resize_mode": "squash"}}}
    return mock.patch.dict(pretrained._PRETRAINED, tags)


def write_photos(folder: Path) -> None:
    """Writes the photographs, and `list.csv`, which has their classes."""
    folder.mkdir(parents=True)
    rows = ["path,class_name,split"]
    random = np.random.default_rng(0)
    for i in range(2 * _PER_SPLIT):
        width, height = SIZES[i % len(SIZES)]
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        name, settings = f"{i:02d} {width}x{height}.jpg", {}
        if i % len(SIZES) == TURNED:
            settings = {"exif": exif_of(6)}
        elif i % len(SIZES) == GREY:
            picture = picture.convert("L")
        elif i % len(SIZES) == ALPHA:
            name = name.replace(".jpg", ".png")
            picture.putalpha(Image.linear_gradient("L").resize((width, height)))
        picture.save(folder / name, **settings)
        quoted = CLASSES[i % len(CLASSES)].replace('"', '""')
        rows.append(f'{name},"{quoted}",{"train" if i < _PER_SPLIT else "test"}')
    (folder / "list.csv").write_text("\n".join(rows) + "\n")


def make(folder: Path) -> Store:
    """Writes photographs to `folder`/photos, runs the experiment, and returns its store."""
    write_photos(folder / "photos")
    checkpoints = {}
    for word, model in (("checkpoint", _MODEL), ("oblong", f"{_MODEL}-oblong")):
        torch.manual_seed(0)
        checkpoints[word] = str(folder / f"{model}.safetensors")
        save_weights(open_clip.create_model(model), Path(checkpoints[word]))
    store = Store(folder / "store")
    root, listed = folder / "photos", folder / "photos" / "list.csv"
    text = _EXPERIMENT.format(root=str(root), csv=str(listed), **checkpoints)
    with squeezing_is_known():
        run(work_on(store, parse(text, "photographs")), Runtime(workers=0))
    return store
