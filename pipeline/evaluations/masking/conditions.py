"""Every way of replacing activations with its counts, in the order of the table `masking`."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.pipeline.evaluations.masking.correct import ByImage, Correct
from patchsae.pipeline.evaluations.masking.settings import MaskingSettings, Ranking
from patchsae.pipeline.evaluations.masking.table import Condition

_MODES = ("on", "off")


def conditions(
    settings: MaskingSettings, rankings: Sequence[Ranking], correct: Correct | ByImage, n_latents: int
) -> list[Condition]:
    """Conditions with counts, or, of `ByImage`, with the outcome of every image in their place."""
    found = [
        Condition("none", "original", None, None, None, correct.original),
        Condition("none", "reconstruction", n_latents, None, None, correct.reconstruction),
    ]
    for ranking, masked in zip(rankings, correct.masked, strict=True):
        # With all latents on, the result is the reconstruction; with all off, the bias. Neither depends on a
        # ranking.
        number = min(ranking.statistics or 0, len(correct.bias) - 1)
        everything = {"on": correct.reconstruction, "off": correct.bias[number]}
        for mode in settings.modes:
            one = (ranking.selection, mode)
            for k, n_correct in zip(settings.finite_ks(n_latents), masked[_MODES.index(mode)], strict=True):
                found.append(Condition(*one, int(k), ranking.seed, ranking.statistics, n_correct))
            if settings.includes_all(n_latents):
                found.append(Condition(*one, n_latents, ranking.seed, ranking.statistics, everything[mode]))
    return found
