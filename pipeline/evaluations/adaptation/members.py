"""An adapter as the tables of `adaptation` name it."""

from __future__ import annotations

from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.core.config import Config
from patchsae.storage.keys import digest_json


class Member(Config):
    """An adapter as the tables name it."""

    adapter: str
    kind: str
    dataset: str
    trained_on: str
    shots: int | None
    seed: int
    settings: str
    """A digest of everything but the seed."""

    @classmethod
    def of(cls, name: str, adapter: AdapterConfig) -> Member:
        hashed = adapter.key_config()
        classes = adapter.classes
        trained_on = classes if isinstance(classes, str) else "all" if classes is None else "listed"
        others = {field: value for field, value in hashed.items() if field != "seed"}
        return cls(
            adapter=name,
            kind=hashed["kind"],
            dataset=str(adapter.dataset),
            trained_on=trained_on,
            shots=adapter.shots,
            seed=adapter.seed,
            settings=digest_json([others, adapter.backbone, adapter.dataset]),
        )
