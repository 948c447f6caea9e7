"""`--set PATH=VALUE`: changes fields of an experiment before it is validated.

A path begins with a section of the experiment, as in `saes.relu.lr`, or with a stage. `train.lr` sets the
field `lr` of the configs of all nodes of the stage `train`; `train/relu.lr` sets that of one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Override:
    """A `PATH=VALUE` string, and the fields of the experiment that it set."""

    text: str
    paths: Sequence[tuple[str, ...]]


def apply_override(
    raw: dict[str, Any],
    text: str,
    sections: Sequence[str],
    nodes: Callable[[dict[str, Any]], Sequence[Node]],
    read: Callable[[str, str], Any],
) -> Override:
    """Changes `raw` by a `PATH=VALUE` string, and returns what it changed.

    `sections` are the fields of an experiment. `nodes` returns the nodes of the experiment that `raw`
    describes so far. `read` turns the text of a value into the value, and is told where it stands. Raises
    UserError if the string or its path is not valid.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UserError(f"--set {text}: write FIELD=VALUE, for example train.l1_coefficient=1e-4.")
    steps = path.split(".")
    stage, _, only = steps[0].partition("/")
    places: list[tuple[str, ...]]
    if stage in STAGES:
        places, fields = _sources(nodes(raw), stage, only, path), steps[1:]
    elif steps[0] in sections:
        places, fields = [()], steps
    else:
        known = [*STAGES, *sections]
        raise UserError(f"--set {path}: `{stage}` is no stage and no section{nearest(stage, known)}")
    if not fields:
        raise UserError(f"--set {path}: names no field; write {path}.FIELD=VALUE.")
    for place in places:
        _set(raw, [*place, *fields], read(value, f"--set {path}"), path)
    return Override(text, [(*place, *fields) for place in places])


def _sources(nodes: Sequence[Node], stage: str, only: str, path: str) -> list[tuple[str, ...]]:
    """The paths, in the experiment, of the configs of a stage's nodes (`Node.source`)."""
    mine = [node for node in nodes if node.stage.name == stage and only in ("", node.name)]
    if not mine:
        raise UserError(f"--set {path}: the experiment has no such {stage}.")
    sources = list(dict.fromkeys(node.source for node in mine if node.source))
    if not sources:
        raise UserError(
            f"--set {path}: {mine[0].address} has no settings of its own; set those of the evaluation that needs it."
        )
    return sources


def _set(raw: dict[str, Any], steps: Sequence[str], value: Any, path: str) -> None:
    owner = raw
    for step in steps[:-1]:
        owner = owner.setdefault(step, {})
        if not isinstance(owner, dict):
            raise UserError(f"--set {path}: `{step}` has no fields.")
    owner[steps[-1]] = value
