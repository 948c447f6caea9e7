"""`Node`: one stage instance of an experiment, which `pipeline.experiment` makes, plans and runs."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Stage


@dataclass(frozen=True)
class Names:
    """The entries of the experiment that a node's artifact is about, by name; None where none applies."""

    dataset: str | None = None
    backbone: str | None = None
    sae: str | None = None
    evaluation: str | None = None


@dataclass(frozen=True)
class Node:
    """A stage instance with its config, addressed as `stage/name`.

    `inputs` maps a role to the address of the node that fills it. `source` is the path of the node's config
    in the experiment, such as `("saes", "relu")`. It is empty if the experiment has no entry for the node,
    which is there because another node needs it.
    """

    stage: Stage
    name: str
    config: Config
    inputs: dict[str, str]
    names: Names = Names()
    source: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return f"{self.stage.name}/{self.name}"
