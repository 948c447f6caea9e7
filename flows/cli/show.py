"""The text that `patchsae plan`, `status`, `query` and `pick` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from patchsae.flows.cli.text import table
from patchsae.pipeline.core.text import number, size
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.request import Work, display_state
from patchsae.pipeline.experiment.upkeep import Dropped
from patchsae.pipeline.results.pick import By
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store


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


def summary_text(summary: dict[str, Any]) -> str:
    """A summary on one line."""
    return ", ".join(f"{name} {number(value)}" for name, value in summary.items())


def status_text(rows: Sequence[dict[str, Any]], store: Store) -> str:
    """The artifacts of a store as a table, or a sentence if there are none."""
    if not rows:
        return f"{store.root}: nothing here yet; `patchsae demo` makes a first experiment."
    shown = [
        [
            r["stage"],
            r["key"][:16],
            r["state"],
            size(r["bytes"]),
            ", ".join(r["names"]),
            summary_text(r["summary"]),
        ]
        for r in rows
    ]
    total = sum(row["bytes"] for row in rows)
    return (
        table(("stage", "key", "state", "bytes", "names", "summary"), shown, right=("bytes",))
        + f"\n\n{len(rows)} artifacts, {size(total)} at {store.root}"
    )


Format = Literal["table", "csv", "json", "parquet"]


def write_rows(frame: pl.DataFrame, style: Format, output: Path | None) -> None:
    """Writes rows to a file or to standard output. Raises UserError for Parquet on a terminal."""
    if style == "parquet" and output is None and sys.stdout.isatty():
        raise UserError("--format parquet: not readable on a terminal; name a file with --output FILE.")
    match style:
        case "table":
            with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=10_000, fmt_str_lengths=100):
                data = f"{frame}\n".encode()
        case "csv":
            data = frame.write_csv().encode()
        case "json":
            data = frame.write_json().encode() + b"\n"
        case "parquet":
            if output is not None:
                frame.write_parquet(output)
            else:
                frame.write_parquet(sys.stdout.buffer)
            return
    if output is not None:
        output.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


_PICK_COLUMNS = (
    "sae",
    "kind",
    "n_latents",
    "l0",
    "fvu",
    "explained_variance",
    "dead_fraction",
    "zero_shot_kept_mean",
)


def pick_text(rows: pl.DataFrame, picked: pl.DataFrame, by: By) -> str:
    """The SAEs on the frontier as a table in which the picked one is marked, and its folder."""
    name, key = picked["sae"][0], picked["sae_key"][0]
    shown = rows.filter(pl.col("on_frontier") | (pl.col("sae_key") == key))
    lines = [
        ["->" if row["sae_key"] == key else "", *(_cell(row[column]) for column in _PICK_COLUMNS)]
        for row in shown.iter_rows(named=True)
    ]
    header = ["", "sae", "objective", "latents", "L0", "FVU", "EV", "dead", "zero-shot kept"]
    return "\n\n".join(
        (
            f"{len(shown)} of {len(rows)} SAEs are on the frontier of L0 and FVU.",
            table(header, lines, right=header[3:]),
            f"Best by {by}: train/{name}, {picked['path'][0]}",
        )
    )


def pick_json(rows: pl.DataFrame, picked: pl.DataFrame) -> str:
    """Every row as a JSON object; `picked` is true in one of them."""
    key = picked["sae_key"][0]
    return json.dumps(
        [{**row, "picked": row["sae_key"] == key} for row in rows.iter_rows(named=True)], indent=1
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")
