"""Text for people: aligned tables, sizes, and what a plan or a store looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.progress import size
from storage.artifacts import Store

if TYPE_CHECKING:
    from flows.request import Work


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Columns two spaces apart; those named in `right` are right-aligned, the last one is never padded."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plan_rows(work: Work) -> list[dict[str, Any]]:
    """One object per node, in the order of the run."""
    from flows.request import display_state

    return [
        {
            "address": address,
            "stage": item.node.stage.name,
            "key": item.key,
            "state": "to run" if address in work.again else display_state(item),
            "why": "asked to run again" if address in work.again else item.why,
            "bytes": item.n_bytes,
            "path": str(work.store.at(item.node.stage.name, item.key).path) if item.key else None,
        }
        for address, item in work.planned.items()
        if address in work.wanted
    ]


def plan_text(work: Work) -> str:
    """The plan as a table with its totals."""
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


def status_rows(store: Store) -> list[dict[str, Any]]:
    """Every artifact of a store; `names` are the `experiment: stage/name` it is known by."""
    names: dict[tuple[str, str], list[str]] = {}
    for experiment, artifacts in store.experiments().items():
        for address, (stage, key) in artifacts.items():
            names.setdefault((stage, store.at(stage, key).path.name), []).append(f"{experiment}: {address}")
    return [
        {
            "stage": artifact.stage,
            "key": artifact.key,
            "state": state,
            "path": str(artifact.path),
            "bytes": artifact.n_bytes(),
            "summary": artifact.manifest.summary if state == "committed" else {},
            "names": sorted(names.get((artifact.stage, artifact.path.name), [])),
        }
        for artifact, state in store.artifacts()
    ]


def summary_text(summary: dict[str, Any]) -> str:
    """A summary on one line."""
    return ", ".join(f"{name} {number(value)}" for name, value in summary.items())


def number(value: float | int | str | None) -> str:
    """A summary's value: counts with separators, fractions to four digits, digests cut."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if len(value) <= 40 else f"{value[:16]}..."


def status_text(rows: Sequence[dict[str, Any]], store: Store) -> str:
    """The store as a table, or a sentence if there is nothing in it."""
    if not rows:
        return f"{store.root}: nothing here yet; `patchsae demo` makes a first experiment."
    shown = [
        [r["stage"], r["key"][:16], r["state"], size(r["bytes"]), summary_text(r["summary"])] for r in rows
    ]
    total = sum(row["bytes"] for row in rows)
    return (
        table(("stage", "key", "state", "bytes", "summary"), shown, right=("bytes",))
        + f"\n\n{len(rows)} artifacts, {size(total)} at {store.root}"
    )
