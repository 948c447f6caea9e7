"""What the evaluation `masking` predicts of its work and its scratch files, beside the tails."""

from __future__ import annotations

from patchsae.pipeline.core.machine import memory
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.evaluations.foreseen import Foreseen
from patchsae.pipeline.evaluations.masking.settings import MaskingSettings


def _n_ranked(settings: MaskingSettings, known: Foreseen) -> int:
    return int(settings.finite_ks(known.n_latents).max(initial=0))


def masking_effort(
    settings: MaskingSettings, n_statistics: int, known: Foreseen
) -> list[tuple[Probe, float]]:
    """Encoding, decoding, and the sums of every ranking."""
    n_rankings = len(settings.rankings(n_statistics))
    # Each ranking adds up the decoder rows of its latents once more.
    n_rows_added = 0.0 if known.is_dense else known.l0 * n_rankings
    n_passes = n_rows_added + 4 * settings.n_masks(known.n_latents, n_statistics)
    return [
        *known.encoding(),
        *known.decoding(known.n_latents + _n_ranked(settings, known) * n_rankings),
        (memory(), 4.0 * known.n_images * known.tokens * known.width * n_passes),
    ]


def masking_scratch(settings: MaskingSettings, n_statistics: int, known: Foreseen) -> int:
    """Bytes of the orders of latents, and of the counts of every part."""
    n_orders = n_statistics * len(settings.selections_by_class()) * known.n_classes
    shared = 8 * _n_ranked(settings, known) * (n_orders + len(settings.rankings(n_statistics)))
    n_masks = settings.n_masks(known.n_latents, n_statistics)
    bits = known.n_images * n_masks // 8 if settings.n_bootstrap else 0
    return shared + bits + known.n_parts * (8 * known.n_classes * n_masks + 4_000)
