"""The text that `patchsae plan` and `verify --discard` print."""

from __future__ import annotations

from collections import Counter
from typing import Any

from patchsae.flows.cli.text import table
from patchsae.pipeline.core.machine import Machine
from patchsae.pipeline.core.text import count, duration, size
from patchsae.pipeline.experiment.damage import Dropped
from patchsae.pipeline.experiment.forecast import seconds_of, total
from patchsae.pipeline.experiment.request import Work, causes, display_state


def plan_rows(work: Work, machine: Machine) -> list[dict[str, Any]]:
    """One JSON object per wanted node, in the order of the run.

    `bytes` are those that the artifact has or will get; `scratch_bytes` what is on the disk beside it while it is
    built; `seconds` what is left to compute. They are null if they are not known.
    """
    rows = []
    for address, item in work.to_write().items():
        seconds = seconds_of(item, work.store, machine) if item.has_work and item.state != "blocked" else None
        rows.append(
            {
                "address": address,
                "stage": item.node.stage.name,
                "key": item.key,
                "state": display_state(item),
                "why": item.why,
                "blocked_by": item.cause,
                "bytes": item.n_bytes if item.state == "cached" else item.n_bytes_left,
                "scratch_bytes": item.prediction.n_scratch_bytes if item.has_work else 0,
                "seconds": seconds,
                "path": str(work.store.at(item.node.stage.name, item.key).path) if item.key else None,
            }
        )
    machine.remember()
    return rows


def plan_text(work: Work, machine: Machine) -> str:
    """The plan as a table, with its totals and with what blocks it."""
    rows = plan_rows(work, machine)
    shown = [
        [
            row["address"],
            (row["key"] or "not known yet")[:16],
            row["state"],
            "" if row["state"] in ("cached", "blocked") else size(row["bytes"]),
            "" if row["state"] in ("cached", "blocked") else duration(row["seconds"]),
            _why_in_short(row),
        ]
        for row in rows
    ]
    counts = Counter(row["state"] for row in rows)
    n_to_run = counts["to run"] + counts["resumes"]
    needed = total(work.to_write().values(), work.store, machine)
    lines = [table(("stage", "key", "state", "bytes", "time", "why"), shown, right=("bytes", "time")), ""]
    for cause, (why, others) in causes(work, [row["address"] for row in rows]).items():
        also = f" (and so {', '.join(others)})" if others else ""
        lines.append(f"blocked: {cause}: {why}{also}")
    lines.append(
        f"{count(len(rows), 'stage')}: {counts['cached']} cached, {n_to_run} to run"
        + (f", {counts['perhaps']} perhaps" if counts["perhaps"] else "")
        + (f", {counts['blocked']} blocked" if counts["blocked"] else "")
        + (f"; takes about {duration(needed.seconds)}" if n_to_run else "")
        + f"; writes about {size(needed.n_bytes)}"
        + (
            f", with checkpoints and parts up to {size(needed.n_bytes_most)} at once"
            if needed.n_bytes_most > needed.n_bytes
            else ""
        )
        + f", {size(work.store.free_bytes())} free at {work.store.root}"
    )
    return "\n".join(lines)


def _why_in_short(row: dict[str, Any]) -> str:
    """Why a node runs, or what blocks it; the reason of that stands once, below the table."""
    if row["blocked_by"] is None:
        return str(row["why"])
    return "see below" if row["blocked_by"] == row["address"] else f"needs {row['blocked_by']}"


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
