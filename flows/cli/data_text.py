"""What `patchsae data` prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from patchsae.flows.cli.text import table
from patchsae.pipeline.images.coop.fetch import MIRROR
from patchsae.pipeline.images.coop.found import Found, belongs


def data_text(found: Sequence[Found], explain: bool) -> str:
    """A row per data set; with `explain`, also where to get those that are not there, and where to put them."""
    rows = [(one.name, one.state, _contents(one) if one.state == "found" else one.problem) for one in found]
    remarks = [f"{one.name}: {remark}." for one in found for remark in one.remarks]
    parts = [table(("name", "state", ""), rows), *remarks]
    absent = [one for one in found if one.state != "found"]
    if explain:
        parts += [_explained(one) for one in absent]
    elif absent:
        root = shlex.quote(str(absent[0].root))
        parts.append(
            f"`patchsae data NAME --root {root}` says where to get a data set and where to put it; with --fetch it is "
            "fetched."
        )
    return "\n\n".join(parts)


def data_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "name": one.name,
            "state": one.state,
            "problem": one.problem,
            "remarks": list(one.remarks),
            "folder": str(one.root / one.facts.folder),
            "belongs": belongs(one.facts),
            "missing": one.missing(),
            "n_classes": one.facts.n_classes,
            "splits": dict(one.facts.splits),
            "origin": one.facts.origin,
            "mirror": f"{MIRROR}/{one.facts.archive}" if one.facts.archive else None,
            "remark": one.facts.remark,
        }
        for one in found
    ]


def _contents(one: Found) -> str:
    splits = ", ".join(f"{split} {n:,}" for split, n in one.facts.splits.items())
    return f"{one.facts.n_classes:,} classes, {one.facts.n_images:,} images: {splits}"


def _explained(one: Found) -> str:
    facts = one.facts
    root = shlex.quote(str(one.root))
    lines = {
        "belongs there": f"{one.root / facts.folder}/ with {', '.join(belongs(facts))}",
        "missing": ", ".join(one.missing()) if one.state == "incomplete" else "",
        "fetch it": f"patchsae data {one.name} --root {root} --fetch" if facts.archive else "",
        "get it": facts.origin + (f"; Hugging Face: {MIRROR}/{facts.archive}" if facts.archive else ""),
        "note": facts.remark,
        "use it": f"datasets: {{{one.name}: {{kind: coop, name: {one.name}, root: {one.root}}}}}",
    }
    shown = [f"  {what:<14} {text}" for what, text in lines.items() if text]
    return "\n".join([f"{one.name} ({facts.title}): {_contents(one)}", *shown])
