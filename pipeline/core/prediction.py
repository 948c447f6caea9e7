"""`Prediction`: what is known of an artifact before anything is run. Every stage predicts its own.

`pipeline.experiment.plan` asks the stages, and `pipeline.core.machine` turns their effort into seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchsae.storage.artifacts import Artifact

MANIFEST_BYTES = 1_500
"""About the size of a manifest, without a config of unusual length."""


@dataclass(frozen=True)
class Source:
    """What is known of images or weights outside the store without reading them whole.

    `fingerprint` changes when they may have changed. `location` says where they lie; it is recorded with the
    artifact. `n_images` is the number of images, `splits` their number in each split and `class_names` the
    names of their classes, if these are known. `remarks` are sentences for the user, such as which files were
    left out.
    """

    fingerprint: str
    location: Mapping[str, str] = field(default_factory=dict)
    n_images: int | None = None
    splits: Mapping[str, int] | None = None
    class_names: Sequence[str] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """Something whose speed is measured: `measure` does some of it and returns the seconds per unit.

    `name` says what is measured, and with which sizes; a figure is remembered under it, unless it is a constant.
    `measure` may raise UserError or OSError, and then nothing is known.
    """

    name: str
    measure: Callable[[], float] = field(compare=False)
    is_constant: bool = False


@dataclass(frozen=True)
class Prediction:
    """What a stage predicts of one artifact. None where it is not known.

    `facts` are numbers and words that the summary will hold, which the predictions of later stages need.
    `n_bytes` is the size of the finished artifact. `n_scratch_bytes` is what is on the disk beside it, at most,
    while it is built: checkpoints and parts. `effort` is the work, as amounts of what probes measure. `n_units`
    is the number of steps, if checkpoints tell how many of them are done.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    n_bytes: int | None = None
    n_scratch_bytes: int = 0
    effort: Sequence[tuple[Probe, float]] | None = None
    n_units: int | None = None


@dataclass(frozen=True)
class Upstream:
    """What is known of an input, or under the role `source` of data outside the store, before anything is run.

    `artifact` is None if it is not in the store, and `source` if there is none or it cannot be read.
    """

    artifact: Artifact | None = None
    source: Source | None = None
    prediction: Prediction = field(default_factory=Prediction)

    def fact(self, name: str) -> Any:
        """An entry of the artifact's summary, or else of its predicted facts; None if it is not known."""
        if self.artifact is not None:
            known = self.artifact.manifest.summary
            if name in known:
                return known[name]
        return self.prediction.facts.get(name)

    @property
    def n_images(self) -> int | None:
        """The number of images in the input; None while it is not known."""
        return self.fact("n_images")


Upstreams = Mapping[str, Upstream]
"""Role -> what is known of the input that fills it."""
