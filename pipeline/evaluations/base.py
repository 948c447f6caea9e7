"""What an evaluation is: a config that knows its stage and which artifacts feed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.stage import Stage

if TYPE_CHECKING:
    from pipeline.dag import Dag


class EvaluationConfig(Config):
    """Base of evaluation configs; a subclass adds `kind: Literal[...] = ...` and `stage` and `inputs`."""

    @classmethod
    def stage(cls) -> Stage:
        """The stage that runs it; its name is the kind."""
        raise NotImplementedError

    def inputs(self, dag: Dag) -> dict[str, str]:
        """Role -> address of the node that fills it."""
        raise NotImplementedError

    def stage_config(self, dag: Dag) -> Config:
        """What the stage runs with: this config, or one completed with what its names stand for."""
        return self
