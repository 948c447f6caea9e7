"""What a user should know of the data of an experiment: files that were left out, images that cannot be read."""

from __future__ import annotations

from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.request import Work


def remarks(work: Work) -> list[str]:
    """One sentence for each thing that is to be known, beginning with the address of its node.

    Those about a source are there before anything is run. Those about an artifact are there once it is in the
    store, whether this run has built it or an earlier one.
    """
    return [
        f"{address}: {sentence}."
        for address, item in work.planned.items()
        for sentence in (*_of_source(item), *_of_artifact(work, item))
    ]


def _of_source(item: Planned) -> tuple[str, ...]:
    return item.source.remarks if item.source is not None else ()


def _of_artifact(work: Work, item: Planned) -> tuple[str, ...]:
    stage = item.node.stage
    if stage.remarks is None or item.key is None:
        return ()
    artifact = work.store.at(stage.name, item.key)
    return tuple(stage.remarks(artifact.manifest.summary)) if artifact.is_usable else ()
