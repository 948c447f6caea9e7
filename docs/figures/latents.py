"""Draws docs/figures/latents.png: three latents of the demo's SAE on the images they are strongest on.

    uv run patchsae demo
    uv run --with matplotlib python docs/figures/latents.py [STORE]

For each of three shapes it takes the latent with the largest mean token activation among those whose top images all
show that shape (label entropy 0). It draws the top images, and below each the latent's activation on every patch.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from PIL import Image

import patchsae
from patchsae.pipeline.shapes import world

SEED = 1
"""Seed of the demo's world, as in pipeline/experiment/presets/demo.yaml."""
SHAPES = ("triangle", "ring", "bowtie")
N_IMAGES = 7
TILE, GAP, TITLE, COLOUR_BAR = 0.96, 0.05, 0.36, 0.78
"""Sizes in inches."""
DPI = 100
N_COLOURS = 256
TARGET = Path(__file__).with_name("latents.png")


def selective_latent(sae: patchsae.OpenSae, shape: str) -> int:
    """The strongest latent whose top images all show one shape."""
    alike = sae.latents.filter(~pl.col("dead"), pl.col("label_entropy") < 1e-6)
    for latent in alike.sort("mean_token_activation", descending=True).collect()["latent"]:
        if set(sae.top_images(latent)["class_name"]) == {shape}:
            return int(latent)
    raise SystemExit(f"{sae}: no latent has top images of the shape {shape} alone")


def dimmed(image: np.ndarray) -> np.ndarray:
    """The image in dark grey: float [height, width, 3] in 0..1."""
    return np.repeat(image.mean(axis=2, keepdims=True) * (0.5 / 255), 3, axis=2)


def main() -> None:
    sae = patchsae.open(sys.argv[1] if len(sys.argv) > 1 else None).sae("relu")
    row_height = TITLE + 2 * (TILE + GAP)
    width, height = N_IMAGES * (TILE + GAP) + COLOUR_BAR, len(SHAPES) * row_height + GAP
    figure = plt.figure(figsize=(width, height))

    def axes(left: float, top: float, w: float, h: float) -> plt.Axes:
        """Axes at a place in inches from the upper left corner."""
        return figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))

    for row, shape in enumerate(SHAPES):
        latent = selective_latent(sae, shape)
        top_images = sae.top_images(latent, N_IMAGES)
        maps = [sae.map(image, latent) for image in top_images["image"]]
        strongest = max(values.max() for values in maps)
        top = row * row_height
        figure.text(
            GAP / width,
            1 - (top + 0.6 * TITLE) / height,
            f"latent {latent} ({shape})",
            fontsize=11,
            va="center",
        )
        for column, (source, values) in enumerate(zip(top_images["source"], maps, strict=True)):
            split, index = source.split("/")
            image = world.render(SEED, split, int(index)).image
            left = GAP + column * (TILE + GAP)
            plain = axes(left, top + TITLE, TILE, TILE)
            plain.imshow(image, interpolation="bilinear")
            laid = axes(left, top + TITLE + TILE + GAP, TILE, TILE)
            laid.imshow(dimmed(image), interpolation="bilinear")
            shown = np.kron(values, np.ones((world.PATCH_SIZE, world.PATCH_SIZE)))
            drawn = laid.imshow(
                shown, cmap="inferno", vmin=0, vmax=strongest, alpha=np.clip(4 * shown / strongest, 0, 0.85)
            )
            plain.set_axis_off()
            laid.set_axis_off()
        bar = axes(GAP + N_IMAGES * (TILE + GAP) + 0.03, top + TITLE + TILE + GAP, 0.12, TILE)
        figure.colorbar(drawn, cax=bar).solids.set_alpha(1)
        bar.set_ylabel("activation", fontsize=8)
        bar.tick_params(labelsize=8)
    data = io.BytesIO()
    figure.savefig(data, dpi=DPI)
    Image.open(data).convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
