"""`MaskingSettings`: the fields of the evaluation `masking` that say which masks there are, and `Ranking`.

A mask is that of a ranking of latents, a mode and a k. The images, backbone and prompts are fields of
`pipeline.evaluations.kinds.masking.MaskingConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from patchsae.pipeline.core.config import HashedUnless
from patchsae.pipeline.evaluations.ks import K, Ks

Selection = Literal["class", "class_selective", "prediction", "prediction_selective", "dataset", "random"]
Ablation = Literal["zero", "mean"]
ReconstructionError = Literal["dropped", "kept"]

BY_LABEL = ("class", "class_selective")
"""The selections that depend on the true class of an image."""
BY_PREDICTION = ("prediction", "prediction_selective")
"""The selections that depend on the class that the original activations are classified as."""


@dataclass(frozen=True)
class Ranking:
    """One order of the latents: of a selection, on the statistics with this number, or of a seed."""

    selection: Selection
    statistics: int | None
    seed: int | None = None

    @property
    def order(self) -> str:
        """A name of the order of latents, which rankings by label and by prediction share."""
        if self.selection == "random":
            return f"random {self.seed}"
        return f"{self.selection.replace('prediction', 'class')} {self.statistics}"


class MaskingSettings(Ks):
    """Which latents are switched on or off, and what takes the place of what is switched off."""

    ks: tuple[K, ...] = (
        1,
        2,
        5,
        10,
        50,
        100,
        500,
        1000,
        2000,
        "all",
    )
    """How many latents are switched on or off. The number of all latents, or more, means `all`."""
    selections: tuple[Selection, ...] = ("class", "class_selective", "dataset", "random")
    """Which latents come first: those most active in the image's true class (`class`, the paper's), those most
    active there and little in other classes (`class_selective`, not in the paper), the same of the class that the
    original activations are classified as (`prediction`, `prediction_selective`: no label is used), those most active
    in the whole split, or random ones."""
    modes: tuple[Literal["on", "off"], ...] = ("on", "off")
    """`on`: only the k latents are on. `off`: only the k latents are off."""
    n_random: Annotated[int, Field(ge=1)] = 10
    """Number of random rankings, which have the seeds 0, 1, ... Accuracies differ much from seed to seed, and the
    intervals are as wide as the seeds show."""
    random_pool: Literal["alive", "all"] = "alive"
    """With `alive`, a random ranking has the latents that fire on the statistics' split first (on one of them, if
    there are several statistics) and the dead ones after them; with `all`, they are mixed."""
    error: Annotated[ReconstructionError, HashedUnless("dropped")] = "dropped"
    """Whether a token loses what the SAE leaves of it, x - x_hat (`dropped`, as in the paper), or keeps it."""
    ablation: Annotated[Ablation, HashedUnless("zero")] = "zero"
    """What a latent that is off is set to: 0 (as in the paper), or its mean over all counted tokens of the
    statistics' split, whether it is above 0 on them or not. A random ranking has the means of the first statistics."""
    n_bootstrap: Annotated[int, Field(ge=0), HashedUnless(0)] = 0
    """Number of resamples of the images, drawn with replacement, for bootstrap intervals of the rows of all images;
    none if 0. They also cover the mean over classes, and what a mask costs against the original activations."""

    @field_validator("selections", "modes")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    def rankings(self, n_statistics: int) -> list[Ranking]:
        """Every ranking, in the order of the table. Random ones are the same for all statistics."""
        found = []
        for selection in self.selections:
            if selection == "random":
                found += [Ranking(selection, None, seed) for seed in range(self.n_random)]
            else:
                found += [Ranking(selection, number) for number in range(n_statistics)]
        return found

    def n_masks(self, n_latents: int, n_statistics: int) -> int:
        """The number of ways of replacing activations, with the original ones and the reconstruction."""
        n_ks = len(self.finite_ks(n_latents)) + self.includes_all(n_latents)
        return len(self.rankings(n_statistics)) * len(self.modes) * n_ks + 2

    def selections_by_class(self) -> list[str]:
        """The selections that depend on a class, in the order of the table."""
        return [one for one in self.selections if one in (*BY_LABEL, *BY_PREDICTION)]
