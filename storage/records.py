"""The record that a store keeps of each experiment: its configs, and the artifact of each of its nodes.

`pipeline.experiment.run` writes it. `patchsae gc`, `pipeline.results` and the Python API read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from patchsae.storage.keys import canonical_json

NAMES = ("dataset", "backbone", "sae", "evaluation")
"""The sections of an experiment whose entries an artifact can be about. Tables get a column of each name."""


@dataclass(frozen=True)
class RecordedNode:
    """A stage instance and its artifact.

    `names` maps some of `NAMES` to the entries that the artifact is about. `inputs` maps a role to an
    address.
    """

    stage: str
    key: str
    names: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentRecord:
    """The nodes of an experiment by their addresses, and the experiment itself.

    `experiment` is the whole resolved experiment as JSON values; None in records of old stores.
    """

    nodes: Mapping[str, RecordedNode]
    experiment: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        body = {
            "experiment": self.experiment,
            "nodes": {address: asdict(node) for address, node in self.nodes.items()},
        }
        return canonical_json(body).encode()

    @classmethod
    def of_json(cls, data: bytes) -> ExperimentRecord:
        """Reads a record, also of an older version. Raises ValueError if `data` is not a record."""
        body = json.loads(data)
        try:
            if "nodes" not in body:
                # The format of older versions, which did not hold the experiment: address -> [stage, key].
                return cls({a: RecordedNode(s, k, _names_of(a)) for a, (s, k) in body.items()})
            return cls({a: RecordedNode(**node) for a, node in body["nodes"].items()}, body["experiment"])
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(str(error)) from None


def _names_of(address: str) -> dict[str, str]:
    """The entries that a node is about, as far as its address names them; for records of old stores."""
    stage, _, name = address.partition("/")
    kinds = {"index": "dataset", "weights": "backbone", "train": "sae", "import": "sae"}
    evaluations = ("statistics", "masking", "reconstruction", "frontier")
    kind = kinds.get(stage) or ("evaluation" if stage in evaluations else None)
    return {kind: name} if kind else {}
