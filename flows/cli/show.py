"""The text that `patchsae plan` and `verify --discard` print."""

from __future__ import annotations

from typing import Any

from patchsae.flows.cli.text import table
from patchsae.pipeline.core.text import size
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.request import Work, display_state
from patchsae.pipeline.experiment.upkeep import Dropped


def plan_rows(work: Work) -> list[dict[str, Any]]:
    """One JSON object per wanted node, in the order of the run."""
    return [
        {
            "address": address,
            "stage": item.node.stage.name,
            "key": item.key,
            "state": "to run" if address in work.again else display_state(item),
            "why": _why_again(work, item) if address in work.again else item.why,
            "bytes": item.n_bytes if item.state == "cached" else item.n_bytes_left,
            "path": str(work.store.at(item.node.stage.name, item.key).path) if item.key else None,
        }
        for address, item in work.planned.items()
        if address in work.wanted
    ]


def _why_again(work: Work, item: Planned) -> str:
    why = "asked to run again"
    if item.key is not None:
        artifact = work.store.at(item.node.stage.name, item.key)
        if artifact.is_committed and work.store.rebuild_of(artifact).path.exists():
            return f"{why}; goes on where it was interrupted"
    return why


def plan_text(work: Work) -> str:
    """The plan as a table, with its totals."""
    rows = plan_rows(work)
    shown = [
        [
            row["address"],
            (row["key"] or "not known yet")[:16],
            row["state"],
            "" if row["state"] == "cached" else size(row["bytes"]),
            row["why"],
        ]
        for row in rows
    ]
    needed = sum(row["bytes"] or 0 for row in rows if row["state"] != "cached")
    n_to_run = sum(row["state"] in ("to run", "resumes") for row in rows)
    n_blocked = sum(row["state"] == "blocked" for row in rows)
    return (
        table(("stage", "key", "state", "bytes", "why"), shown, right=("bytes",))
        + f"\n\n{len(rows)} stages: {len(rows) - n_to_run - n_blocked} cached, {n_to_run} to run"
        + (f", {n_blocked} blocked" if n_blocked else "")
        + f"; writes about {size(needed)}, {size(work.store.free_bytes())} free at {work.store.root}"
    )


def dropped_text(dropped: Dropped) -> str:
    """What `patchsae verify --discard` did, in a few lines."""
    lines = [f"{artifact.stage} {artifact.key[:16]}: damaged, dropped." for artifact in dropped.damaged]
    lines += [
        f"{artifact.stage} {artifact.key[:16]}: dropped too, because it was made from a damaged one."
        for artifact in dropped.made_from_them
    ]
    lines += [
        f"{artifact.stage} {artifact.key[:16]}: left as it is: {why.rstrip('.')}."
        for artifact, why in dropped.left.items()
    ]
    return "\n".join([*lines, "Run the experiment again to restore what was dropped."])
