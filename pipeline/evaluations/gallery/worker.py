"""The worker of a gallery's parts: what a part of the sample's images says of every latent.

The arrays of a part, whose firings are ordered by latent and then by image:

- `firings.ends` [S + 1]: latent s has the firings ends[s] to ends[s + 1] of `firings.image` (position in the sample),
  `firings.activation`, `firings.token` and `firings.peak`;
- `histogram.bin`, `histogram.n`: the cells of [S, bins] that are not 0, and their counts;
- `drawn.n`, `drawn.latent`: the number of latents on each drawn token, and the latents;
- `features` [N, E]: the unit image features of the part's images that are embedded, if there are any.

Shapes: B images of T tokens, S latents, E channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.core.stage import Inputs, Runtime, Within
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, open_encoder
from patchsae.pipeline.evaluations.gallery.settings import GallerySettings
from patchsae.pipeline.evaluations.gallery.tables import FINER_BINS, N_COARSE_BINS
from patchsae.pipeline.evaluations.statistics.counts import Firings, bins_of
from patchsae.pipeline.saes.sparse.latents import Latents, images_per_block
from patchsae.storage.artifacts import Builder
from patchsae.storage.tokens import TokenSelection


class PartFindings:
    """What is collected from the blocks of a part."""

    def __init__(self, n_latents: int, first_token: int) -> None:
        self.n_latents, self.first_token = n_latents, first_token
        self.histogram = np.zeros(n_latents * N_COARSE_BINS, np.int32)
        self._firings: list[tuple[np.ndarray, ...]] = []
        self._drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, latents: Latents, images: np.ndarray, is_drawn: np.ndarray) -> None:
        """Adds a block of whole images at these positions in the sample. `is_drawn` bool [B, T]."""
        firings = Firings.of(latents, is_drawn.shape[1], tau=0.0)
        self._firings.append(
            (
                firings.latent.astype(np.int32),
                images[firings.slot].astype(np.int32),
                (firings.total / is_drawn.shape[1]).astype(np.float32),
                (firings.token + self.first_token).astype(np.int32),
                firings.peak,
            )
        )
        sparse = latents.sparse()
        n, latent, value = (one.cpu().numpy() for one in (sparse.offsets.diff(), sparse.latent, sparse.value))
        cell = latent * np.int64(N_COARSE_BINS) + bins_of(value) // FINER_BINS
        np.add.at(self.histogram, cell, np.ones(len(cell), np.int32))
        drawn = is_drawn.ravel()
        self._drawn.append((n[drawn].astype(np.int32), latent[np.repeat(drawn, n)].astype(np.int32)))

    def arrays(self) -> dict[str, np.ndarray]:
        latent, *others = (np.concatenate(column) for column in zip(*self._firings, strict=True))
        order = np.argsort(latent, kind="stable")
        names = ("image", "activation", "token", "peak")
        cells = np.flatnonzero(self.histogram)
        n, drawn = (np.concatenate(column) for column in zip(*self._drawn, strict=True))
        return {
            "firings.ends": np.searchsorted(latent[order], np.arange(self.n_latents + 1)),
            **{f"firings.{name}": values[order] for name, values in zip(names, others, strict=True)},
            "histogram.bin": cells,
            "histogram.n": self.histogram[cells],
            "drawn.n": n,
            "drawn.latent": drawn,
        }


class Worker:
    """Looks at the images of a part."""

    def __init__(
        self,
        settings: GallerySettings,
        backbone: BackboneConfig,
        rows: np.ndarray,
        tokens: TokenSelection,
        share: float,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
    ) -> None:
        self.images = EvaluatedImages(inputs, rows, runtime.device)
        self.encoder = open_encoder(inputs, out, runtime.device)
        self.tokens = self.images.activations.layout.select(tokens)
        self.is_drawn = settings.drawn_tokens(len(rows), len(self.tokens), share)
        self.n_embedded = settings.n_embedded
        self.backbone: Backbone | None = None
        if self.n_embedded:
            self.backbone = load_backbone(backbone, inputs, runtime.device, runtime.reporter)

    @torch.inference_mode()
    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        n_latents = self.encoder.sae.n_latents
        found = PartFindings(n_latents, self.tokens.start)
        features: list[np.ndarray] = []
        step = images_per_block(n_latents, len(self.tokens))
        for rows, x, _ in self.images.blocks(part, step, within):
            images = np.searchsorted(self.images.rows, rows)
            latents = self.encoder.block(x[:, self.tokens.start : self.tokens.stop].flatten(0, 1))
            found.add(latents, images, self.is_drawn[images])
            if len(embedded := x[torch.from_numpy(images < self.n_embedded)]):
                features.append(self._features(embedded))
        return {**found.arrays(), **({"features": np.concatenate(features)} if features else {})}

    def _features(self, x: Tensor) -> np.ndarray:
        """Activations [B, T, d] -> unit image features, float32 [B, E]."""
        assert self.backbone is not None
        return normalize(self.backbone.tail(x).float(), dim=-1).cpu().numpy()
