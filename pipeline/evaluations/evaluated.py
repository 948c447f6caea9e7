"""The images, split into parts, and the encoder of the evaluations `statistics`, `masking`, `reconstruction`.

Shapes: B images of T tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import numpy as np
from torch import Tensor

from patchsae.pipeline.activations.parts import PartImages, part_rows
from patchsae.pipeline.core.stage import Inputs, Within
from patchsae.pipeline.images.tables import label_sets_of, labels_of
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import check_width, load_sae, width_of
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder

_ENCODER = "encoder"


class EvaluatedImages:
    """The images `rows` of an activation array with their labels, split into parts."""

    def __init__(self, inputs: Inputs, rows: np.ndarray, device: str) -> None:
        self.activations = Activations(inputs["activations"])
        self.rows = rows
        self.parts = part_rows(self.activations, rows)
        self.labels = labels_of(inputs["images"])
        self.label_sets = label_sets_of(inputs["images"])
        self._device = device

    def blocks(
        self, part: int, images_per_block: int, within: Within
    ) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray]]:
        """(row numbers [B], activations [B, T, d], labels [B]) of a part's images, block by block.

        `within` is told when a block is done.
        """
        rows = self.parts[part]
        images = PartImages(self.activations, rows, self._device)
        for start in range(0, len(rows), images_per_block):
            chosen = rows[start : start + images_per_block]
            yield chosen, images.take(chosen), self.labels[chosen]
            within(start + len(chosen), len(rows), "images")

    def blocks_by_class(
        self, part: int, images_per_block: int, within: Within
    ) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray, bool]]:
        """(row numbers [B], activations [B, T, d], class ids [B], again) of a part's images, sorted by class.

        An image of several classes comes once for each. `again` is False once per image, for its `label`.
        """
        rows = self.parts[part]
        images = PartImages(self.activations, rows, self._device)
        position, label = self.label_sets.pairs(rows)
        again = label != self.labels[rows][position]
        order = np.lexsort((position, again, label))
        n_done = 0
        for several in np.split(order, np.flatnonzero(np.diff(again[order])) + 1):
            for start in range(0, len(several), images_per_block):
                chosen = several[start : start + images_per_block]
                block = rows[position[chosen]]
                yield block, images.take(block), label[chosen], bool(again[chosen[0]])
                n_done += len(chosen)
                within(n_done, len(order), "images")


def n_latents_of(inputs: Inputs) -> int:
    """The number of latents of the SAE that is evaluated."""
    return int(inputs["sae"].manifest.summary["n_latents"] or 0)


def choose_encoder(inputs: Inputs, out: Builder, device: str) -> None:
    """`choose_encoders` of one SAE."""
    choose_encoders({_ENCODER: inputs}, out, device)


def choose_encoders(inputs: Mapping[str, Inputs], out: Builder, device: str) -> None:
    """Chooses how the latents of each SAE are computed, and shares each choice with all parts under its name.

    All parts are computed in the same way, also those of a resumed run on another machine. If a choice was
    lost, finished parts are forgotten. Raises UserError if an SAE takes activations of another width.
    """
    widths = {name: Activations(mine["activations"]).width for name, mine in inputs.items()}
    for name, mine in inputs.items():
        check_width(width_of(mine["sae"]), widths[name])
    if any(out.scratch.shared(name) is None for name in inputs):
        out.start_over()
        for name, mine in inputs.items():
            choice = EncoderChoice.for_device(device, widths[name], n_latents_of(mine))
            out.scratch.share(name, {}, asdict(choice))


def open_encoder(inputs: Inputs, out: Builder, device: str, name: str = _ENCODER) -> LatentEncoder:
    """The encoder of the SAE, with the settings that `choose_encoders` shared under this name."""
    choice = EncoderChoice(**out.scratch.read_shared(name).values)
    return LatentEncoder(load_sae(inputs["sae"], device), choice)
