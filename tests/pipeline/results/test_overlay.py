"""A map lies over the part of the picture that the model sees, patch by patch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.results.html import figures, table
from patchsae.pipeline.results.overlay import SIDE, overlaid, sheet


def test_a_patch_is_coloured_where_the_model_sees_it() -> None:
    picture = Image.new("RGB", (640, 320), (100, 100, 100))
    values = np.zeros((4, 4), np.float32)
    values[1, 3] = 2.0
    box = Framing((32, 32)).box(640, 320, (4, 4))
    found = np.asarray(overlaid(picture, values, box), int)
    assert found.shape == (SIDE // 2, SIDE, 3)
    # The middle half is seen: columns 80 to 240, patches of 40 pixels.
    brightest = np.unravel_index(np.abs(found - 100).sum(axis=2)[:, 80:240].argmax(), (160, 160))
    assert abs(brightest[0] - 60) <= 2 and abs(brightest[1] - 140) <= 21
    assert found[60, 220].tolist() != [100, 100, 100] and found[150, 100].tolist() == [100, 100, 100]
    assert found[60, 40].tolist() == [35, 35, 35] == found[60, 280].tolist()
    dimmer = np.asarray(overlaid(picture, values, box, largest=8.0), int)
    assert abs(dimmer[60, 220] - 100).sum() < abs(found[60, 220] - 100).sum()
    nothing = np.asarray(overlaid(picture, values * 0, box), int)
    assert (nothing[:, 80:240] == 100).all()


def test_a_cell_is_outlined() -> None:
    picture, values = Image.new("RGB", (320, 320), (100, 100, 100)), np.zeros((4, 4), np.float32)
    found = np.asarray(overlaid(picture, values, (0, 0, 1, 1), cell=(1, 3)), int)
    changed = np.argwhere((found != 100).any(axis=2))
    assert changed.min(axis=0).tolist() == [80, 240] and changed.max(axis=0).tolist() == [159, 319]
    assert found[120, 280].tolist() == [100, 100, 100]


def test_padding_is_beyond_the_picture() -> None:
    values = np.ones((2, 2), np.float32)
    box = Framing((32, 32), "longest").box(320, 160, (2, 2))
    assert box == (0, -0.5, 1, 1.5)
    found = np.asarray(overlaid(Image.new("RGB", (320, 160)), values, box))
    assert (found == found[0, 0]).all() and found.max() > 100


def test_sheets_and_html_hold_every_picture() -> None:
    pictures = [Image.new("RGB", (320, 200), (40 * i, 0, 0)) for i in range(5)]
    whole = sheet(pictures, [f"picture {i}" for i in range(5)], columns=3)
    assert whole.width == 3 * (SIDE + 8) + 8 and whole.height == 2 * (SIDE + 8 + 20) + 8
    assert {whole.getpixel((8 + 328 * (i % 3) + 160, 8 + 348 * (i // 3) + 160)) for i in range(5)} == {
        (40 * i, 0, 0) for i in range(5)
    }
    text = figures(pictures[:2], ["<script>alert(1)</script>", "a \"quoted\" & 'single' name"])
    assert text.count("data:image/webp;base64,") == 2 and "<script>" not in text and "http" not in text
    assert "&lt;script&gt;" in text and 'a "quoted"' not in text
    assert "<td>&lt;b&gt;</td>" in table(("x",), [("<b>",)]) and "<td>0.3333</td>" in table(
        ("x",), [(1 / 3,)]
    )
