"""Merges what the parts of a gallery found (`gallery.worker`), some latents at a time.

Shapes: S latents, N embedded images, E channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.evaluations.gallery.cofiring import cofiring, groups_of
from patchsae.pipeline.evaluations.gallery.embeddings import Embeddings, mean_embeddings
from patchsae.pipeline.evaluations.gallery.examples import LatentFirings, examples
from patchsae.pipeline.evaluations.gallery.settings import GallerySettings
from patchsae.pipeline.evaluations.gallery.tables import (
    COFIRING,
    LATENT_EXAMPLES,
    LATENT_HISTOGRAMS,
    N_COARSE_BINS,
    bin_edges,
)
from patchsae.storage.artifacts import Builder
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays

# Firings that are held in memory at a time: 300 MB with what sorts them.
_FIRINGS = 4_000_000


def write_histograms(out: Builder, parts: Iterable[ScratchArrays], n_latents: int) -> Summary:
    """Writes the table `latent_histograms`. Returns the number of latents that fire in the sample."""
    histogram = np.zeros(n_latents * N_COARSE_BINS, np.int64)
    for arrays in parts:
        histogram[arrays["histogram.bin"]] += arrays["histogram.n"]
    cells = np.flatnonzero(histogram)
    latent, bins = np.divmod(cells, N_COARSE_BINS)
    low, high = bin_edges()
    out.write_table(
        LATENT_HISTOGRAMS,
        {
            "latent": latent.astype(np.int32),
            "low": low[bins],
            "high": high[bins],
            "n_tokens": histogram[cells],
        },
    )
    return {"n_alive": len(np.unique(latent))}


def write_cofiring(
    out: Builder, parts: Sequence[ScratchArrays], n_latents: int, k: int, reporter: Reporter
) -> Summary:
    """Writes the table `cofiring`. Returns the number of tokens that it is counted on."""
    n, latent = (np.concatenate([arrays[f"drawn.{name}"] for arrays in parts]) for name in ("n", "latent"))
    with reporter.bar("gallery, cofiring", n_latents, "latents") as bar:
        out.write_table(COFIRING, cofiring(n, latent, n_latents, k, bar.advance))
    return {"n_drawn_tokens": len(n)}


def write_examples(
    out: Builder,
    parts: Sequence[ScratchArrays],
    settings: GallerySettings,
    rows: np.ndarray,
    labels: np.ndarray,
    n_latents: int,
    reporter: Reporter,
) -> Summary:
    """Writes the table `latent_examples`, and the embeddings of latents if images were embedded.

    `rows` are the row numbers of the sample's images, and `labels` their class ids. Returns the number of images that
    were embedded.
    """
    image_draws, latent_draws = settings.image_draws(len(rows)), settings.latent_draws(n_latents)
    pieces = [arrays["features"] for arrays in parts if "features" in arrays]
    features = np.concatenate(pieces) if pieces else None
    found: list[dict[str, np.ndarray]] = []
    embedded: list[tuple[np.ndarray, np.ndarray]] = []
    with reporter.bar("gallery, examples", n_latents, "latents") as bar:
        for first, stop, firings in _by_latents(parts, n_latents):
            drawn = examples(firings, settings.bands, settings.n_per_band, image_draws, latent_draws)
            shown = firings.take(drawn["firing"])
            found.append(
                {
                    "latent": shown.latent.astype(np.int32),
                    **{name: drawn[name] for name in ("low", "high", "rank")},
                    "image": rows[shown.image],
                    "activation": shown.activation,
                    "token": shown.token,
                    "label": labels[shown.image],
                    "token_activation": shown.peak,
                }
            )
            if features is not None:
                ends = np.searchsorted(firings.latent, np.arange(first, stop + 1))
                embedded.append(mean_embeddings(ends, firings.image, firings.activation, features))
            bar.advance(stop - first)
    out.write_table(
        LATENT_EXAMPLES, {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    )
    if features is None:
        return {"n_embedded": 0}
    embedding, n_images = (np.concatenate(column) for column in zip(*embedded, strict=True))
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    Embeddings(embedding, n_images, mean).write(out)
    return {"n_embedded": len(features)}


def _by_latents(parts: Sequence[ScratchArrays], n_latents: int) -> Iterator[tuple[int, int, LatentFirings]]:
    """(first latent, last + 1, their firings in all parts), for as many latents at a time as fit into memory."""
    n_firings = np.zeros(n_latents, np.int64)
    for arrays in parts:
        n_firings += np.diff(arrays["firings.ends"])
    for first, stop in groups_of(n_firings, _FIRINGS):
        pieces = [_slice(arrays, first, stop) for arrays in parts]
        latent, image, activation, token, peak = (
            np.concatenate(columns) for columns in zip(*pieces, strict=True)
        )
        # Parts are in the order of their images.
        order = np.argsort(latent, kind="stable")
        yield first, stop, LatentFirings(latent, image, activation, token, peak).take(order)


def _slice(arrays: ScratchArrays, first: int, stop: int) -> list[np.ndarray]:
    ends = arrays.rows("firings.ends", first, stop + 1)
    latent = np.repeat(np.arange(first, stop), np.diff(ends))
    names = ("image", "activation", "token", "peak")
    if not len(latent):
        return [
            latent,
            *(np.zeros(0, np.float32 if name in ("activation", "peak") else np.int32) for name in names),
        ]
    return [latent, *(arrays.rows(f"firings.{name}", int(ends[0]), int(ends[-1])) for name in names)]
